"""Initial parameters: those of another run, or pretrained weights that the task can read; and those
that a run with `compress.lora` leaves as they are, which are read from there whenever it starts."""

import contextlib
import logging
import re
from collections.abc import Callable

import jax
import numpy as np

from common import inputs, tree
from common.compress import lora
from common.errors import BadInput, brief, require
from common.runs import workdir
from common.runs.checkpoint import Checkpoints
from common.runs.files import absolute
from common.runs.record import differences, structure
from common.sections import call
from common.task import Task
from common.weights.family import FREE, require_same


def initialise(
    params: dict,
    extra: dict,
    pretrained: Callable | None = None,
    files: dict[str, str] | None = None,
    model: dict | None = None,
    task_of: Callable | None = None,
    *,
    path: str = "",
    step: int | None = None,
    rename: tuple[tuple[str, str], ...] = (),
    skip: tuple[str, ...] = (),
    adopt: bool = False,
    allow: tuple[str, ...] = (),
):
    """Initial parameters: from another run's workdir, from weights that the task can read, or
    fresh.

    Args:
      params: nested dicts of arrays.
      extra: {collection: nested dicts of arrays}: batch norm's statistics, and the like. Their
        paths, below, omit the collection.
      pretrained: how the task reads another library's weights: path -> nested dicts of arrays, in
        this model's names.
      files: {name: contents} of files the task keeps in its workdir, such as its tokenizer; the
        other run's must be identical.
      model: the section `model`, with which that of the other run is compared.
      task_of: workdir -> (config, Task) of the run there, of whose parameters checkpoints hold
        only some; see `read_unsaved`.
      path: another run's workdir, or pretrained weights that the task can read; "" is none, and
        parameters begin fresh.
      step: the checkpoint to take from a workdir; None is the newest.
      rename: rows (regex, replacement): a parameter path of this model -> its name in `path`; the
        first match counts.
      skip: regexes of parameters that keep their fresh values, such as a new head.
      adopt: take the fields of the model from `path`; `adopted` has done it.
      allow: fields of the model that may differ from those of `path`, such as "theta".

    Returns:
      (params, extra) with everything replaced that is not skipped. Statistics are unchanged if
      `path` has none.

    Raises:
      BadInput: if a row matches nothing, or `path` lacks a parameter or has it with another shape
        or dtype, or its model computes something else from the same parameters.
    """
    del adopt
    require(
        bool(path) or not (rename or skip or allow or step is not None),
        "config.init: the path is not set",
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
        p: next((_renamed(r, to, p) for r, to in rename if re.fullmatch(r, p)), p)
        for p in flat
        if not any(re.fullmatch(regex, p) for regex in skip) and not lora.is_factor(p)
    }
    inputs.path("config.init.path", path)  # may be read here
    if pretrained is None or (absolute(path) / "checkpoints").exists():
        where = "config.init.path"
        for name, contents in (files or {}).items():
            kept = absolute(path) / name
            require(
                not kept.exists() or inputs.contents(where, kept) == contents.encode(),
                f"{where}: {path} has another {name}, so its parameters mean something "
                "else; use the same one",
            )
        if model:
            theirs = workdir.read_config(path).get("model", {})
            require_same(f"config.init.path: {path}", theirs, model, allow)
        where, values = _parameters(path, step)
        if any(map(lora.is_factor, values)):
            values = _merged(path, values, task_of)
    else:
        require(step is None, f"config.init.step: {path} is not a workdir and has no steps")
        where, values = path, tree.flatten(pretrained(path))
    statistics = {p for place, p in places.items() if not place.startswith("params/")}
    if not any(names.get(p) in values for p in statistics):  # only parameters
        names = {p: n for p, n in names.items() if p not in statistics}
    saved, taken = structure(values), set(names.values())
    wanted = {n: structure({"x": flat[p]})["x"] for p, n in names.items()}
    used = {n: entry for n, entry in saved.items() if n in taken}
    require(used == wanted, f"config.init.path: {where}: {differences(used, wanted)}")
    flat |= {p: np.asarray(values[name]) for p, name in names.items()}
    collections = tree.unflatten({place: flat[p] for place, p in places.items()})
    return collections.pop("params"), collections


def adopted(config: dict, weights_settings: Callable | None) -> dict:
    """The config with what its `init.path` says of its model, if `init.adopt` asks for that. The
    result asks no more: it says all by itself.

    Args:
      config: nested dicts.
      weights_settings: of the task (`common.task`), for weights of other libraries.

    Raises:
      BadInput: if there is nothing to adopt.
    """
    init = config.get("init", {})
    if not init.get("adopt"):
        return config
    require(bool(init["path"]), "config.init.adopt: there is nothing to adopt without a path")
    if (absolute(inputs.path("config.init.path", init["path"])) / "checkpoints").exists():
        theirs = {"model": workdir.read_config(init["path"]).get("model", {})}
    else:
        known = weights_settings is not None
        require(known, f"config.init.adopt: {config['task']} cannot tell what weights are of")
        theirs = weights_settings(config)
    adopting, changed = dict(config), []
    for section, values in theirs.items():
        ours = config[section]
        taken = {k: v for k, v in values.items() if k in ours and not FREE.fullmatch(k)}
        changed += [f"{section}.{k}={brief(v)}" for k, v in taken.items() if v != ours[k]]
        adopting[section] = ours | taken
    if changed:
        logging.warning("config.init.adopt: %s: %s", init["path"], ", ".join(sorted(changed)))
    return adopting | {"init": init | {"adopt": False}}


def read_unsaved(config: dict, task: Task, task_of: Callable) -> dict[str, np.ndarray]:
    """{path: array}: the parameters that checkpoints of a run leave out (`lora.left_out`), read
    from its `init.path`.

    Args:
      config, task: of the run.
      task_of: workdir -> (config, Task) of the run there.

    Raises:
      BadInput: if they cannot be read.
    """
    zeros = lambda leaf: np.zeros(leaf.shape, leaf.dtype)
    fresh = jax.tree.map(zeros, jax.eval_shape(task.init, jax.random.key(0)))
    arguments = *fresh, task.pretrained, task.files, config.get("model", {}), task_of
    params, _ = call(initialise, config["init"], *arguments)
    trained = lora.trained(config)
    return {path: x for path, x in tree.flatten(params).items() if not trained(path)}


def check_unsaved(folder, config: dict, arrays: dict) -> None:
    """Raises `BadInput` if the run in `folder` began with others of these."""
    before = workdir.last_start(folder).get("base")
    require(
        before is None or before == tree.hexdigest(arrays),
        f"config.init.path: the parameters in {config['init']['path']} have changed since the run "
        f"in {folder} began, whose checkpoints hold only what it trains; restore them, or begin "
        "another run in another --workdir",
    )


def _merged(path: str, values: dict, task_of: Callable) -> dict[str, np.ndarray]:
    """{path: array} of a run with `compress.lora`, from what its checkpoint holds."""
    config, task = task_of(path)
    if lora.left_out(config):
        others = read_unsaved(config, task, task_of)
        check_unsaved(path, config, others)
        values = others | values
    return tree.flatten(jax.device_get(lora.merged(tree.unflatten(values), config)))


def _renamed(regex: str, to: str, path: str) -> str:
    try:
        return re.sub(f"^(?:{regex})$", to, path)
    except (re.error, IndexError) as error:
        raise BadInput(f"config.init.rename: {to!r} is not a replacement: {error}") from error


def _parameters(path: str, step: int | None) -> tuple[str, dict[str, np.ndarray]]:
    """(checkpoint read, {path: array}): its parameters and statistics, from a workdir."""
    with contextlib.closing(Checkpoints(path)) as checkpoints:
        steps = checkpoints.steps()
        require(bool(steps), f"config.init.path: no checkpoint in {path}")
        step = steps[-1] if step is None else step
        require(
            step in steps,
            f"config.init.step: no checkpoint of step {step} in {path}; there are {steps}",
        )
        # Replicated: the run may have used other devices.
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=auto)
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        struct = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place)
        structs = {path: struct(s) for path, s in checkpoints.shapes(step).items()}
        with jax.set_mesh(mesh):
            values = tree.flatten(checkpoints.restore(tree.unflatten(structs), step)[0])
    cut = re.compile(r"params/|extra/[^/]+/")
    arrays = {p[m.end() :]: v for p, v in values.items() if (m := cut.match(p))}
    return f"{path}, step {step}", arrays
