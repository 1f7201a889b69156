"""Arrays that a loss reads and training does not change (`common.task.Frozen`): an entry of the
hypers, so that the compiled step takes them as an argument and no checkpoint holds them."""

import jax
import jax.numpy as jnp

from common import tree
from common.devices import agreement, ending, mesh
from common.task import Task

KEY = "frozen"  # of `Program.hypers`


def shapes(task: Task, layout: mesh.Layout) -> dict:
    """{KEY: ShapeDtypeStructs with shardings}, or {}."""
    return {} if task.frozen is None else {KEY: task.frozen.place(layout)}


def arrays(task: Task, layout: mesh.Layout) -> dict:
    """{KEY: the arrays on the devices}, or {}. Raises `BadInput`, in all processes, if they cannot
    be read."""
    if task.frozen is None:
        return {}
    with ending.busy(f"reading {task.frozen.name}"), agreement.together():
        return {KEY: task.frozen.read(layout)}


def of(hypers: dict) -> dict:
    """The entry of the hypers: {KEY: …}, or {}."""
    return {key: value for key, value in hypers.items() if key == KEY}


def numbers(hypers: dict) -> dict:
    """The other entries."""
    return {key: value for key, value in hypers.items() if key != KEY}


def abstract(hypers: dict) -> dict:
    """The entry of the hypers as ShapeDtypeStructs."""
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return jax.tree.map(shape, of(hypers))


def bound(task: Task, hypers: dict, layout: mesh.Layout) -> Task:
    """The task with a loss of four arguments, the fifth being the entry of the hypers; zeros where
    there is none, as the loss is only traced there."""
    if task.frozen is None:
        return task

    def loss(params, extra, batch, key):
        own = hypers.get(KEY)
        if own is None:
            zero = lambda s: jnp.zeros(s.shape, s.dtype)
            own = jax.tree.map(zero, task.frozen.place(layout))
        return task.loss(params, extra, batch, key, own)

    return task._replace(loss=loss)


def fingerprints(task: Task, hypers: dict) -> dict[str, str]:
    """{what a run reads: its digest}: the data sets and, if the hypers hold them, the arrays."""
    digests = {name: source.fingerprint for name, source in task.sources.items()}
    if KEY in hypers:
        digests[task.frozen.name] = tree.hexdigest(hypers[KEY])
    return digests
