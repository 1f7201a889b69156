"""GPT-2 and the Llama family in the Hugging Face layout: Llama, Mistral, Qwen2, Qwen3."""

from typing import Any

from common import inputs
from common.errors import brief, require
from common.weights.family import Family
from common.weights.names import Names
from lm import gpt
from lm.weights import rope

GPT2 = Family(
    "gpt2",
    gpt.GPT,
    (
        Names(
            (
                ("token", "wte", "vocabulary"),
                ("position", "wpe", "table"),
                ("block_{i}/attention_norm", "h.{i}.ln_1", "norm"),
                ("block_{i}/attention", "h.{i}.attn.c_attn", "qkv_conv1d"),
                ("block_{i}/attention/out", "h.{i}.attn.c_proj", "conv1d"),
                ("block_{i}/mlp_norm", "h.{i}.ln_2", "norm"),
                ("block_{i}/mlp/up", "h.{i}.mlp.c_fc", "conv1d"),
                ("block_{i}/mlp/down", "h.{i}.mlp.c_proj", "conv1d"),
                ("final_norm", "ln_f", "norm"),
                ("output", "lm_head", "vocabulary"),
            ),
            prefix="transformer.",
            heads=("lm_head.",),
            copies=(("lm_head.weight", "wte.weight"),),
            buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
        ),
    ),
    {
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
    {"norm": "layer", "gated": False, "positions": "learned", "pre_norm": True, "bias": True},
    (("", "GPT2LMHeadModel"),),
    {"scale_attn_weights": (None, True), "scale_attn_by_inverse_layer_idx": (None, False)},
    read=lambda config, fields, where: fields | {"hidden": fields["hidden"] or 4 * fields["width"]},
)


def _llama(
    name: str,
    cls: str,
    read,
    write,
    varies: dict,
    fixed: dict,
    head_width: int | None = None,
    **defaults: Any,
) -> Family:
    """A family of decoders with RMSNorm, rotary positions and a gated MLP (Touvron et al. 2023).

    Args:
      name, cls: `model_type` and the class there.
      read, write, varies, fixed: as in `Family`, of what differs between these families.
      head_width: the default of `head_dim`; None is that of the other sizes.
      defaults: of other keys, where they are not Llama's.
    """
    fields = {
        "vocab_size": ("vocab_size", 32000),
        "width": ("hidden_size", 4096),
        "layers": ("num_hidden_layers", 32),
        "heads": ("num_attention_heads", 32),
        "kv_heads": ("num_key_value_heads", None),
        "hidden": ("intermediate_size", 11008),
        "max_length": ("max_position_embeddings", 2048),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "activation": ("hidden_act", "silu"),
        "tied": ("tie_word_embeddings", False),
    }
    fields |= {k: (fields[k][0], value) for k, value in defaults.items()}
    block, layer = "block_{i}", "layers.{i}"
    norms = ("query", "key") if fixed.get("qk_norm") else ()

    def reads(config, fields, where):
        size = inputs.field(config, "head_dim", int, head_width, where)
        width, heads = fields["width"], fields["heads"]
        fields = fields | {
            "kv_heads": fields["kv_heads"] or heads,
            "head_width": None if size is None or size * heads == width else size,
        }
        return read(config, fields | rope.read(config, fields, where), where)

    def writes(fields):
        size = fields["head_width"] or fields["width"] // fields["heads"]
        return {"head_dim": size} | rope.write(fields) | write(fields)

    return Family(
        name,
        gpt.GPT,
        (
            Names(
                (
                    ("token", "embed_tokens", "vocabulary"),
                    (f"{block}/attention_norm", f"{layer}.input_layernorm", "norm"),
                    *(
                        (
                            f"block_{{i}}/attention/{here}",
                            f"layers.{{i}}.self_attn.{there}",
                            "dense",
                        )
                        for here, there in (
                            ("query", "q_proj"),
                            ("key", "k_proj"),
                            ("value", "v_proj"),
                            ("out", "o_proj"),
                        )
                    ),
                    *(
                        (
                            f"{block}/attention/{part}_norm",
                            f"{layer}.self_attn.{part[0]}_norm",
                            "norm",
                        )
                        for part in norms
                    ),
                    (f"{block}/mlp_norm", f"{layer}.post_attention_layernorm", "norm"),
                    *(
                        (f"{block}/mlp/{part}", f"{layer}.mlp.{part}_proj", "dense")
                        for part in ("gate", "up", "down")
                    ),
                    ("final_norm", "norm", "norm"),
                    ("output", "lm_head", "vocabulary"),
                ),
                prefix="model.",
                heads=("lm_head.",),
                copies=(("lm_head.weight", "embed_tokens.weight"),),
                buffers=r".*rotary_emb\.inv_freq",
            ),
        ),
        fields,
        {
            "norm": "rms",
            "gated": True,
            "positions": "rotary",
            "pre_norm": True,
        }
        | fixed,
        (("", f"{cls}ForCausalLM"),),
        known=(
            *("head_dim", "attention_bias", "mlp_bias", *rope.KEYS),
            *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
        ),
        varies={"head_width": (), "theta": (), "rope_scaling": ()} | varies,
        read=reads,
        write=writes,
    )


# (attention_bias, mlp_bias) -> the field `bias`
_BIASES = {
    (True, True): True,
    (False, False): False,
    (True, False): "attention",
    (False, True): "mlp",
}


def _biases(config: dict, fields: dict, where: str) -> dict:
    flags = (
        inputs.field(config, key, bool, False, where) for key in ("attention_bias", "mlp_bias")
    )
    return fields | {"bias": _BIASES[tuple(flags)]}


def _flags(fields: dict) -> dict:
    attention, mlp = next(flags for flags, bias in _BIASES.items() if bias == fields["bias"])
    return {"attention_bias": attention, "mlp_bias": mlp}


def _size(config: dict, where: str) -> int | None:
    """`sliding_window`; null is none."""
    if config.get("sliding_window", 0) is None:
        return None
    return inputs.field(config, "sliding_window", int, 4096, where)


def _window(config: dict, fields: dict, where: str) -> dict:
    """The window of Qwen2 and Qwen3, which either all layers have or none."""
    used = inputs.field(config, "use_sliding_window", bool, False, where)
    size, layers = _size(config, where), fields["layers"]
    first = config.get("max_window_layers", 28)
    require(
        type(first) is int and first >= 0,
        f"{where}: max_window_layers is {brief(first)}, not a number of layers",
    )
    size = size if used else None
    kinds = inputs.field(config, "layer_types", list, None, where)
    if kinds is None:
        sliding, alike = size is not None and first < layers, size is None or not 0 < first < layers
    else:
        alike = len(kinds) == layers and all(kind == kinds[0] for kind in kinds)
        sliding = alike and kinds[0] == "sliding_attention"
    require(alike, f"{where}: layer_types: only models whose layers are all alike are read here")
    require(
        not kinds or kinds[0] in ("sliding_attention", "full_attention"),
        f"{where}: layer_types: {brief(kinds and kinds[0])} is not supported",
    )
    require(
        not sliding or size is not None,
        f"{where}: layer_types has sliding_attention, but use_sliding_window is not set",
    )
    return fields | {"window": size if sliding else None}


def _window_keys(fields: dict) -> dict:
    window = fields["window"]
    keys = {"use_sliding_window": window is not None, "max_window_layers": 0}
    return keys | {"sliding_window": window}


def _mistral(config: dict, fields: dict, where: str) -> dict:
    return fields | {"window": _size(config, where)}


def _qwen3(config: dict, fields: dict, where: str) -> dict:
    biased = inputs.field(config, "attention_bias", bool, False, where)
    return _window(config, fields, where) | {"bias": "attention" if biased else False}


QWEN = {"vocab_size": 151936, "hidden": 22016, "max_length": 32768, "kv_heads": 32}
LLAMA = _llama(
    *("llama", "Llama", _biases, _flags),
    varies={"bias": tuple(_BIASES.values())},
    fixed={},
)
MISTRAL = _llama(  # Jiang et al. 2023
    *("mistral", "Mistral", _mistral, lambda fields: {"sliding_window": fields["window"]}),
    varies={"window": ()},
    fixed={"bias": False},
    hidden=14336,
    kv_heads=8,
    max_length=131072,
)
QWEN2 = _llama(  # Yang et al. 2024
    *("qwen2", "Qwen2", _window, _window_keys),
    varies={"window": ()},
    fixed={"bias": "qkv"},
    **QWEN,
)
QWEN3 = _llama(  # Yang et al. 2025
    *("qwen3", "Qwen3", _qwen3),
    lambda fields: _window_keys(fields) | {"attention_bias": fields["bias"] == "attention"},
    varies={"window": (), "bias": (False, "attention")},
    fixed={"qk_norm": True},
    head_width=128,
    **QWEN,
)
FAMILIES = GPT2, LLAMA, MISTRAL, QWEN2, QWEN3
