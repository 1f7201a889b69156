"""Teachers: runs and weights whose outputs another run learns (`common.compress.distill`).

Their parameters are a task's `Frozen` arrays: on the devices by the rules of the student's mesh, in
no checkpoint of its, and recorded by their digest.
"""

import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from common.devices import mesh
from common.errors import require
from common.runs import files, workdir
from common.task import Frozen
from common.training import saved
from common.training.program import task_module

NAME = "the teacher"
WHERE = "config.loss.teacher"


def is_run(name: str) -> bool:
    """Whether a teacher is a run, and not published weights."""
    return workdir.begun(name) and "task" in workdir.read_config(name)


def of_run(name: str, task: str) -> tuple[dict, Any, Frozen]:
    """(its config, the facts of its data, its parameters) of a run of the same task; the
    parameters are those that its evaluators see, of its newest checkpoint.

    Raises:
      BadInput: if it is of another task, or keeps nothing of its data.
    """
    config = saved.read_config(name)
    theirs = config["task"]
    require(theirs == task, f"{WHERE}: {name} is a run of {theirs}, and this one is of {task}")
    folder = files.absolute(name)
    sources = task_module(task).kept(config, folder)
    kept = f"{WHERE}: {name} keeps nothing of its data, as runs of older versions do"
    require(sources is not None, f"{kept}: evaluate or predict with it once")

    def read(layout: mesh.Layout) -> dict:
        params, extra, _ = saved.evaluated(config, folder, "latest", sources, layout)
        return _put({"params": params, "extra": extra}, place(layout))

    def place(layout: mesh.Layout) -> dict:
        return saved.placed(config, sources, layout)

    return config, sources["train"].facts, Frozen(NAME, place, read)


def of_arrays(model: nn.Module, params: dict, extra: dict) -> Frozen:
    """The parameters of a model, and its statistics, that are on the host."""
    values = {"params": params, "extra": extra}

    def place(layout: mesh.Layout) -> dict:
        shardings = {
            "params": mesh.shardings(layout, model.PARTITION, params),
            "extra": jax.tree.map(lambda _: mesh.replicated(layout), extra),
        }
        shape = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)
        return jax.tree.map(shape, values, shardings)

    return Frozen(NAME, place, lambda layout: _put(values, place(layout)))


def _put(values: dict, like: dict) -> dict:
    """Arrays with the shardings of `like`."""

    def put(x, s):
        if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(s.sharding, x.ndim):
            return x
        host = np.asarray(x)
        return jax.make_array_from_callback(s.shape, s.sharding, lambda index: host[index])

    with jax.transfer_guard("allow"):
        return jax.tree.map(put, values, like)


def variables(frozen: dict) -> dict:
    """A teacher's arrays as `apply` of its model takes them."""
    return {"params": frozen["params"], **frozen["extra"]}


def once(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read` of published weights, which remembers the last: a task is made several times while a
    run starts. Files that have changed since are read again."""
    last: list = []

    def remembered(name: str) -> Any:
        seen = name, _stamp(name)
        if not last or last[0] != seen:
            last[:] = [seen, read(name)]
        return last[1]

    return remembered


def _stamp(name: str) -> list:
    paths = [name]
    if os.path.isdir(name):
        paths = sorted(os.path.join(name, entry) for entry in os.listdir(name))
    stats = [os.stat(path) for path in paths if os.path.exists(path)]
    return [(stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats]
