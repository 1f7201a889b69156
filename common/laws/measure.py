"""Helpers of the checks: losses of real programs on given meshes, and the ways a check fails."""

import ast
import dis
import functools
import inspect
import itertools
import math
import pathlib
import textwrap
import types
import typing
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np

from common.config import changed, flatten
from common.data import loading, order
from common.devices import mesh
from common.sections import parameters
from common.task import purpose_key
from common.training import interval, program
from common.training.program import Program, initial_state, prepare


class Broken(AssertionError):
    """A law that does not hold, with the finding."""


class DoesNotApply(Exception):
    """A law that has nothing to check in this task, with the reason."""


def hold(condition: bool, found: str) -> None:
    """Raises `Broken(found)` unless `condition` is true."""
    if not condition:
        raise Broken(found)


def without_dropout(config) -> dict:
    """The config with every dropout rate unset, or 0 where it cannot be unset."""
    sections, off = program.sections(config), {}
    for key, value in flatten(config).items():
        where, _, name = key.rpartition(".")
        if name.endswith("dropout") and isinstance(value, float):
            kinds = typing.get_args(parameters(sections[where])[name].annotation)
            off[key] = None if type(None) in kinds else 0.0
    return changed(config, **off)


def on_mesh(config, shape: tuple[int, int, int]) -> Program:
    """The program on a mesh of (data, fsdp, tensor) devices."""
    sizes = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), shape, strict=True))
    return prepare(changed(config, **sizes), jax.devices()[: math.prod(shape)])


def train_losses(made: Program, steps: int, state=None) -> tuple[list[float], object]:
    """The objective at each of `steps` steps from `state` (or the start), and the final
    state."""
    precise = jax.default_matmul_precision("highest")
    with jax.set_mesh(made.layout.mesh), precise:
        state = initial_state(made) if state is None else state
        source, seed, first = made.task.sources["train"], made.config["seed"], int(state.step)
        batches = itertools.repeat({})
        if not made.resident:
            size = made.plan.batch_size
            batches = loading.train_batches(
                source, seed, range(first, first + steps), size, made.layout
            )
        losses, several = [], made.plan.steps_per_call > 1
        one, sums = mesh.put_replicated(made.layout, (np.int32(1), interval.zeros(made.terms)))
        for _ in range(steps):
            inputs = one if several else next(batches)
            state, sums, terms, _ = made.update(made.hypers, state, sums, inputs, made.resident)
            losses.append(float(terms["loss"][0]))
    return losses, state


def draws(made: Program) -> bool:
    """Whether the loss is random: whether its terms change with the key."""
    task, size = made.task, made.plan.batch_size
    batch = made.task.sources["train"].read(order.rows(0, 0, size, task.sources["train"].order))
    batch |= {"index": order.stream_index(0, size), "valid": np.ones(size, np.float32)}

    @jax.jit
    def terms(key):
        made_batch = task.prepare(purpose_key(0, "prepare"), batch, True)
        return task.loss(state.params, state.extra, made_batch, key)[0]

    with jax.set_mesh(made.layout.mesh):
        state = initial_state(made)
        pair = jax.device_get([terms(purpose_key(0, purpose)) for purpose in ("loss", "laws")])
    flat = list(map(jax.tree.leaves, pair))
    return any(np.any(a != b) for a, b in zip(*flat, strict=True))


def near(a, b) -> float:
    """The largest relative difference between two sequences of numbers."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-12)))


def flip(path: pathlib.Path, position: int) -> None:
    """Flips all bits of one byte of a file."""
    raw = bytearray(path.read_bytes())
    raw[position] ^= 0xFF
    path.write_bytes(raw)


def difference_of(value, other) -> float:
    """The difference of two metrics, relative, or absolute near zero; of texts, 0 or
    infinity."""
    if isinstance(value, str):
        return 0.0 if value == other else math.inf
    value, other = np.asarray(value, np.float64), np.asarray(other, np.float64)
    apart = np.where(value == other, 0.0, np.abs(value - other) / (np.abs(other) + 0.1))
    return float(np.max(apart, initial=0.0))


def read_by_program(where: str) -> tuple[str, ...]:
    """Keys of a task's section that the program reads itself (`common.task`), so that the section's
    function need not."""
    if where.startswith("evals."):
        return ("split",)
    return ("train", "workers") if where == "data" else ()


def names_read(function: Callable) -> set[str]:
    """The names that a function's body reads, or the attributes that a module's methods
    use."""
    if inspect.isclass(function) and issubclass(function, nn.Module):
        classes = [cls for cls in function.__mro__ if issubclass(cls, nn.Module)]
        bodies = [ast.parse(textwrap.dedent(inspect.getsource(cls))) for cls in classes[:-1]]
        nodes = itertools.chain.from_iterable(map(ast.walk, bodies))
        return {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    while isinstance(function, functools.partial):
        function = function.func
    return _loaded(inspect.unwrap(function).__code__)


def _loaded(code: types.CodeType) -> set[str]:
    """The names that a function's code, and the functions in it, read or delete."""
    names = set()
    for step in dis.get_instructions(code):
        if step.opname.startswith(("LOAD_", "STORE_FAST_LOAD", "DELETE_")):
            names |= set(step.argval if isinstance(step.argval, tuple) else (step.argval,))
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return names.union(*map(_loaded, inner))
