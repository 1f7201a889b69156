"""Encoder-decoders in the Hugging Face layout: T5, Marian, BART.

T5 is version 1.1 or the one before: what tells them apart is whether the output projection is the
table of embeddings, whose logits are then divided by sqrt(D), and the MLP.
"""

import os
from typing import Any

from etils import epath

from common import inputs
from common.errors import brief, nearest, require
from common.weights.family import ACTIVATIONS, Family
from common.weights.names import Names
from lm.seq2seq.transformer import EncoderDecoder

SIDES = "encoder", "decoder"
# Both sides look words up in one table, which may stand in a file once, or under each of its names.
_SHARED = "shared.weight"
_COPIES = tuple((f"{side}.embed_tokens.weight", _SHARED) for side in SIDES)
_COPIES += (("lm_head.weight", _SHARED),)
_PROJECTIONS = "query", "key", "value", "out"
REFUSED = {"is_encoder_decoder": (None, True)}
FIXED = {"source_vocab_size": None}


def start_of(folder: os.PathLike) -> int | None:
    """The token that the decoder of a folder of weights reads before a target, if its files say
    so."""
    return _token(folder, "decoder_start_token_id")


def forced_of(folder: os.PathLike) -> tuple[int, ...]:
    """The token that each target of a folder of weights begins with, if its files name one: a
    language, or BART's <s>."""
    forced = _token(folder, "forced_bos_token_id")
    return () if forced is None else (forced,)


def _token(folder: os.PathLike, key: str) -> int | None:
    for name in ("generation_config.json", "config.json"):
        file = epath.Path(folder) / name
        described = inputs.json_object("", file) if inputs.present(file) else {}
        if type(described.get(key)) is int:
            return described[key]
    return None


def _rows(side: str, module: str, there: str, names) -> tuple[tuple[str, str, str], ...]:
    """Rows of the layers of a block's module, {here: there}, all dense."""
    layers = names.items()
    return tuple(
        (f"{side}/block_{{i}}/{module}/{a}", f"{side}.{there}.{b}", "dense") for a, b in layers
    )


def _same(config: dict, where: str, pairs: dict[str, tuple[str, int]]) -> None:
    """Raises `BadInput` if a key that should repeat another does not.

    Args:
      pairs: {the key: (the other, its default)}.
    """
    for key, (other, default) in pairs.items():
        value, expected = config.get(key, default), config.get(other, default)
        value = expected if key not in config or config[key] is None else value
        require(
            value == expected,
            f"{where}: {key} = {brief(value)} and {other} = {brief(expected)}: only models in "
            "which they are the same are read here",
        )


# ---------------------------------------------------------------------------------------------- T5


def _t5_side(side: str) -> tuple[tuple[str, str, str], ...]:
    block, last = f"{side}/block_{{i}}", 1 if side == "encoder" else 2
    attention = {name: name[0] for name in _PROJECTIONS}
    mlp = {"up": "wi_1", "gate": "wi_0", "down": "wo"}
    norms = {"attention_norm": 0, "mlp_norm": last}
    rows = _rows(side, "attention", "block.{i}.layer.0.SelfAttention", attention)
    if side == "decoder":
        rows += _rows(side, "memory_attention", "block.{i}.layer.1.EncDecAttention", attention)
        norms["memory_norm"] = 1
    return (
        *rows,
        *_rows(side, "mlp", f"block.{{i}}.layer.{last}.DenseReluDense", mlp),
        *(
            (f"{block}/{norm}", f"{side}.block.{{i}}.layer.{n}.layer_norm", "norm")
            for norm, n in norms.items()
        ),
        (
            f"{side}/relative",
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias",
            "table",
        ),
        (f"{side}/final_norm", f"{side}.final_layer_norm", "norm"),
    )


_T5 = Names(
    (
        ("token", "shared", "vocabulary"),
        ("output", "lm_head", "vocabulary"),
        *_t5_side("encoder"),
        *_t5_side("decoder"),
    ),
    heads=("lm_head.",),
    copies=_COPIES,
    # A table of the first checkpoints, which nothing ever read.
    buffers=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)
# An MLP without a gate has another name for what comes before its activation.
_UNGATED = _T5._replace(
    rows=tuple(
        (here, there.replace("wi_1", "wi"), kind)
        for here, there, kind in _T5.rows
        if not here.endswith("mlp/gate")
    )
)
_T5_ALIASES = {
    "hidden_size": ("d_model", 512),
    "num_attention_heads": ("num_heads", 8),
    "num_hidden_layers": ("num_layers", 6),
    "head_dim": ("d_kv", 64),
}


def _t5(config: dict, fields: dict, where: str) -> dict:
    name = inputs.field(config, "feed_forward_proj", str, "relu", where)
    gate, _, kind = name.rpartition("-")
    require(
        gate in ("", "gated") and kind in ACTIVATIONS,
        f"{where}: feed_forward_proj: {brief(name)} is no activation here, nor 'gated-' and one; "
        f"{nearest(name, (*ACTIVATIONS, 'gated-gelu', 'gated-silu'))}",
    )
    # T5 1.1 was trained with the approximate one, under the name of the exact.
    kind = "gelu_new" if name == "gated-gelu" else kind
    repeated = {"dense_act_fn": kind, "is_gated_act": bool(gate)}
    for key, value in repeated.items():
        require(
            config.get(key, value) == value,
            f"{where}: {key} = {brief(config.get(key))}, and feed_forward_proj is {brief(name)}",
        )
    _same(config, where, _T5_ALIASES)
    # transformers 5 writes that logits are tied whether they are or not, and this key beside it.
    scaled = inputs.field(config, "scale_decoder_outputs", bool, fields["tied"], where)
    return fields | {
        "activation": ACTIVATIONS[kind],
        "gated": bool(gate),
        "tied": fields["tied"] and scaled,
        "scale_logits": scaled,
        "decoder_layers": _unless(fields["layers"], fields["decoder_layers"]),
    }


def _unless(same: int, value: int | None) -> int | None:
    """A size, or None if it is that of the encoder."""
    return None if value == same else value


def _t5_keys(fields: dict) -> dict[str, Any]:
    for a, b in (("gated", "activation"), ("tied", "scale_logits")):
        pair = fields[a], fields[b]
        lacks = pair in ((True, "gelu"), (True, False))
        require(not lacks, f"t5 of transformers has no {a} = {pair[0]} with {b} = {pair[1]!r}")
    kind = next(k for k, v in ACTIVATIONS.items() if v == fields["activation"])
    kind = "gelu" if kind == "gelu_new" and fields["gated"] else kind
    return {
        "feed_forward_proj": ("gated-" if fields["gated"] else "") + kind,
        "d_kv": fields["head_width"] or fields["width"] // fields["heads"],
        "num_decoder_layers": fields["decoder_layers"] or fields["layers"],
        "scale_decoder_outputs": fields["scale_logits"],
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,  # of padding, as in its checkpoints
    }


T5 = Family(
    "t5",
    EncoderDecoder,
    (_UNGATED, _T5),
    {
        "vocab_size": ("vocab_size", 32128),
        "width": ("d_model", 512),
        "layers": ("num_layers", 6),
        "decoder_layers": ("num_decoder_layers", None),
        "heads": ("num_heads", 8),
        "head_width": ("d_kv", 64),
        "hidden": ("d_ff", 2048),
        "buckets": ("relative_attention_num_buckets", 32),
        "furthest": ("relative_attention_max_distance", 128),
        "norm_eps": ("layer_norm_epsilon", 1e-6),
        "tied": ("tie_word_embeddings", True),
    },
    FIXED
    | {
        "positions": "relative",
        "norm": "rms",
        "bias": False,
        "pre_norm": True,
        "scale_attention": False,
        "scale_embeddings": False,
        "norm_embeddings": False,
        "logits_bias": False,
    },
    (("", "T5ForConditionalGeneration"),),
    REFUSED,
    known=(
        *("feed_forward_proj", "dense_act_fn", "is_gated_act", "scale_decoder_outputs"),
        "n_positions",  # of no table
        *_T5_ALIASES,
    ),
    varies={"activation": (), "gated": (False, True), "scale_logits": (False, True)},
    read=_t5,
    write=_t5_keys,
)

# ------------------------------------------------------------------------------------ Marian, BART

_TWICE = {  # the decoder's sizes -> the encoder's
    "decoder_attention_heads": ("encoder_attention_heads", 16),
    "decoder_ffn_dim": ("encoder_ffn_dim", 4096),
    "hidden_size": ("d_model", 1024),
    "num_attention_heads": ("encoder_attention_heads", 16),
    "num_hidden_layers": ("encoder_layers", 12),
}
_FIELDS = {
    "vocab_size": ("vocab_size", 50265),
    "width": ("d_model", 1024),
    "layers": ("encoder_layers", 12),
    "decoder_layers": ("decoder_layers", 12),
    "heads": ("encoder_attention_heads", 16),
    "hidden": ("encoder_ffn_dim", 4096),
    "max_length": ("max_position_embeddings", 1024),
    "activation": ("activation_function", "gelu"),
    "scale_embeddings": ("scale_embedding", False),
}


def _side(side: str) -> tuple[tuple[str, str, str], ...]:
    attention = dict(zip(_PROJECTIONS, ("q_proj", "k_proj", "v_proj", "out_proj"), strict=True))
    mlp, block = {"up": "fc1", "down": "fc2"}, f"{side}/block_{{i}}"
    norms = {"attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"}
    rows = _rows(side, "attention", "layers.{i}.self_attn", attention)
    if side == "decoder":
        rows += _rows(side, "memory_attention", "layers.{i}.encoder_attn", attention)
        norms["memory_norm"] = "encoder_attn_layer_norm"
    rows += tuple(
        (f"{block}/mlp/{here}", f"{side}.layers.{{i}}.{there}", "dense")
        for here, there in mlp.items()
    )
    return rows + tuple(
        (f"{block}/{here}", f"{side}.layers.{{i}}.{there}", "norm") for here, there in norms.items()
    )


def _bart_like(
    name: str, cls: str, rows, buffers: str, refused: dict, known, fixed: dict, keys=None, **sizes
) -> Family:
    """A family with post-norm, biases, and a bias of its logits.

    Args:
      name, cls: `model_type` and the class there.
      rows, buffers, refused, known, fixed: as in `Names` and `Family`, of what they do not share.
      keys: fields -> entries of config.json that only this one has; None is none.
      sizes: defaults of config.json that are not BART's.
    """

    def read(config, fields, where):
        _same(config, where, _TWICE | {"decoder_vocab_size": ("vocab_size", fields["vocab_size"])})
        layers = _unless(fields["layers"], fields["decoder_layers"])
        return fields | {"decoder_layers": layers}

    def write(fields):
        return {
            "decoder_layers": fields["decoder_layers"] or fields["layers"],
            "decoder_attention_heads": fields["heads"],
            "decoder_ffn_dim": fields["hidden"],
            "is_encoder_decoder": True,
        } | (keys(fields) if keys else {})

    return Family(
        name,
        EncoderDecoder,
        (
            Names(
                (
                    ("token", "shared", "vocabulary"),
                    ("logits_bias", "final_logits_bias", "row"),
                    *_side("encoder"),
                    *_side("decoder"),
                    *rows,
                ),
                prefix="model.",
                heads=("lm_head.", "final_logits_bias", "classification_head.", "qa_outputs."),
                copies=_COPIES,
                buffers=buffers,
                refused=() if rows else ((r"\w+\.layernorm_embedding\..*", "it is a BART"),),
            ),
        ),
        {k: (key, sizes.get(k, value)) for k, (key, value) in _FIELDS.items()},
        FIXED
        | {
            "norm": "layer",
            "norm_eps": 1e-5,
            "bias": True,
            "pre_norm": False,
            "gated": False,
            "scale_attention": True,
            "scale_logits": False,
            "logits_bias": True,
            "tied": True,
        }
        | fixed,
        (("", cls),),
        REFUSED
        | {
            "tie_word_embeddings": (None, True),
            "normalize_before": (None, False),
            "add_final_layer_norm": (None, False),
            "add_bias_logits": (None, False),
        }
        | refused,
        known=(*_TWICE, *known),
        read=read,
        write=write,
    )


MARIAN = _bart_like(
    *("marian", "MarianMTModel", ()),
    r"(encoder|decoder)\.embed_positions\.weight",
    {
        "share_encoder_decoder_embeddings": (None, True),
        "static_position_embeddings": (None, True),
        "normalize_embedding": (None, False),
    },
    known=("decoder_vocab_size",),
    fixed={"positions": "sinusoidal_halves", "norm_embeddings": False},
    # Its last token is the padding, which begins a target, as in its checkpoints.
    keys=lambda fields: dict.fromkeys(
        ("pad_token_id", "decoder_start_token_id"), fields["vocab_size"] - 1
    ),
    vocab_size=58101,
)
BART = _bart_like(
    *("bart", "BartForConditionalGeneration"),
    tuple(
        row
        for side in SIDES
        for row in (
            (f"{side}/position", f"{side}.embed_positions", "offset_table"),
            (f"{side}/embedding_norm", f"{side}.layernorm_embedding", "norm"),
        )
    ),
    r"(encoder|decoder)\.version",
    {
        "static_position_embeddings": (None, False),
        "normalize_embedding": (None, True),
        "extra_pos_embeddings": (None, 2),
    },
    known=(),
    fixed={"positions": "learned", "norm_embeddings": True},
)
FAMILIES = T5, MARIAN, BART
