"""The laws that every task obeys, as functions that check one task: ours and anybody's.

    python -m common.laws my.task
    python -m common.laws my_task.py --config.data.size=100
    python -m common.laws --config configs/vision/digits.py:mlp

A task alone, by its import path or its file, is run with what its functions default to. Keys are
overridden as --config.KEY=VALUE. Where there is only a CPU, it simulates eight devices (or
JAX_NUM_CPU_DEVICES of them). The exit code is 1 if a law is broken.

Each law takes a completed config, runs the real program on it for a few steps, and returns a line
that says what was checked; a law that does not hold raises `Broken` with what was found, one that
has nothing to check `DoesNotApply` with the reason.

1. The position is the step: batches are a pure function of (config, seed, step).
2. Resume is exact. 3. The mesh, and accumulation, do not change the maths. 4. Means are exact.
5. No dead knob. 6. Plain parameters. 8. Nothing is lost quietly.
(7, that a model is a plain linen module, is for the tests of the model.)
"""

import ast
import contextlib
import inspect
import itertools
import logging
import math
import os
import pathlib
import sys
import sysconfig
import tempfile
import textwrap
import time
import traceback
import typing
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from common import cli, tree
from common.config import Selected, changed, flatten, overridden, parameters, plain
from common.data import loading, order
from common.devices import mesh, runtime
from common.errors import BadInput, require
from common.runs import checkpoint, log
from common.runs.progress import Progress
from common.task import purpose_key
from common.training import optim, program
from common.training.loop import Run, eval_context, loop
from common.training.program import Program, initial_state, prepare


class Broken(AssertionError):
    """A law that does not hold, and what was found."""


class DoesNotApply(Exception):
    """A law that has nothing to check in this task, and why."""


def hold(condition: bool, found: str) -> None:
    """Raises `Broken(found)` unless `condition` is true."""
    if not condition:
        raise Broken(found)


def without_dropout(config) -> dict:
    """The config with every rate of dropout unset, or 0 where it cannot be unset."""
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
    """The objective at each of `steps` steps from `state` (or the start), and the state behind
    them."""
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
        found, update, one = [], made.step, None
        if made.steps is not None:
            update, one = made.steps, mesh.put_replicated(made.layout, np.int32(1))
        for _ in range(steps):
            given = next(batches) if one is None else one
            state, terms, _ = update(made.hypers, state, given, made.resident)
            found.append(float(terms["loss"][0]))
    return found, state


def near(a, b) -> float:
    """The largest relative difference between two sequences of numbers."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-12)))


# ----------------------------------------------------------------------------------------- the laws


def position_is_step(config, workers: tuple[int, ...] = (0,)) -> str:
    """1: host, device, threads and worker processes make the same batches; an epoch is a
    permutation."""
    made = prepare(config, jax.devices()[:1])
    source, seed, size = made.task.sources["train"], made.config["seed"], made.plan.batch_size
    epoch = math.ceil(source.size / size)
    rows = np.concatenate([order.rows(seed, s, size, source.size) for s in range(epoch)])
    first = np.sort(rows[: source.size])
    hold(np.array_equal(first, np.arange(source.size)), "an epoch does not visit every row once")
    on_device = jax.jit(lambda s: order.rows(jnp.uint32(seed), s, size, source.size, jnp))
    steps = (0, 1, epoch - 1, epoch, 12_345_678)
    for s in steps:
        same = np.array_equal(order.rows(seed, s, size, source.size), on_device(jnp.uint32(s)))
        hold(same, f"step {s}: host and device differ in the order of rows")

    def prepared(batch, step):
        key = purpose_key(np.uint32(seed), "prepare", np.uint32(step))
        return jax.device_get(jax.jit(made.task.prepare, static_argnums=2)(key, batch, True))

    start, stop = 3, 7
    expected = [
        prepared(
            source.read(order.rows(seed, s, size, source.size))
            | {"index": order.stream_index(s, size), "valid": np.ones(size, np.float32)},
            s,
        )
        for s in range(start, stop)
    ]
    for count in workers:
        found = loading.train_batches(
            source, seed, range(start, stop), size, made.layout, workers=count
        )
        for s, (batch, want) in enumerate(zip(found, expected, strict=True), start):
            for name, value in prepared(batch, s).items():
                same = np.array_equal(value, want[name])
                hold(same, f"step {s}, {count} workers: {name} is another")
    if source.resident is not None:
        whole = jax.tree.map(jnp.asarray, source.resident)
        gather = jax.jit(lambda s, whole: loading.gather(seed, s, size, source.size, whole))
        for s, want in enumerate(expected, start):
            for name, value in prepared(gather(np.uint32(s), whole), s).items():
                hold(
                    np.array_equal(value, want[name]), f"step {s}, on the device: {name} is another"
                )
    return f"{len(steps)} steps, workers {workers}: the same rows and batches on host and device"


def resume_is_exact(config, steps: int = 4, devices=None) -> str:
    """2: 2n steps equal n steps, a checkpoint, a fresh program, and n steps; states bit for bit."""
    made = prepare(config, devices)
    straight, state = train_losses(made, 2 * steps)
    wanted = tree.hexdigest(state)
    first, state = train_losses(made, steps)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = checkpoint.Checkpoints(folder, made.saving)
        checkpoints.save(steps, state)
        checkpoints.close()
        made = prepare(config, devices)
        checkpoints = checkpoint.Checkpoints(folder, made.saving)
        state, at = checkpoints.restore(made.like)
        checkpoints.close()
    hold(at == steps, f"restored step {at}, saved step {steps}")
    second, state = train_losses(made, steps, state)
    hold(first + second == straight, f"losses {first + second} are not {straight}")
    hold(tree.hexdigest(state) == wanted, "the losses agree, the states do not")
    return f"{steps} + {steps} steps through a checkpoint equal {2 * steps}, bit for bit"


def mesh_changes_nothing(
    config,
    shapes: list[tuple[int, int, int]],
    steps: int = 10,
    tolerance: float = 1e-5,
    alone: list[float] | None = None,
) -> str:
    """3: the losses on each mesh (data, fsdp, tensor) are those of one device, or those given."""
    if not any(math.prod(shape) > 1 for shape in shapes):
        raise DoesNotApply("there is one device, and so one mesh")
    if alone is None:
        alone, _ = train_losses(on_mesh(config, (1, 1, 1)), steps)
    worst = 0.0
    for shape in shapes:
        found, _ = train_losses(on_mesh(config, shape), steps)
        difference = near(alone, found)
        worst = max(worst, difference)
        hold(difference <= tolerance, f"mesh {shape}: losses differ by {difference:.1e} relative")
    return f"{steps} steps on {len(shapes)} meshes: losses agree to {worst:.1e} relative"


def checkpoint_fits_any_mesh(
    config, shapes: list[tuple[int, int, int]], steps: int = 2, tolerance: float = 1e-5
) -> str:
    """3: a checkpoint of each mesh restores on every other, bit for bit, and the run goes on."""
    if len(shapes) < 2:
        raise DoesNotApply("there is one device, and so one mesh")
    made = {shape: on_mesh(config, shape) for shape in shapes}
    first, last = shapes[0], shapes[-1]
    straight, _ = train_losses(made[first], 2 * steps)
    _, state = train_losses(made[first], steps)
    wanted = tree.hexdigest(state)

    def restored(folder, shape):
        like = made[shape].like
        with contextlib.closing(checkpoint.Checkpoints(folder)) as checkpoints:
            state, _ = checkpoints.restore(like)
        placed = jax.tree.map(
            lambda x, s: x.sharding.is_equivalent_to(s.sharding, x.ndim), state, like
        )
        hold(all(jax.tree.leaves(placed)), f"on mesh {shape}, it is not where it belongs")
        hold(tree.hexdigest(state) == wanted, f"restored on mesh {shape}, it is another state")
        return state

    with tempfile.TemporaryDirectory() as parent:
        folders = {shape: pathlib.Path(parent, "x".join(map(str, shape))) for shape in shapes}
        for shape, folder in folders.items():
            here = state if shape == first else restored(folders[first], shape)
            with contextlib.closing(checkpoint.Checkpoints(folder, made[shape].saving)) as to:
                to.save(steps, here)
        for shape, other in itertools.permutations(shapes, 2):
            moved = restored(folders[shape], other)
            if (shape, other) == (first, last):
                found, _ = train_losses(made[last], steps, moved)
    difference = near(straight[steps:], found)
    moved = f"the run that moves from mesh {first} to {last}"
    hold(difference <= tolerance, f"{moved}: losses differ by {difference:.1e} relative")
    pairs = len(shapes) * (len(shapes) - 1)
    return f"{pairs} pairs, bit for bit; {moved}: losses agree to {difference:.1e} relative"


def accumulation_changes_nothing(
    config, parts: int = 4, steps: int = 10, tolerance: float = 1e-5
) -> str:
    """3: a batch computed in parts gives the same losses; refused where rows are not
    independent."""
    devices = jax.devices()[:1]
    # Another part, another mask: equality is promised without dropout.
    config = without_dropout(config)
    made = prepare(config, devices)
    split = changed(config, **{"train.accumulate": parts})
    if made.task.gradients is not None:
        raise DoesNotApply("the task computes its own gradients: there is nothing to accumulate")
    if not made.task.rows_independent:
        try:
            prepare(split, devices)
        except BadInput:
            return "rows are not independent, and accumulation is refused"
        raise Broken("rows are not independent, and accumulation is not refused")
    whole, _ = train_losses(made, steps)
    found, _ = train_losses(prepare(split, devices), steps)
    difference = near(whole, found)
    hold(difference <= tolerance, f"{parts} parts: losses differ by {difference:.1e} relative")
    return f"{parts} parts a batch, {steps} steps: losses agree to {difference:.1e} relative"


def rows_are_independent(config, rows: int = 8, tolerance: float = 1e-5) -> str:
    """3: a batch's terms are the sum of its rows' terms, whatever stands beside a row, unless the
    task says that its loss mixes rows."""
    made = prepare(without_dropout(config), jax.devices()[:1])
    task, seed = made.task, made.config["seed"]
    if not task.rows_independent:
        raise DoesNotApply("the task says that its loss mixes rows (rows_independent=False)")
    source = task.sources["train"]
    batch = source.read(order.rows(seed, 0, rows, source.size))
    batch |= {"index": order.stream_index(0, rows), "valid": np.ones(rows, np.float32)}
    with jax.set_mesh(made.layout.mesh), jax.default_matmul_precision("highest"):
        state = initial_state(made)
        batch = jax.device_get(task.prepare(purpose_key(seed, "prepare"), batch, True))
        key = purpose_key(seed, "loss")
        compiled = jax.jit(lambda batch: task.loss(state.params, state.extra, batch, key)[0])

        def terms(*at, **replaced) -> dict:
            """{"the sum of NAME", "the weight of NAME": float64} of these rows of the batch."""
            part = {name: value[np.array(at)] for name, value in batch.items()} | replaced
            found = {}
            for name, pair in jax.device_get(compiled(part)).items():
                found[f"the sum of {name!r}"] = np.asarray(pair[0], np.float64)
                found[f"the weight of {name!r}"] = np.asarray(pair[1], np.float64)
            return found

        parts = terms(0), terms(1, 2), terms(*range(3, rows))
        together = {name: sum(part[name] for part in parts) for name in parts[0]}
        whole = terms(*range(rows))
        beside = terms(*range(rows), valid=np.eye(rows, dtype=np.float32)[0])
    parts_are = f"over {rows} rows, and over 1, 2 and {rows - 3} of them together"
    padding_is = f"of a row alone, and beside {rows - 1} rows whose `valid` is 0"
    comparisons = [
        (parts_are, whole, together),
        (padding_is, parts[0], beside),
    ]
    worst = 0.0
    for what, wanted, found in comparisons:
        for name, value in wanted.items():
            size = max(np.max(np.abs(whole[name])), np.max(np.abs(value)), 1e-6)
            difference = float(np.max(np.abs(value - found[name])) / size)
            told = f"{np.sum(value):.6g} and {np.sum(found[name]):.6g}"
            hold(difference <= tolerance, f"{name} {what}: {told}")
            worst = max(worst, difference)
    return f"{rows} rows in parts, and one beside padding: terms agree to {worst:.1e} relative"


def means_are_exact(config) -> str:
    """4: evaluation weighs every row once at any batch size; no weight reads a parameter."""
    made = prepare(config, jax.devices()[:1])
    task = made.task
    with jax.set_mesh(made.layout.mesh):
        state = initial_state(made)
        for name, source in task.sources.items():
            for size in (7, 64):
                batches = [
                    jax.device_get(b) for b in loading.eval_batches(source, size, made.layout)
                ]
                rows = np.concatenate([b["index"][b["valid"] > 0] for b in batches])
                whole = np.array_equal(rows, np.arange(source.size))
                hold(whole, f"{name}, {size} rows at a time: not every row once")
        sized = [n for n in task.evaluators if "batch_size" in config["evals"].get(n, {})]
        worst = 0.0
        for name in sized:
            found = []
            for size in (16, 100):
                made_so = prepare(
                    changed(config, **{f"evals.{name}.batch_size": size}), jax.devices()[:1]
                )
                context = eval_context(made_so, state, 0)
                found.append(made_so.task.evaluators[name].run(context))
            for key, value in found[0].items():
                other = found[1][key]
                difference = _difference(value, other)
                same = difference <= 1e-5
                hold(same, f"{name}/{key}: {value} 16 rows at a time, {other} 100 at a time")
                worst = max(worst, difference)

        def weights(params):
            batch = next(loading.eval_batches(task.sources["train"], 16, made.layout))
            batch = task.prepare(purpose_key(0, "prepare"), batch, True)
            terms, _ = task.loss(params, state.extra, batch, purpose_key(0, "loss"))
            return {name: float(w) for name, (_, w) in terms.items()}

        nothing = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), state.params)
        one, other = weights(state.params), weights(nothing)
    reads = [name for name in one if one[name] != other[name]]
    hold(not reads, f"the weights of {reads} depend on the parameters")
    return (
        f"{len(task.sources)} sets whole at any batch size, metrics to {worst:.1e}; no weight of "
        f"{', '.join(one)} reads a parameter"
    )


def _difference(value, other) -> float:
    """How far two metrics are apart, relative and near zero absolute; texts are equal or are
    not."""
    if isinstance(value, str):
        return 0.0 if value == other else math.inf
    value, other = np.asarray(value, np.float64), np.asarray(other, np.float64)
    apart = np.where(value == other, 0.0, np.abs(value - other) / (np.abs(other) + 0.1))
    return float(np.max(apart, initial=0.0))


def no_dead_knob(config) -> str:
    """5: every key of every section is read by its function, and a key that it lacks is refused."""
    sections = program.sections(config)
    count = 0
    for where, function in sections.items():
        known, selector = set(parameters(function)), set()
        if isinstance(function, Selected):
            selector, function = {function.selector}, function.function
        unread = known - selector - _names_read(function)
        hold(not unread, f"config.{where}: nothing reads {', '.join(sorted(unread))}")
        count += len(known)
        values = {k: v for k, v in flatten(config).items() if k.startswith(f"{where}.")}
        missing = [k for k in known if not any(v.startswith(f"{where}.{k}") for v in values)]
        hold(not missing, f"config.{where} does not hold {missing}")
    return f"{count} keys in {len(sections)} sections, each read by its function"


def _names_read(function: Callable) -> set[str]:
    """The names that a function's body loads, or the fields of `self` that a module's methods
    load."""
    if inspect.isclass(function) and issubclass(function, nn.Module):
        classes = [cls for cls in function.__mro__ if issubclass(cls, nn.Module)]
        bodies = [ast.parse(textwrap.dedent(inspect.getsource(cls))) for cls in classes[:-1]]
        nodes = itertools.chain.from_iterable(map(ast.walk, bodies))
        return {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    body = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return {
        node.id
        for node in ast.walk(body)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load | ast.Del)
    }


def parameters_are_plain(config) -> str:
    """6: nested dicts of arrays; the partition table covers every matrix and no row is idle."""
    made = prepare(config, jax.devices()[:1])
    params = made.like.params

    def walk(node, path):
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{path}/{key}")
        else:
            hold(isinstance(node, jax.ShapeDtypeStruct), f"{path} is a {type(node).__name__}")
            hold(len(node.shape) != 3, f"{path} has three dimensions, {node.shape}; use matrices")

    walk(params, "")
    mesh.shardings(made.layout, made.task.partition, params)
    optim.check_tables(made.config["optim"], params)
    return f"{len(tree.flatten(params))} arrays, {tree.count(params):,} numbers, all in the tables"


def damage_is_found(config) -> str:
    """8: a flipped byte in a checkpoint's data is found, and the step before it is used."""
    made = prepare(config, jax.devices()[:1])
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = checkpoint.Checkpoints(folder, made.saving)
        _, state = train_losses(made, 1)
        checkpoints.save(1, state)
        checkpoints.wait()
        wanted = tree.hexdigest(state)
        _, state = train_losses(made, 1, state)
        checkpoints.save(2, state)
        checkpoints.close()
        files = pathlib.Path(folder, "checkpoints", "2", "state").rglob("d/*")
        largest = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
        flip(largest, largest.stat().st_size // 2)
        checkpoints = checkpoint.Checkpoints(folder, made.saving)
        state, step = checkpoints.restore(made.like)
        checkpoints.close()
    hold(step == 1 and tree.hexdigest(state) == wanted, f"restored step {step}")
    return "a flipped byte in step 2 was found, and step 1 used"


def flip(path: pathlib.Path, position: int) -> None:
    """Flips all bits of one byte of a file."""
    raw = bytearray(path.read_bytes())
    raw[position] ^= 0xFF
    path.write_bytes(raw)


def loop_ends_where_steps_do(config, steps: int = 6) -> str:
    """2: the program's loop, with its log and evaluations, computes what the bare step does."""
    made = prepare(changed(config, **{"train.duration": f"{steps} steps"}), jax.devices()[:1])
    _, state = train_losses(made, steps)
    precise = jax.default_matmul_precision("highest")
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(made.layout.mesh), precise:
        metrics = log.Log(
            folder, 0, writing=True, name="laws", config={}, tensorboard=False, wandb=""
        )
        progress = Progress(steps, made.plan.batch_size, 0, 0.0, show=False)
        looped = loop(Run(made, metrics, progress), initial_state(made))
        metrics.close()
        evaluated = {k for line in metrics.history for k in line if k.startswith("eval/")}
    hold(tree.hexdigest(looped) == tree.hexdigest(state), "the loop ends in another state")
    for name in made.task.evaluators:
        hold(any(k.startswith(f"eval/{name}/") for k in evaluated), f"{name} was not evaluated")
    return f"{steps} steps of the loop end where {steps} bare steps do"


# ------------------------------------------------------------------------------------- the report


class Law(NamedTuple):
    """A law, and what to look at where it is broken."""

    check: Callable
    look: str


LAWS: dict[str, Law] = {
    "1 position is step": Law(
        position_is_step,
        "`sources` and `prepare`: what they give may depend on the rows, the key and nothing else",
    ),
    "2 resume is exact": Law(
        resume_is_exact, "`init`, `prepare` and `loss`: what is not in the state is lost"
    ),
    "2 loop is the step": Law(
        loop_ends_where_steps_do, "the evaluators: they may change nothing that training uses"
    ),
    "3 mesh": Law(
        lambda config: mesh_changes_nothing(config, meshes(jax.device_count())),
        "`loss` and the model: sums over all rows, `constrain` at block boundaries, and no number "
        "of devices",
    ),
    "3 checkpoint fits": Law(
        lambda config: checkpoint_fits_any_mesh(config, corners(jax.device_count())),
        "`init` and `partition`: the state's shapes may not depend on the devices",
    ),
    "3 rows independent": Law(
        rows_are_independent,
        "`loss`: a term is (a sum over rows, the weight of that sum), both times `valid`; if rows "
        "mix (batch norm, a mean over the batch), say rows_independent=False",
    ),
    "3 accumulation": Law(
        accumulation_changes_nothing,
        "`loss`: a term is (a sum over rows, the weight of that sum); if rows mix, say "
        "rows_independent=False",
    ),
    "4 means are exact": Law(
        means_are_exact,
        "the evaluators and `loss`: sums times `valid`, randomness from `row_keys`, and weights "
        "that count rows, not parameters",
    ),
    "5 no dead knob": Law(
        no_dead_knob, "the function of that section: use the argument, or take it away"
    ),
    "6 plain parameters": Law(
        parameters_are_plain,
        "`init` and `partition`: nested dicts of arrays, every matrix in a row of the table",
    ),
    "8 damage is found": Law(
        damage_is_found, "`init`: the state is arrays that a checkpoint keeps"
    ),
}


def meshes(devices: int) -> list[tuple[int, int, int]]:
    """Every (data, fsdp, tensor) of all devices; with one device, just that."""
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    return [s for s in itertools.product(sizes, repeat=3) if math.prod(s) == devices]


def corners(devices: int) -> list[tuple[int, int, int]]:
    """The meshes that split along one axis, and the one that splits most evenly along all."""
    every = meshes(devices)
    return list(dict.fromkeys([s for s in every if max(s) == devices] + [min(every, key=max)]))


# What a task alone is run with; its own sections are what its functions default to.
SMALL = {
    "seed": 0,
    "optim": {"lr": 0.01},
    "train": {"batch_size": 32, "duration": "20 steps", "log_every": "1 steps"},
    "checkpoint": {"every": "5 steps"},
}


def bare(word: str, overrides: list[str]) -> ml_collections.ConfigDict:
    """The config of a task alone: 'my.task', or 'FILE.py', whose folder then is importable."""
    if word.endswith(".py") or os.sep in word:
        file = pathlib.Path(word)
        require(file.is_file(), f"no such file: {word}; a config goes behind --config")
        sys.path.insert(0, str(file.resolve().parent))
        word = file.stem
    return overridden(
        ml_collections.ConfigDict({"task": word, **SMALL}), overrides, program.sections
    )


def fitted(config, devices: int) -> tuple[dict, list[str]]:
    """A config whose batches divide over any mesh of so many devices, and what was changed for
    that."""
    config = config if isinstance(config, dict) else plain(config)
    flat, new = flatten(config), {"train.accumulate": 1}
    new |= {"mesh.data": -1, "mesh.fsdp": 1, "mesh.tensor": 1}
    ways = math.lcm(devices, 4)  # and in parts
    for key, size in flat.items():
        if key == "train.batch_size" or (key.startswith("evals.") and key.endswith(".batch_size")):
            new[key] = -(-size // ways) * ways
    notes = [f"{k}={v}" for k, v in new.items() if v != flat[k]]
    return changed(config, **new), notes


def check(law: Law, config: dict) -> tuple[str, str, str]:
    """(verdict, what was tried and found, where to look): of any exception, too, that a task
    raises."""
    try:
        return "holds", law.check(config), ""
    except DoesNotApply as reason:
        return "does not apply", str(reason), ""
    except (Broken, BadInput) as error:
        return "BROKEN", str(error), law.look
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        return "BROKEN", f"{type(error).__name__}: {first}", _place(error)


def _place(error: Exception) -> str:
    """FILE:LINE, FUNCTION where an exception arose: the innermost that is no library's."""
    frames = traceback.extract_tb(error.__traceback__)
    paths = sysconfig.get_paths()
    libraries = (*(paths[name] for name in ("stdlib", "purelib", "platlib")), "<")
    here = str(pathlib.Path(__file__).parents[1])
    own = [f for f in frames if not f.filename.startswith(libraries)]
    own = [f for f in own if not f.filename.startswith(here)] or own or frames
    return f"{own[-1].filename}:{own[-1].lineno}, in {own[-1].name}"


def report(config: dict) -> int:
    """Checks every law, prints what was tried and found, and returns how many are broken."""
    counts, said = {"holds": 0, "BROKEN": 0, "does not apply": 0}, set()
    for name, law in LAWS.items():
        began = time.perf_counter()
        verdict, found, look = check(law, config)
        seconds = time.perf_counter() - began
        counts[verdict] += 1
        known = (found, look) in said
        said.add((found, look))
        lines = ["as above"] if known else textwrap.wrap(found, 84)
        lines[-1] += f" ({seconds:.1f} s)"
        lines += textwrap.wrap(f"look at {look}", 84) if look and not known else []
        print(f"{verdict:14}  {name:18}  " + f"\n{'':36}".join(lines), flush=True)
    tried = counts["holds"] + counts["BROKEN"]
    idle = len(LAWS) - tried
    print(f"{counts['holds']} of {tried} laws hold" + (f"; does not apply: {idle}" if idle else ""))
    return counts["BROKEN"]


def simulate_devices(count: int = 8) -> None:
    """Eight devices where there is only a CPU, unless the user has said how many, or jax has
    begun."""
    said = "JAX_NUM_CPU_DEVICES" in os.environ
    if not said and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)


def main(argv=None) -> int:
    """Checks every law on a task and prints a report; exit code 1 if one is broken."""
    words = list(sys.argv[1:] if argv is None else argv)
    require(bool(words), "name a task, my.task or FILE.py, or --config FILE.py[:ARG]")
    simulate_devices()
    if words[0].startswith("-"):
        parser = cli.parser(__doc__)
        cli.add_config(parser)
        _, config = cli.parse(parser, words)
    else:
        config = bare(words[0], words[1:])
    runtime.start()
    config, notes = fitted(config, jax.device_count())
    device = jax.devices()[0]
    print(f"{config['task']}, on {jax.device_count()} devices ({device.device_kind})")
    if notes:
        print(f"so that batches divide over them: {', '.join(notes)}")
    logging.disable(logging.WARNING)  # of checkpoints that are damaged on purpose, and the like
    try:
        return 1 if report(config) else 0
    finally:
        logging.disable(logging.NOTSET)
