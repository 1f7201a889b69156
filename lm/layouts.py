"""The Hugging Face layout of BERT, GPT-2 and Llama: names of tensors, and config.json.

"There" is that layout, "here" these modules. Only tables and their readers; `lm.weights` handles
the tensors.
"""

from typing import Any, NamedTuple

import flax.linen as nn

from common import inputs
from common.errors import choice, require
from lm import bert


class Leaf(NamedTuple):
    """A tensor there and its parameters here.

    Attributes:
      there: the end of its name.
      here: the end of the parameter's path; several if the tensor is their concatenation.
      transposed: whether it is transposed.
      padded: whether the table here has extra rows after the vocabulary.
    """

    there: str
    here: tuple[str, ...]
    transposed: bool = False
    padded: bool = False


_PARTS = ("query", "key", "value")
LEAVES = {
    "dense": (Leaf("weight", ("kernel",), transposed=True), Leaf("bias", ("bias",))),
    "conv": (Leaf("weight", ("kernel",)), Leaf("bias", ("bias",))),
    "fused": tuple(
        Leaf(there, tuple(f"{part}/{here}" for part in _PARTS))
        for there, here in (("weight", "kernel"), ("bias", "bias"))
    ),
    "norm": (Leaf("weight", ("scale",)), Leaf("bias", ("bias",))),
    "table": (Leaf("weight", ("embedding",)),),
    "vocabulary": (Leaf("weight", ("embedding",), padded=True),),
    "head_bias": (Leaf("bias", ("head_bias",)),),
}


class HFLayout(NamedTuple):
    """The layout of one architecture there.

    Attributes:
      prefix: of every name except those of heads.
      heads: prefixes of the names of heads.
      names: rows (module there, module here, key of `LEAVES`); "#" is the number of a block.
      copies: name of a tensor that only repeats another -> that other's name.
      buffers: regex of tensors that are not weights.
      fields: field of the model -> (key of config.json, default).
      fixed: required values of the other fields.
      refused: key of config.json -> values that mean the same as its absence; others are refused.
    """

    prefix: str
    heads: tuple[str, ...]
    names: tuple[tuple[str, str, str], ...]
    copies: dict[str, str]
    buffers: str
    fields: dict[str, tuple[str, Any]]
    fixed: dict[str, Any]
    refused: dict[str, tuple]


PLAIN = {"norm": "layer", "gated": False, "positions": "learned", "window": None}

BERT = HFLayout(
    prefix="bert.",
    heads=("cls.", "classifier."),
    names=(
        ("embeddings.word_embeddings", "token", "vocabulary"),
        ("embeddings.position_embeddings", "position", "table"),
        ("embeddings.token_type_embeddings", "type", "table"),
        ("embeddings.LayerNorm", "embedding_norm", "norm"),
        ("encoder.layer.#.attention.self.query", "block_#/attention/query", "dense"),
        ("encoder.layer.#.attention.self.key", "block_#/attention/key", "dense"),
        ("encoder.layer.#.attention.self.value", "block_#/attention/value", "dense"),
        ("encoder.layer.#.attention.output.dense", "block_#/attention/out", "dense"),
        ("encoder.layer.#.attention.output.LayerNorm", "block_#/attention_norm", "norm"),
        ("encoder.layer.#.intermediate.dense", "block_#/mlp/up", "dense"),
        ("encoder.layer.#.output.dense", "block_#/mlp/down", "dense"),
        ("encoder.layer.#.output.LayerNorm", "block_#/mlp_norm", "norm"),
        ("pooler.dense", "pooler", "dense"),
        ("cls.predictions.transform.dense", "head_dense", "dense"),
        ("cls.predictions.transform.LayerNorm", "head_norm", "norm"),
        ("cls.predictions", "", "head_bias"),
        ("cls.seq_relationship", "next", "dense"),
        ("classifier", "classifier", "dense"),
    ),
    copies={
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    buffers=r"embeddings\.(position_ids|token_type_ids)",
    fields={
        "vocab_size": ("vocab_size", 30522),
        "width": ("hidden_size", 768),
        "layers": ("num_hidden_layers", 12),
        "heads": ("num_attention_heads", 12),
        "hidden": ("intermediate_size", 3072),
        "max_length": ("max_position_embeddings", 512),
        "types": ("type_vocab_size", 2),
        "norm_eps": ("layer_norm_eps", 1e-12),
        "activation": ("hidden_act", "gelu"),
    },
    fixed=PLAIN | {"pre_norm": False, "bias": True},
    refused={
        "position_embedding_type": (None, "absolute"),
        "is_decoder": (None, False),
        "add_cross_attention": (None, False),
        "pruned_heads": (None, {}),
    },
)

GPT2 = HFLayout(
    prefix="transformer.",
    heads=("lm_head.",),
    names=(
        ("wte", "token", "vocabulary"),
        ("wpe", "position", "table"),
        ("h.#.ln_1", "block_#/attention_norm", "norm"),
        ("h.#.attn.c_attn", "block_#/attention", "fused"),
        ("h.#.attn.c_proj", "block_#/attention/out", "conv"),
        ("h.#.ln_2", "block_#/mlp_norm", "norm"),
        ("h.#.mlp.c_fc", "block_#/mlp/up", "conv"),
        ("h.#.mlp.c_proj", "block_#/mlp/down", "conv"),
        ("ln_f", "final_norm", "norm"),
        ("lm_head", "output", "vocabulary"),
    ),
    copies={"lm_head.weight": "wte.weight"},
    buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
    fields={
        "vocab_size": ("vocab_size", 50257),
        "width": ("n_embd", 768),
        "layers": ("n_layer", 12),
        "heads": ("n_head", 12),
        "hidden": ("n_inner", None),
        "max_length": ("n_positions", 1024),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "activation": ("activation_function", "gelu_new"),
        "tied": ("tie_word_embeddings", True),
    },
    fixed=PLAIN | {"pre_norm": True, "bias": True},
    refused={
        "scale_attn_weights": (None, True),
        "scale_attn_by_inverse_layer_idx": (None, False),
        "add_cross_attention": (None, False),
        "pruned_heads": (None, {}),
    },
)

LLAMA = HFLayout(
    prefix="model.",
    heads=("lm_head.",),
    names=(
        ("embed_tokens", "token", "vocabulary"),
        ("layers.#.input_layernorm", "block_#/attention_norm", "norm"),
        ("layers.#.self_attn.q_proj", "block_#/attention/query", "dense"),
        ("layers.#.self_attn.k_proj", "block_#/attention/key", "dense"),
        ("layers.#.self_attn.v_proj", "block_#/attention/value", "dense"),
        ("layers.#.self_attn.o_proj", "block_#/attention/out", "dense"),
        ("layers.#.post_attention_layernorm", "block_#/mlp_norm", "norm"),
        ("layers.#.mlp.gate_proj", "block_#/mlp/gate", "dense"),
        ("layers.#.mlp.up_proj", "block_#/mlp/up", "dense"),
        ("layers.#.mlp.down_proj", "block_#/mlp/down", "dense"),
        ("norm", "final_norm", "norm"),
        ("lm_head", "output", "vocabulary"),
    ),
    copies={"lm_head.weight": "embed_tokens.weight"},
    buffers=r".*rotary_emb\.inv_freq",
    fields={
        "vocab_size": ("vocab_size", 32000),
        "width": ("hidden_size", 4096),
        "layers": ("num_hidden_layers", 32),
        "heads": ("num_attention_heads", 32),
        "kv_heads": ("num_key_value_heads", None),
        "hidden": ("intermediate_size", 11008),
        "max_length": ("max_position_embeddings", 2048),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "activation": ("hidden_act", "silu"),
        "theta": ("rope_theta", 10000.0),
        "tied": ("tie_word_embeddings", False),
        "bias": ("attention_bias", False),
    },
    fixed=PLAIN | {"pre_norm": True, "norm": "rms", "gated": True, "positions": "rotary"},
    refused={"rope_scaling": (None,), "pruned_heads": (None, {})},
)

LAYOUTS = {"bert": BERT, "gpt2": GPT2, "llama": LLAMA}

# Activations there -> here; of two names for one, exports use the first.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def leaves(layout: HFLayout) -> dict[str, Leaf]:
    """{name there: Leaf with full paths in `here`}; "#" is the number of a block."""
    return {
        f"{there}.{leaf.there}": leaf._replace(
            here=tuple(f"{here}/{end}".lstrip("/") for end in leaf.here)
        )
        for there, here, kind in layout.names
        for leaf in LEAVES[kind]
    }


def architecture(config: dict, where: str) -> str:
    """The key of `LAYOUTS` for a config.json; from its keys if it is old and has no model_type.

    Raises:
      BadInput: for another model type.
    """
    if "model_type" in config:
        return choice(f"{where}: model_type", config["model_type"], LAYOUTS)
    known = lambda name: sum(key in config for key, _ in LAYOUTS[name].fields.values())
    return max(LAYOUTS, key=known)


def sizes(config: dict, where: str) -> dict[str, Any]:
    """The fields of the model that a config.json describes.

    Raises:
      BadInput: for a setting that the models here do not support, or a value of the wrong type.
    """
    layout = LAYOUTS[architecture(config, where)]
    for key, allowed in layout.refused.items():
        value = config.get(key)
        require(value in allowed, f"{where}: {key} = {value!r} is not supported")
    fields = {
        field: inputs.field(config, key, _kind(default), default, where)
        for field, (key, default) in layout.fields.items()
    }
    fields["activation"] = ACTIVATIONS[
        choice(f"{where}: activation", fields["activation"], ACTIVATIONS)
    ]
    if fields["hidden"] is None:
        fields["hidden"] = 4 * fields["width"]
    if layout is LLAMA:
        fields["kv_heads"] = fields["kv_heads"] or fields["heads"]
        nested = (inputs.field(config, f"rope_{k}", dict, None, where) for k in _ROPE)
        rope = next(filter(None, nested), {})
        kind = rope.get("rope_type", rope.get("type", "default"))
        require(kind == "default", f"{where}: rotary positions of type {kind!r} are not supported")
        fields["theta"] = float(inputs.field(rope, "rope_theta", float, fields["theta"], where))
        size = inputs.field(config, "head_dim", int, None, where)
        mlp_bias = inputs.field(config, "mlp_bias", bool, False, where)
        require(
            size is None or size * fields["heads"] == fields["width"],
            f"{where}: head_dim = {size} is not supported: it must be width / heads",
        )
        require(
            mlp_bias == fields["bias"],
            f"{where}: mlp_bias = {mlp_bias} is not supported: it must equal attention_bias",
        )
    return layout.fixed | fields


_ROPE = ("parameters", "scaling")


def _kind(default: Any) -> type:
    """The type of a key of config.json, by its default; None stands for a size."""
    return int if default is None else type(default)


def config(model: nn.Module) -> dict[str, Any]:
    """The config.json of a model: the inverse of `sizes`.

    Raises:
      BadInput: for a field's value that no architecture there supports.
    """
    name = "bert" if isinstance(model, bert.Encoder) else "llama" if model.norm == "rms" else "gpt2"
    layout = LAYOUTS[name]
    fixed = layout.fixed | {"head": True, "pooling": "first"}
    if "kv_heads" not in layout.fields and model.kv_heads != model.heads:
        fixed["kv_heads"] = None
    for field, value in fixed.items():
        current = getattr(model, field, value)
        require(current == value, f"{name} of transformers has no {field} = {current!r}")
    require(name != "bert" or model.types > 0, "bert of transformers has no types = 0")
    written = {key: getattr(model, field) for field, (key, _) in layout.fields.items()}
    activation = next(there for there, here in ACTIVATIONS.items() if here == model.activation)
    written[layout.fields["activation"][0]] = activation
    if layout is LLAMA:
        written["num_key_value_heads"] = model.kv_heads or model.heads
        written["mlp_bias"] = model.bias
    return {"model_type": name} | written
