"""Rotary positions in config.json: the base, and how wavelengths are stretched, as fields of ours.

Older files have `rope_theta` and `rope_scaling`, newer ones both in `rope_parameters`.
"""

from typing import Any

from common import inputs
from common.errors import brief, choice, require
from common.nn.rope import longrope_attention_factor, yarn_attention_factor

ORIGINAL = "original_max_position_embeddings"
KEYS = "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", ORIGINAL
# Keys of `rope_scaling` by its type, besides those that every type may have.
TYPES = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", ORIGINAL),
    "yarn": (
        *("factor", ORIGINAL, "beta_fast", "beta_slow", "attention_factor"),
        *("mscale", "mscale_all_dim", "truncate", "finetuned"),
    ),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "longrope": ("factor", "short_factor", "long_factor", "attention_factor", ORIGINAL),
}
NAMES = {"su": "longrope", None: "default"}  # Phi-3's first name for it


def read(config: dict, fields: dict, where: str) -> dict[str, Any]:
    """{"theta": …, "rope_scaling": …} of a config.json; `fields` are those read before.

    Raises:
      BadInput: for a type that there is not here, an unknown key, or a value of the wrong type.
    """
    nested = [
        inputs.field(config, f"rope_{k}", dict, None, where) for k in ("parameters", "scaling")
    ]
    given = [values for values in nested if values]
    require(
        len(given) < 2 or given[0] == given[1],
        f"{where}: rope_parameters and rope_scaling differ; keep one of them",
    )
    rope = given[0] if given else {}
    where = f"{where}: rope_scaling"
    theta = inputs.field(config, "rope_theta", float, 10000.0, where)
    theta = inputs.field(rope, "rope_theta", float, theta, where)
    require(theta > 0, f"{where}: rope_theta is {theta}, not a positive number")
    kind = rope.get("rope_type", rope.get("type"))
    kind = choice(f"{where}: rope_type", NAMES.get(kind, kind) if _hashable(kind) else kind, TYPES)
    own = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *TYPES[kind]}
    unknown = sorted(rope.keys() - own)
    require(not unknown, f"{where}: {brief(unknown)} is not understood for {kind!r}")
    for source in (config, rope):
        part = inputs.field(source, "partial_rotary_factor", float, 1.0, where)
        require(part == 1, f"{where}: partial_rotary_factor = {part} is not supported, only 1")
    return {"theta": float(theta), "rope_scaling": _scaling(kind, rope, config, fields, where)}


def _hashable(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _scaling(kind: str, rope: dict, config: dict, fields: dict, where: str) -> tuple:
    if kind == "default":
        return ()
    longest = fields["max_length"]
    length = inputs.field(config, ORIGINAL, int, longest, where)
    length = longest if kind == "dynamic" else inputs.field(rope, ORIGINAL, int, length, where)

    def number(key, default=inputs.REQUIRED):
        value = inputs.field(rope, key, float, default, where)
        require(value is None or value > 0, f"{where}: {key} is {value}, not a positive number")
        return None if value is None else float(value)

    def ratio():
        stretched = rope.get("factor") is None and (ORIGINAL in rope or ORIGINAL in config)
        return longest / length if stretched else number("factor")

    if kind == "linear":
        return kind, number("factor")
    if kind == "dynamic":
        return kind, number("factor"), length
    if kind == "llama3":
        factors = number("factor"), number("low_freq_factor"), number("high_freq_factor")
        return kind, *factors, length
    amplitude = number("attention_factor", None)
    if kind == "yarn":
        scales = number("mscale", None), number("mscale_all_dim", None)
        amplitude = amplitude or yarn_attention_factor(ratio(), *scales)
        betas = number("beta_fast", None) or 32.0, number("beta_slow", None) or 1.0
        truncate = inputs.field(rope, "truncate", bool, True, where)
        return kind, ratio(), length, *betas, amplitude, truncate
    factors = []
    for key in ("short_factor", "long_factor"):
        listed = inputs.field(rope, key, list, inputs.REQUIRED, where)
        each = [inputs.field({key: x}, key, float, None, where) for x in listed]
        require(all(each), f"{where}: {key}: {brief(listed)} are not positive numbers")
        factors.append(tuple(map(float, each)))
    return kind, length, amplitude or longrope_attention_factor(ratio(), length), *factors


def write(fields: dict) -> dict[str, Any]:
    """Entries of config.json: the inverse of `read`."""
    kind, *numbers = fields["rope_scaling"] or (None,)
    written = {"rope_theta": fields["theta"]}
    if kind is None:
        return written
    keys = {
        "linear": ("factor",),
        "dynamic": ("factor", ORIGINAL),
        "yarn": ("factor", ORIGINAL, "beta_fast", "beta_slow", "attention_factor", "truncate"),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
        "longrope": (ORIGINAL, "attention_factor", "short_factor", "long_factor"),
    }[kind]
    values = [list(x) if isinstance(x, tuple) else x for x in numbers]
    scaling = {"rope_type": kind} | dict(zip(keys, values, strict=False))
    require(
        kind != "dynamic" or scaling[ORIGINAL] == fields["max_length"],
        f"{kind!r} rotary positions there begin to stretch at max_length = {fields['max_length']}",
    )
    return written | {"rope_scaling": scaling}
