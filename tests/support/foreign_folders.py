"""Tiny folders of weights as other libraries write them, whole with their tokenizers, and the two
ways to load one: as what it says it is, and into a model that is there already."""

import json
import pathlib
from typing import Any, NamedTuple

import gguf_files
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from tokenizers import Tokenizer, processors

from common import tree
from common.training.initialise import initialise
from lm import bert, gpt
from lm import weights as texts
from lm.data import tokenizer as tokenizers
from lm.seq2seq import transformer
from vision import resnet, vit
from vision import weights as images

TEXTS = "one two three", "Four FIVE  six", "", "<s>[CLS] seven</s>[SEP]\n8", "naïve 漢字 zqzq"


class Ground(NamedTuple):
    """What tries begin with: a whole folder, and what stands in it.

    Attributes:
      folder: with weights and, of a text model, a tokenizer.
      model: the model that it describes.
      facts: of its tokenizer; None for images.
      values: {path: array} of its parameters and statistics.
      outputs: of the model, for `inputs_of`.
      auto: the class of `transformers` that reads such folders.
    """

    folder: pathlib.Path
    model: Any
    facts: Any
    values: dict[str, np.ndarray]
    outputs: np.ndarray | None
    auto: str


_SIZES = {"width": 24, "layers": 1, "hidden": 40}
_TEXT = _SIZES | {"heads": 4, "max_length": 16, "norm_eps": 0.01, "init_std": 0.5}
_ROPE = gpt.LLAMA | _TEXT | {"kv_heads": 2, "theta": 500.0, "tied": False}
_SCALING = ("llama3", 4.0, 1.0, 4.0, 8)
_IDLE = {"use_cache": True, "torch_dtype": "float32", "initializer_range": 0.02}
_ENCODER = _IDLE | {"hidden_dropout_prob": 0.1, "position_embedding_type": "absolute"}
MODELS = {
    "bert": (bert.Bert, _TEXT | {"activation": "relu"}, _ENCODER | {"pad_token_id": 0}),
    "roberta": (bert.Bert, _TEXT | {"types": 1}, _ENCODER),
    "gpt2": (gpt.GPT, _TEXT, _IDLE | {"scale_attn_weights": True, "n_ctx": 16}),
    "llama": (gpt.GPT, _ROPE | {"rope_scaling": _SCALING}, _IDLE | {"pretraining_tp": 1}),
    "qwen3": (gpt.GPT, _ROPE | {"qk_norm": True, "head_width": 10}, _IDLE),
    "t5": (
        transformer.EncoderDecoder,
        transformer.T5 | _SIZES | {"heads": 4, "head_width": 6, "buckets": 8, "furthest": 6},
        {"dropout_rate": 0.1, "initializer_factor": 1.0},
    ),
    "bart": (
        transformer.EncoderDecoder,
        transformer.BART | _SIZES | {"heads": 4, "max_length": 16, "decoder_layers": 2},
        _IDLE | {"dropout": 0.1, "normalize_before": False, "normalize_embedding": True},
    ),
    "vit": (
        vit.ViT,
        _SIZES | {"heads": 3, "image_size": 10, "patch_size": 5, "num_classes": 3},
        {"qkv_bias": True, "encoder_stride": 16},
    ),
    "resnet": (
        resnet.ResNet,
        {"stages": (1, 1), "widths": (8, 12), "block": "basic", "stem_width": 8, "num_classes": 3},
        {"downsample_in_first_stage": False},
    ),
}
AUTO = dict.fromkeys(("bert", "roberta"), "AutoModelForMaskedLM")
AUTO |= dict.fromkeys(("t5", "bart"), "AutoModelForSeq2SeqLM")
AUTO |= dict.fromkeys(("vit", "resnet"), "AutoModelForImageClassification")


def grounds(root: pathlib.Path) -> dict[str, Ground]:
    """The folders that are mutated, by name, in a folder of their own."""
    made = {}
    for name, (cls, fields, more) in MODELS.items():
        folder = root / name
        domain = images if name in ("vit", "resnet") else texts
        if domain is texts:
            fields = fields | {"vocab_size": write_tokenizer(folder, name)}
        model = cls(**fields)
        variables = _drawn(model)
        if domain is images:
            domain.save(folder, model, variables, name, ("cat", "dog", "owl"))
        else:
            domain.save(folder, model, variables["params"], name)
        described = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(more | described))
        if name in ("gpt2", "qwen3"):
            _in_parts(folder)
        made[name] = _ground(name, folder)
    (root / "gguf").mkdir()
    metadata, tensors = (
        gguf_files.described("llama") | gguf_files.pieces(),
        gguf_files.tiny("llama"),
    )
    rows = len(metadata["tokenizer.ggml.tokens"])
    random_ = np.random.default_rng(1)
    tensors |= {
        f"{name}.weight": random_.standard_normal((rows, 12), np.float32)
        for name in ("token_embd", "output")
    }
    gguf_files.write(root / "gguf/model.gguf", metadata, tensors)
    return made | {"gguf": _ground("gguf", root / "gguf")}


def _drawn(model) -> dict:
    """A model's variables, all of them at random: some begin as zeros."""
    random_ = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments_of(model))
    drawn = jax.tree.map(lambda s: random_.normal(0, 0.5, s.shape).astype(s.dtype), shapes)
    if "batch_stats" in drawn:  # variances
        drawn["batch_stats"] = jax.tree.map(lambda x: np.abs(x) + 0.1, drawn["batch_stats"])
    return drawn


def write_tokenizer(folder: pathlib.Path, name: str) -> int:
    """Writes a tokenizer's files; returns the size of its vocabulary."""
    kind = "wordpiece" if name == "bert" else "bpe"
    made = tokenizers.train(kind, 80 if name == "bert" else 290, [" ".join(TEXTS) * 9])
    folder.mkdir(parents=True)
    put = lambda file, value: (folder / file).write_text(json.dumps(value))
    vocab = made.get_vocab()
    if name == "bert":
        (folder / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)) + "\n")
        put("tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True})
        put("special_tokens_map.json", {"mask_token": "[MASK]", "unk_token": "[UNK]"})
        return len(vocab)
    if name in ("roberta", "bart"):
        made.add_special_tokens(["<s>", "<pad>", "</s>", "<mask>"])
        ends = [(token, made.token_to_id(token)) for token in ("</s>", "<s>")]
        made.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
        mask = {"content": "<mask>", "lstrip": True, "special": True, "__type": "AddedToken"}
        options = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False}
        put("tokenizer_config.json", options | {"mask_token": mask})
        put(
            "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>"}
        )
    else:
        options = {"eos_token": tokenizers.END, "model_max_length": 16}
        generic = {"tokenizer_class": "PreTrainedTokenizerFast"}
        put("tokenizer_config.json", options | ({} if name == "gpt2" else generic))
    made.save(str(folder / "tokenizer.json"))
    return made.get_vocab_size(with_added_tokens=True)


def _in_parts(folder: pathlib.Path) -> None:
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"model-{1 + i % 2}-of-2.safetensors" for i, name in enumerate(sorted(tensors))}
    for part in set(where.values()):
        own = {name: x for name, x in tensors.items() if where[name] == part}
        safetensors.numpy.save_file(own, folder / part, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _ground(name: str, folder: pathlib.Path) -> Ground:
    model, values, facts = adopt(folder, name)
    return Ground(folder, model, facts, values, None, AUTO.get(name, "AutoModelForCausalLM"))


# ----------------------------------------------------------------------------------------- loading


def inputs_of(model) -> np.ndarray:
    """Two rows of tokens, or two images."""
    random_ = np.random.default_rng(0)
    if hasattr(model, "vocab_size"):
        return random_.integers(9, model.vocab_size, (2, 7)).astype(np.int32)
    side = getattr(model, "image_size", 32)
    return random_.standard_normal((2, side, side, 3), np.float32)


def arguments_of(model) -> tuple:
    """Those of a call: of an encoder-decoder, the same tokens on both sides."""
    inputs = inputs_of(model)
    both = isinstance(model, transformer.EncoderDecoder)
    return (inputs, None, inputs) if both else (inputs,)


def adopt(folder: pathlib.Path, name: str) -> tuple:
    """(model, {path: array}, facts) of what a folder says."""
    if name in ("vit", "resnet"):
        variables = images.pretrained(folder)
        fields = images.sizes(folder)
        return MODELS[name][0](**fields), images.flat(variables), None
    loaded = texts.load(str(folder))
    return loaded.model, tree.flatten(loaded.params), loaded.facts


def enter(folder: pathlib.Path, ground: Ground) -> dict[str, np.ndarray]:
    """{path: array} of a folder's weights, read into a model as a task reads them."""
    init = {"allow": (), "skip": (), "rename": ()}
    config = {"init": init, "data": {"folder": ""}}
    flat = {path: np.zeros_like(x) for path, x in ground.values.items()}
    if ground.facts is None:
        read = images.reader(config, ground.model, ("cat", "dog", "owl"))
        variables = images.engine.variables(flat)
        params, extra = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    else:
        read = texts.reader(ground.facts, config, ground.model)
        params, extra = tree.unflatten(flat), {}
    params, extra = initialise(params, extra, read, path=str(folder))
    return images.flat({"params": params, **extra})


def outputs_of(model, values: dict) -> np.ndarray:
    """f32: the logits of a model for `inputs_of`."""
    variables = images.engine.variables(values)
    found = model.apply(variables, *jax.tree.map(jnp.asarray, arguments_of(model)))
    return np.asarray(jax.tree.leaves(found)[0])


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def ids(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text).ids for text in TEXTS]
