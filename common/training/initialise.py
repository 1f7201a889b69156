"""What a run begins with: parameters of another run, or of weights that its task can read."""

import contextlib
import re
from collections.abc import Callable

import jax
import numpy as np

from common import tree
from common.errors import require
from common.runs.checkpoint import Checkpoints, differences, structure
from common.runs.files import absolute


def initialise(
    params: dict,
    extra: dict,
    pretrained: Callable | None = None,
    files: dict[str, str] | None = None,
    *,
    path: str = "",
    step: int | None = None,
    rename: tuple[tuple[str, str], ...] = (),
    skip: tuple[str, ...] = (),
):
    """What to begin with: parameters and statistics of another run's workdir or of weights that a
    task can read, or `params` and `extra` as they are.

    Args:
      params: nested dicts of arrays.
      extra: {collection: nested dicts of arrays}: batch norm's statistics, and the like. Their
        paths, below, are without the collection.
      pretrained: how the task reads another library's weights: path -> nested dicts of arrays, in
        this model's names.
      files: {name: contents} of what the task keeps in its workdir, such as its tokenizer; those of
        the other run must be the same.
      path: a workdir, or what `pretrained` reads; "" is none.
      step: which checkpoint of a workdir; None is the newest.
      rename: rows (regex, replacement) over this model's paths, first match counts: the name that
        it has there.
      skip: regexes of what keeps its fresh values in this model (a new head, say).

    Returns:
      (params, extra) with everything replaced that is not skipped. Statistics stay as they are
      where there are none.

    Raises:
      BadInput: if a row matches nothing, or a parameter is missing there or has another shape or
      dtype.
    """
    require(
        bool(path) or not (rename or skip or step is not None), "config.init: the path is not set"
    )
    if not path:
        return params, extra
    places = {f"params/{p}": p for p in tree.flatten(params)}
    places |= {f"{c}/{p}": p for c, inner in extra.items() for p in tree.flatten(inner)}
    leaves = tree.flatten({"params": params, **extra})
    flat = {p: leaves[place] for place, p in places.items()}
    tree.check_table("config.init.rename", rename, flat)
    tree.check_table("config.init.skip", tuple((r, 0) for r in skip), flat)
    names = {
        p: next((re.sub(f"^(?:{r})$", to, p) for r, to in rename if re.fullmatch(r, p)), p)
        for p in flat
        if not any(re.fullmatch(regex, p) for regex in skip)
    }
    if pretrained is None or (absolute(path) / "checkpoints").exists():
        for name, contents in (files or {}).items():
            kept = absolute(path) / name
            require(
                not kept.exists() or kept.read_text() == contents,
                f"config.init.path: {path} has another {name}, so its parameters mean something "
                "else; use the same one",
            )
        where, values = _parameters(path, step)
    else:
        require(step is None, f"config.init.step: {path} is no workdir, and has no steps")
        where, values = path, tree.flatten(pretrained(path))
    statistics = {p for place, p in places.items() if not place.startswith("params/")}
    if not any(names.get(p) in values for p in statistics):  # of parameters alone
        names = {p: n for p, n in names.items() if p not in statistics}
    saved, taken = structure(values), set(names.values())
    wanted = {n: structure({"x": flat[p]})["x"] for p, n in names.items()}
    found = {n: entry for n, entry in saved.items() if n in taken}
    require(found == wanted, f"config.init.path: {where}: {differences(found, wanted)}")
    flat |= {p: np.asarray(values[name]) for p, name in names.items()}
    found = tree.unflatten({place: flat[p] for place, p in places.items()})
    return found.pop("params"), found


def _parameters(path: str, step: int | None) -> tuple[str, dict[str, np.ndarray]]:
    """(what was read, {path: array}): parameters and statistics of a checkpoint in a workdir."""
    with contextlib.closing(Checkpoints(path)) as there:
        steps = there.steps()
        require(bool(steps), f"config.init.path: no checkpoint in {path}")
        step = steps[-1] if step is None else step
        require(
            step in steps,
            f"config.init.step: no checkpoint of step {step} in {path}; there are {steps}",
        )
        # Whole on every device: the run may have had others.
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=auto)
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        struct = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place)
        whole = {path: struct(s) for path, s in there.shapes(step).items()}
        with jax.set_mesh(mesh):
            values = tree.flatten(there.restore(tree.unflatten(whole), step)[0])
    cut = re.compile(r"params/|extra/[^/]+/")
    found = {p[m.end() :]: v for p, v in values.items() if (m := cut.match(p))}
    return f"{path}, step {step}", found
