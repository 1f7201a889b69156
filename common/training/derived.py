"""Runs that are made of another one's parameters, and not trained: ordinary workdirs, which end at
the step that the parameters come from. Low-rank updates are merged into theirs."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common import tree
from common.compress import distill, lora, quantize, shrink
from common.config import changed, in_full
from common.devices import mesh
from common.errors import require
from common.runs import files, workdir
from common.training import saved, train
from common.training.loop import eval_context, loop
from common.training.program import prepare, sections

# Sections that say how parameters came about: a derived run has their defaults.
TRAINED_BY = "optim", "init"


class _Origin(NamedTuple):
    """The run that another is made of.

    Attributes:
      config: of the model that its parameters are of: nested dicts.
      step: of its checkpoint.
      params, extra: as its evaluators see them, on the host.
      before: {NAME: {metric: value}} of the evaluators.
      sources: its data sets.
    """

    config: dict
    step: int
    params: dict
    extra: dict
    before: dict
    sources: dict


def shrink_run(folder, to, step: str = "latest", show: bool = True) -> dict:
    """Cuts zero heads and hidden units out of a run's parameters, as its evaluators see them.

    Args:
      folder: the workdir of the run, whose data have to be there.
      to: the workdir to make, which must not exist, or be empty.
      step: of the run: "latest", "best" (by config.checkpoint.best), or a step's number.
      show: whether to print progress to standard error.

    Returns:
      {"step", "cut": {"heads", "hidden"} of each block, "parameters": {"before", "after"},
      "before", "after": {NAME: {metric: value}} of the evaluators}.

    Raises:
      BadInput: if there is no such run or step, `to` is taken, or there is nothing to cut.
    """
    with _opened(folder, to, step) as origin:
        made = shrink.shrunk(origin.config["model"], origin.params)
        config = origin.config | {"model": made.fields}
        result = _ended(origin, config, to, made.params, show)
    counts = {"before": tree.count(origin.params), "after": tree.count(made.params)}
    results = {"before": origin.before, "after": result["eval"]}
    return {"step": origin.step, "cut": made.cut, "parameters": counts, **results}


def quantize_run(folder, to, step: str = "latest", show: bool = True, **keys) -> dict:
    """Quantizes the parameters of a run, as its evaluators see them.

    Args:
      folder, to, step, show: as of `shrink_run`.
      keys: those of the section `compress.quantize`.

    Returns:
      {"step", "bytes": {"before", "after"} of the parameters, "before", "after": {NAME: {metric:
      value}} of the evaluators}.

    Raises:
      BadInput: if there is no such run or step, `to` is taken, or the keys do not fit the model.
    """
    with _opened(folder, to, step) as origin:
        chosen = {"weights": "int8"} | keys | {"how": "after"}
        config = _with(origin.config, "quantize", chosen)
        scheme = quantize.of(config)
        quantize.say_differing(quantize.of(origin.config), scheme)
        params = jax.device_get(jax.jit(lambda x: quantize.stored(scheme, x))(origin.params))
        result = _ended(origin, config, to, params, show)
    count = lambda params: sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    sizes = {"before": count(origin.params), "after": count(params)}
    results = {"before": origin.before, "after": result["eval"]}
    return {"step": origin.step, "bytes": sizes, **results}


def _with(config: dict, name: str, keys: dict) -> dict:
    """The config with other keys in a section of `compress`."""
    return config | {"compress": config["compress"] | {name: keys}}


@contextlib.contextmanager
def _opened(folder, to, step: str) -> Iterator[_Origin]:
    """A run to make another one of at `to`, evaluated. Raises `BadInput` as `shrink_run` does."""
    config = saved.read_config(folder)
    require(not quantize.of(config).after, f"{folder}: its parameters are integers already")
    require(not workdir.begun(to), f"--to: {files.absolute(to)} holds a run; name a new folder")
    with saved.opened(config, folder, step) as (program, state, number):
        require(number > 0, f"--step: {number}: nothing is trained there")
        context = eval_context(program, state, number)
        values = lora.merged(context.params, config), context.extra
        whole = jax.tree.map(lambda _: mesh.replicated(program.layout), values)
        params, extra = jax.device_get(jax.jit(lambda x: x, out_shardings=whole)(values))
        params = distill.without_projections(params, config)
        before = {name: e.run(context) for name, e in program.task.evaluators.items()}
        yield _Origin(lora.without(config), number, params, extra, before, program.task.sources)


def _ended(origin: _Origin, config: dict, to, params, show: bool) -> dict:
    """Makes a run at `to` of parameters on the host, evaluates and ends it; returns its result."""
    config = {k: v for k, v in distill.untaught(config).items() if k not in TRAINED_BY}
    config = _with(config, "prune", {})  # what is zero stays, as nothing is trained
    config = in_full(config | {"optim": {"name": "sgd"}}, sections)
    length = {"train.duration": f"{origin.step} steps", "train.average": None}
    program = prepare(changed(config, **length), sources=origin.sources)
    host = tree.flatten({"params": params, "extra": origin.extra})

    def put(path, like):
        x = np.asarray(host[path])
        return jax.make_array_from_callback(like.shape, like.sharding, lambda i: x[i])

    like = {"params": program.like.params, "extra": program.like.extra}
    with jax.transfer_guard("allow"):
        placed = tree.map_paths(put, like)
    with jax.set_mesh(program.layout.mesh):
        first = program.adopt(program.hypers, placed["params"], placed["extra"])
        first = first._replace(step=jnp.uint32(origin.step))
        with (
            workdir.Lock(to) as lock,
            train.refusals(to),
            train.begun(program, to, lock, show, first=first) as (run, state),
        ):
            return train.finish(run, loop(run, state))
