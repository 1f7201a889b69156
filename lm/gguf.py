"""Language models in GGUF, the file of llama.cpp: their config.json, tensors and tokenizer.

    config, tensors = gguf.load("model.gguf")    # as a folder in the Hugging Face layout has them
    tokenizer = gguf.tokenizer(gguf_file.metadata("model.gguf"))

llama.cpp renames the tensors of transformers, and for the architecture "llama" interleaves the two
halves of each head of the query and key projections, since it rotates neighbouring pairs. Here both
are undone. A key or name without a meaning here is refused: it may change what the model computes.

Belongs here: the meaning of keys and names. Does not: the file format (`common.weights.gguf_file`).
"""

import math
import re
from collections.abc import Container
from typing import Any

import numpy as np
import tokenizers
from etils import epath
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from common import inputs
from common.errors import BadInput, brief, choice, require
from common.weights import gguf_file

WHERE = "GGUF metadata"

# general.architecture -> (model_type, class) of transformers.
ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
SIZES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
}
# Other keys of an architecture that are understood, or that change nothing.
KEYS = {
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
    "tensor_data_layout",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FACTORS = "rope_freqs.weight"  # divisors of the rotary frequencies: the scaling of Llama 3
# Of Llama 3.1 and later (rope_scaling of their config.json); only the factor differs among them.
LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def load(path: epath.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads a GGUF file as (config.json, {name in transformers: f32 array}).

    Raises:
      BadInput: as `gguf_file.read`, `metadata_config` and `renamed`.
    """
    tensors, metadata = gguf_file.read(path)
    try:
        return metadata_config(metadata, tensors), renamed(metadata, tensors)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


# ------------------------------------------------------------------------------------------ config


def metadata_config(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The config.json of transformers for a GGUF file's model.

    Args:
      metadata, tensors: of `gguf_file.read`. Whether the output layer is tied, whether there are
        biases, the size of the vocabulary and Llama 3's rotary scaling show in the tensors alone.

    Raises:
      BadInput: for another architecture, or a key that is missing, of the wrong type or without a
        meaning here.
    """
    name = choice(
        f"{WHERE}: general.architecture", metadata.get("general.architecture"), ARCHITECTURES
    )
    own = {k.removeprefix(f"{name}."): v for k, v in metadata.items() if k.startswith(f"{name}.")}
    own = {k: v for k, v in own.items() if k != "expert_count" or v != 0}
    unknown = sorted(own.keys() - SIZES.keys() - KEYS)
    require(not unknown, f"{WHERE}: not supported: {', '.join(f'{name}.{k}' for k in unknown[:4])}")
    where = f"{WHERE}: {name}"
    size = lambda key, default=inputs.REQUIRED: inputs.field(own, key, int, default, where)
    model_type, cls = ARCHITECTURES[name]
    sizes = {there: size(key) for key, there in SIZES.items()}
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    head_dim = size("attention.key_length", size("rope.dimension_count", width // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        same = size(key, head_dim) == head_dim
        require(same, f"{where}.{key} = {own.get(key)} is not supported: heads have {head_dim}")
    for tensor in ("token_embd.weight", "blk.0.attn_q.weight"):
        require(tensor in tensors, f"there is no tensor {tensor}")
    rows = len(tensors["blk.0.attn_q.weight"])
    require(rows == heads * head_dim, f"{where}: {heads} queries of {head_dim}, and {rows} rows")
    theta = _decimal(inputs.field(own, "rope.freq_base", float, 10000.0, where))
    described = {
        "model_type": model_type,
        "architectures": [cls],
        **sizes,
        "num_key_value_heads": size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _decimal(
            inputs.field(own, "attention.layer_norm_rms_epsilon", float, inputs.REQUIRED, where)
        ),
        "rope_theta": theta,
        "vocab_size": len(tensors["token_embd.weight"]),
        "tie_word_embeddings": "output.weight" not in tensors,
        **_biases(name, tensors),
    }
    scaling = _scaling(own, tensors.get(FACTORS), theta, head_dim, where)
    if scaling is not None:
        described["rope_scaling"] = scaling
    for token in ("bos", "eos"):
        number = metadata.get(f"tokenizer.ggml.{token}_token_id")
        if number is not None:
            described[f"{token}_token_id"] = number
    return described


def _decimal(value: float) -> float:
    """The shortest decimal that is `value` in f32, in which the file keeps it: 1e-5, say."""
    return float(str(np.float32(value)))


def _biases(name: str, tensors: Container[str]) -> dict[str, bool]:
    """Keys of config.json about biases; a Qwen2 always has them, and has no key."""
    has = lambda *parts: {f"blk.0.{part}.bias" in tensors for part in parts}
    attention = has("attn_q", "attn_k", "attn_v", "attn_output")
    mlp = has("ffn_gate", "ffn_up", "ffn_down")
    if name == "qwen2":
        return {}
    for found in (attention, mlp):
        require(len(found) == 1, "some projections of a block have biases and others have none")
    return {"attention_bias": True in attention, "mlp_bias": True in mlp}


def _scaling(own: dict, factors, theta: float, head_dim: int, where: str) -> dict[str, Any] | None:
    """`rope_scaling` of config.json; None if positions are not scaled."""
    # llama.cpp takes a factor without a type as linear.
    default = "linear" if own.get("rope.scaling.factor", 1) != 1 else "none"
    kind = inputs.field(own, "rope.scaling.type", str, default, where)
    if kind != "none":
        require(
            kind == "linear" and factors is None,
            f"{where}.rope.scaling.type = {brief(kind)} is not supported",
        )
        factor = inputs.field(own, "rope.scaling.factor", float, inputs.REQUIRED, where)
        return {"rope_type": "linear", "factor": _decimal(factor)}
    if factors is None:
        return None
    factor = float(factors.max(initial=1.0))
    # Frequencies f with wavelengths below L/high are kept, above L/low divided by the factor, and
    # interpolated between them; L is the length that the model was first trained on.
    turns = LLAMA3["original_max_position_embeddings"] / (
        2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    )
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - kept) / factor + kept)
    require(
        factors.shape == expected.shape and np.allclose(factors, expected, rtol=1e-4),
        f"{FACTORS} is not the rotary scaling of Llama 3, and no other is supported",
    )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


# ----------------------------------------------------------------------------------------- tensors


def renamed(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A GGUF file's tensors under transformers' names, with rows in transformers' order.

    Raises:
      BadInput: for a name without a meaning here, or query or key rows that are not whole heads.
    """
    described = metadata_config(metadata, tensors)
    heads = {"q": described["num_attention_heads"], "k": described["num_key_value_heads"]}
    values = {}
    for name, x in tensors.items():
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        block, part, kind = match.groups() if match else (None, "", "")
        if name == FACTORS:
            continue  # in the config
        known = BLOCK if block is not None else OUTER
        require(part in known, f"the tensor {brief(name)} is not supported")
        if described["model_type"] == "llama" and part in ("attn_q", "attn_k"):
            x = _halves(x, heads[part[-1]], name)
        there = f"model.layers.{block}." if block is not None else ""
        values[f"{there}{known[part]}.{kind}"] = x
    return values


def _halves(x: np.ndarray, heads: int, name: str) -> np.ndarray:
    """Rows of each head in the order 0, 2, 4, ..., 1, 3, 5, ...: pairs become halves."""
    whole = x.ndim > 0 and len(x) % (2 * heads) == 0
    require(whole, f"{name} is {list(x.shape)}: its rows are not {heads} heads of even size")
    pairs = x.reshape(heads, -1, 2, *x.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(x.shape)


# --------------------------------------------------------------------------------------- tokenizer

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # of tokenizer.ggml.token_type
SPACE = "▁"  # of SentencePiece


def _words(digits: str) -> pre_tokenizers.PreTokenizer:
    """The splits of GPT-4's tokenizer (cl100k), with numbers split by the regex `digits`."""
    pattern = "|".join(
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            r"[^\r\n\p{L}\p{N}]?\p{L}+",
            digits,
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


# tokenizer.ggml.pre -> the splits of a text before merges.
SPLITS = {
    "gpt-2": _gpt2,
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(True), _gpt2()]),
    "llama-bpe": lambda: _words(r"\p{N}{1,3}"),
    "qwen2": lambda: _words(r"\p{N}"),
}


def tokenizer(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of a GGUF file.

    Byte-level BPE ("gpt2") with one of `SPLITS`, or SentencePiece's BPE with byte fallback
    ("llama"), whose merges follow from the scores of its pieces. Control tokens are special.

    Raises:
      BadInput: if there is none, it is of another kind, or its lists do not fit together.
    """
    get = lambda key, kind, default=inputs.REQUIRED: inputs.field(
        metadata, f"tokenizer.ggml.{key}", kind, default, WHERE
    )
    kind = choice(f"{WHERE}: tokenizer.ggml.model", get("model", str), ("gpt2", "llama"))
    tokens = get("tokens", list)
    vocab = {token: number for number, token in enumerate(tokens)}
    types = get("token_type", list, [NORMAL] * len(tokens))
    fits = len(vocab) == len(tokens) == len(types)
    require(fits, f"{WHERE}: tokenizer.ggml: a token occurs twice, or has no type")

    def token(role: str) -> tuple[str, int]:
        number = metadata.get(f"tokenizer.ggml.{role}_token_id")
        inside = type(number) is int and 0 <= number < len(tokens)
        require(inside, f"{WHERE}: tokenizer.ggml.{role}_token_id is {brief(number)}, not a token")
        return tokens[number], number

    try:
        if kind == "gpt2":
            made = _byte_level(get, vocab)
        else:
            made = _sentencepiece(get, vocab, types, token("unknown")[0])
    except BadInput:
        raise
    except Exception as error:  # the library refuses merges of unknown tokens, and much else
        raise BadInput(f"{WHERE}: tokenizer.ggml: {inputs.reason(error)}") from error
    for of, special in ((CONTROL, True), (USER_DEFINED, False)):
        made.add_tokens(
            [
                tokenizers.AddedToken(text, special=special, normalized=False)
                for text, type_ in zip(tokens, types, strict=True)
                if type_ == of
            ]
        )
    # llama.cpp's defaults for files without these keys.
    bos = get("add_bos_token", bool, kind == "llama" or get("pre", str, "") == "llama-bpe")
    ends = {"bos": bos, "eos": get("add_eos_token", bool, False)}
    added = {end: token(end) for end in ("bos", "eos") if ends[end]}
    if added:
        single = [added[end][0] if end in added else end for end in ("bos", "$A", "eos")]
        made.post_processor = processors.TemplateProcessing(
            single=[part for part in single if part not in ends],
            special_tokens=list(dict.fromkeys(added.values())),
        )
    return made


def _byte_level(get, vocab: dict[str, int]) -> tokenizers.Tokenizer:
    split = choice(f"{WHERE}: tokenizer.ggml.pre", get("pre", str), SPLITS)
    merges = [tuple(merge.split(" ")) for merge in get("merges", list)]
    # Llama 3's vocabulary has words that its merges do not reach.
    made = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=split == "llama-bpe"))
    made.normalizer = normalizers.NFC() if split == "qwen2" else None
    made.pre_tokenizer = SPLITS[split]()
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(get, vocab: dict[str, int], types: list, unknown: str) -> tokenizers.Tokenizer:
    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        require(
            not get(key, bool if key[0] == "r" else list, None),
            f"{WHERE}: tokenizer.ggml.{key} is not supported",
        )
    scores = get("scores", list)
    require(
        len(scores) == len(vocab) and all(map(math.isfinite, scores)),
        f"{WHERE}: tokenizer.ggml.scores: not one for each token, or infinite",
    )
    absent = [f"<0x{i:02X}>" for i in range(256) if f"<0x{i:02X}>" not in vocab]
    whole = len(absent) in (0, 256)
    require(whole, f"{WHERE}: tokenizer.ggml.tokens has bytes, but not {brief(absent[:3])}")
    # Every pair whose whole is a piece, the best whole first: the order in which SentencePiece
    # merges.
    pieces = {t: s for t, s, type_ in zip(vocab, scores, types, strict=True) if type_ == NORMAL}
    merges = [
        (-score, len(piece), cut, piece)
        for piece, score in pieces.items()
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    pairs = [(piece[:cut], piece[cut:]) for *_, cut, piece in sorted(merges)]
    made = tokenizers.Tokenizer(
        models.BPE(vocab, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = get("add_space_prefix", bool, True)
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE)] * prefix + [normalizers.Replace(" ", SPACE)]
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefix)
    return made
