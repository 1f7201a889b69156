"""Cuts heads and hidden units that are zero out of a transformer: a smaller ordinary model.

    fields, params = shrink.shrunk(model, params)     # model: the section `model`

A head whose rows of `out` are zero, or a hidden unit whose row of `down` is, adds nothing, whatever
else it computes: without it the outputs are the same up to rounding. All blocks of a model have
equally many, so of each as many are cut as are zero in every block.
"""

from typing import Any, NamedTuple

import numpy as np

from common import tree
from common.compress.prune import Module, modules
from common.errors import require

LAST = {"heads": "out/kernel", "rows": "down/kernel"}


class Shrunk(NamedTuple):
    """A smaller model.

    Attributes:
      fields: the section `model` of it.
      params: its parameters, on the host.
      cut: {"heads": number, "hidden": number} of what each block lost.
    """

    fields: dict[str, Any]
    params: dict
    cut: dict[str, int]


def shrunk(model: dict[str, Any], params: dict) -> Shrunk:
    """The model without what is zero in each of its blocks.

    Args:
      model: the section `model`, with every key.
      params: its parameters.

    Raises:
      BadInput: if there is nothing to cut, or the model has no fields that could say so.
    """
    flat, fields, cut = {p: np.asarray(x) for p, x in tree.flatten(params).items()}, dict(model), {}
    for structure in LAST:
        found = modules(structure, params, model) if _has_fields(structure, model) else []
        kept, lost = _kept(structure, found, flat)
        cut["heads" if structure == "heads" else "hidden"] = lost
        if not lost:
            continue
        for module in found:
            for part in module.parts:
                x = flat[part.path]
                size = x.shape[part.axis] // module.units
                at = (kept[module.path][:, None] * size + np.arange(size)).reshape(-1)
                flat[part.path] = np.take(x, at, axis=part.axis)
        units = found[0].units - lost
        fields |= _with_heads(model, units) if structure == "heads" else {"hidden": units}
    require(
        any(cut.values()),
        "nothing to cut: no attention head and no hidden unit of an MLP is zero in every block; "
        "train with config.compress.prune.structure=heads, or rows, and scope=layer",
    )
    return Shrunk(fields, tree.unflatten(flat), cut)


def _has_fields(structure: str, model: dict) -> bool:
    needed = {"heads", "head_width", "width"} if structure == "heads" else {"hidden"}
    return needed <= model.keys()


def _kept(structure: str, found: list[Module], flat: dict) -> tuple[dict[str, np.ndarray], int]:
    """({module: the units to keep, in order}, how many each loses)."""
    zero = {}
    for module in found:
        last = flat[f"{module.path}/{LAST[structure]}"]
        zero[module.path] = ~last.reshape(module.units, -1).any(axis=1)
    if not zero:
        return {}, 0
    # One unit stays: a model has at least one.
    lost = min(min(int(z.sum()), z.size - 1) for z in zero.values())
    kept = {p: np.setdiff1d(np.arange(z.size), np.flatnonzero(z)[:lost]) for p, z in zero.items()}
    return kept, lost


def _with_heads(model: dict, groups: int) -> dict[str, Any]:
    """The fields of a model with so many heads of keys and values, as wide as before."""
    before = model.get("kv_heads") or model["heads"]
    heads = model["heads"] // before * groups
    kv_heads = {"kv_heads": groups} if model.get("kv_heads") else {}
    width = model["head_width"] or model["width"] // model["heads"]
    return {"heads": heads, "head_width": width} | kv_heads
