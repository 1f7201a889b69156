"""Runs that are made of another one's parameters, and not trained: ordinary workdirs, which end at
the step that the parameters come from."""

import jax
import jax.numpy as jnp
import numpy as np

from common import tree
from common.compress import distill, shrink
from common.config import changed, in_full
from common.devices import mesh
from common.errors import require
from common.runs import files, workdir
from common.training import saved, train
from common.training.loop import eval_context, loop
from common.training.program import prepare, sections

# Sections that say how parameters came about: a derived run has their defaults.
TRAINED_BY = "optim", "init"


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
    config = saved.read_config(folder)
    require(not workdir.begun(to), f"--to: {files.absolute(to)} holds a run; name a new folder")
    with saved.opened(config, folder, step) as (program, state, number):
        context = eval_context(program, state, number)
        params = jax.device_get(_replicated(program, context.params))
        made = shrink.shrunk(config["model"], params)
        before = {name: e.run(context) for name, e in program.task.evaluators.items()}
        result = ended(
            config | {"model": made.fields},
            to,
            number,
            made.params,
            jax.device_get(_replicated(program, context.extra)),
            program.task.sources,
            show,
        )
    counts = {"before": tree.count(params), "after": tree.count(made.params)}
    results = {"before": before, "after": result["eval"]}
    return {"step": number, "cut": made.cut, "parameters": counts, **results}


def ended(config: dict, to, step: int, params, extra, sources: dict, show: bool = True) -> dict:
    """Makes a run of given parameters, evaluates it and ends it at `step`; returns its result.

    Args:
      config: that of the run that they come from, with another model: nested dicts.
      to: the workdir to make.
      step: the number of its checkpoint.
      params, extra: on the host; parameters that the model lacks are left out.
      sources: the data sets.
      show: whether to print progress to standard error.
    """
    require(step > 0, f"--step: {step}: nothing is trained there")
    config = {k: v for k, v in distill.untaught(config).items() if k not in TRAINED_BY}
    compress = config["compress"] | {"prune": {}}  # what is zero stays, as nothing is trained
    config = in_full(config | {"optim": {"name": "sgd"}, "compress": compress}, sections)
    config = changed(config, **{"train.duration": f"{step} steps", "train.average": None})
    program = prepare(config, sources=sources)
    host = tree.flatten({"params": params, "extra": extra})

    def put(path, like):
        x = np.asarray(host[path])
        return jax.make_array_from_callback(like.shape, like.sharding, lambda i: x[i])

    like = {"params": program.like.params, "extra": program.like.extra}
    with jax.transfer_guard("allow"):
        placed = tree.map_paths(put, like)
    with jax.set_mesh(program.layout.mesh):
        first = program.adopt(program.hypers, placed["params"], placed["extra"])
        first = first._replace(step=jnp.uint32(step))
        with (
            workdir.Lock(to) as lock,
            train.refusals(to),
            train.begun(program, to, lock, show, first=first) as (run, state),
        ):
            return train.finish(run, loop(run, state))


def _replicated(program, values):
    """Arrays that every device holds in full."""
    whole = jax.tree.map(lambda _: mesh.replicated(program.layout), values)
    return jax.jit(lambda x: x, out_shardings=whole)(values)
