"""The laws that every task obeys, as functions that check a task, ours or anyone's.

Each takes a completed config, runs the real program on it for a few steps, and returns a line that
summarises the check; a broken law raises `Broken` with the finding, one with nothing to check
raises `DoesNotApply` with the reason.

1. The position is the step: batches are a pure function of (config, seed, step).
2. Resume is exact. 3. The mesh, and accumulation, do not change the maths. 4. Means are exact.
5. No dead knob. 6. Plain parameters. 8. Nothing is lost quietly.
(7, that a model is a plain linen module, is left to the model's own tests.)
"""

import contextlib
import itertools
import math
import pathlib
import shutil
import tempfile
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from common import tree
from common.config import changed, flatten
from common.data import loading, order
from common.devices import mesh
from common.errors import BadInput
from common.laws.measure import (
    Broken,
    DoesNotApply,
    difference_of,
    draws,
    flip,
    hold,
    names_read,
    near,
    on_mesh,
    read_by_program,
    train_losses,
    without_dropout,
)
from common.runs import checkpoint, log
from common.runs.progress import Progress
from common.sections import Selected, parameters
from common.task import purpose_key
from common.training import optim, program
from common.training.loop import Run, eval_context, loop
from common.training.program import initial_state, prepare

# ----------------------------------------------------------------------------------------- the laws


def position_is_step(config, workers: tuple[int, ...] = (0,)) -> str:
    """1: host, device, threads and worker processes produce the same batches; an epoch is a
    permutation."""
    made = prepare(config, jax.devices()[:1])
    source, seed, size = made.task.sources["train"], made.config["seed"], made.plan.batch_size
    epoch = math.ceil(source.size / size)
    rows = np.concatenate([order.rows(seed, s, size, source.order) for s in range(epoch)])
    rows = rows[: source.size]
    if source.by_class is None:
        once = np.array_equal(np.sort(rows), np.arange(source.size))
        hold(once, "an epoch does not visit every row once")
    else:
        counts = np.unique(source.labels()[rows], return_counts=True)[1]
        hold(np.ptp(counts) <= 1, "an epoch does not draw the classes equally often")
    on_device = jax.jit(lambda s: order.rows(jnp.uint32(seed), s, size, source.order, jnp))
    steps = (0, 1, epoch - 1, epoch, 12_345_678)
    for s in steps:
        agree = np.array_equal(order.rows(seed, s, size, source.order), on_device(jnp.uint32(s)))
        hold(agree, f"step {s}: host and device order the rows differently")

    def prepared(batch, step):
        key = purpose_key(np.uint32(seed), "prepare", np.uint32(step))
        return jax.device_get(jax.jit(made.task.prepare, static_argnums=2)(key, batch, True))

    def same(value, other) -> bool:
        pairs = zip(jax.tree.leaves(value), jax.tree.leaves(other), strict=True)
        return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)

    start, stop = 3, 7
    expected = [
        prepared(
            source.read(order.rows(seed, s, size, source.order))
            | {"index": order.stream_index(s, size), "valid": np.ones(size, np.float32)},
            s,
        )
        for s in range(start, stop)
    ]
    for count in workers:
        batches = loading.train_batches(
            source, seed, range(start, stop), size, made.layout, workers=count
        )
        for s, (batch, want) in enumerate(zip(batches, expected, strict=True), start):
            for name, value in prepared(batch, s).items():
                hold(same(value, want[name]), f"step {s}, {count} workers: {name} differs")
    if source.resident is not None:
        resident = jax.tree.map(jnp.asarray, source.resident)
        gather = jax.jit(lambda s, resident: loading.gather(seed, s, size, source.order, resident))
        for s, want in enumerate(expected, start):
            for name, value in prepared(gather(np.uint32(s), resident), s).items():
                hold(same(value, want[name]), f"step {s}, on the device: {name} differs")
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
    hold(tree.hexdigest(state) == wanted, "the losses agree, but the states do not")
    return f"{steps} + {steps} steps through a checkpoint equal {2 * steps}, bit for bit"


def mesh_changes_nothing(
    config,
    shapes: list[tuple[int, int, int]],
    steps: int = 10,
    tolerance: float = 1e-5,
    alone: list[float] | None = None,
) -> str:
    """3: each mesh (data, fsdp, tensor) gives the losses of one device, or `alone`."""
    if not any(math.prod(shape) > 1 for shape in shapes):
        raise DoesNotApply("there is one device, and so one mesh")
    if alone is None:
        alone, _ = train_losses(on_mesh(config, (1, 1, 1)), steps)
    worst = 0.0
    for shape in shapes:
        losses, _ = train_losses(on_mesh(config, shape), steps)
        difference = near(alone, losses)
        worst = max(worst, difference)
        hold(difference <= tolerance, f"mesh {shape}: losses differ by {difference:.1e} relative")
    return f"{steps} steps on {len(shapes)} meshes: losses agree to {worst:.1e} relative"


def checkpoint_fits_any_mesh(
    config,
    shapes: list[tuple[int, int, int]],
    steps: int = 2,
    tolerance: float = 1e-5,
    apart: Sequence[int] | None = None,
) -> str:
    """3: a checkpoint of each mesh restores on every other, bit for bit, and training continues.

    Args:
      config: completed.
      shapes: the meshes.
      steps: steps before the checkpoint, and after it.
      tolerance: relative, of the losses after it.
      apart: restore the checkpoint of mesh i only on the meshes i + k, cyclically, for these k;
        None is every pair.
    """
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
        hold(all(jax.tree.leaves(placed)), f"restored on mesh {shape}, it has other shardings")
        hold(tree.hexdigest(state) == wanted, f"restored on mesh {shape}, it is another state")
        return state

    with tempfile.TemporaryDirectory() as parent:
        folders = {shape: pathlib.Path(parent, "x".join(map(str, shape))) for shape in shapes}
        for shape, folder in folders.items():
            on_shape = state if shape == first else restored(folders[first], shape)
            with contextlib.closing(checkpoint.Checkpoints(folder, made[shape].saving)) as target:
                target.save(steps, on_shape)
        pairs = list(itertools.permutations(shapes, 2))
        if apart is not None:
            count = len(shapes)
            near_by = {(shapes[i], shapes[(i + k) % count]) for i in range(count) for k in apart}
            pairs = [pair for pair in pairs if pair in near_by or pair == (first, last)]
        for shape, other in pairs:
            moved = restored(folders[shape], other)
            if (shape, other) == (first, last):
                losses, _ = train_losses(made[last], steps, moved)
    difference = near(straight[steps:], losses)
    moved = f"the run that moves from mesh {first} to {last}"
    hold(difference <= tolerance, f"{moved}: losses differ by {difference:.1e} relative")
    return f"{len(pairs)} pairs, bit for bit; {moved}: losses agree to {difference:.1e} relative"


def accumulation_changes_nothing(
    config, parts: int = 4, steps: int = 10, tolerance: float = 1e-5
) -> str:
    """3: a batch computed in parts gives the same losses; refused if rows are not
    independent."""
    devices = jax.devices()[:1]
    # Each part draws its own dropout mask: equality holds only without dropout.
    config = without_dropout(config)
    made = prepare(config, devices)
    split = changed(config, **{"train.accumulate": parts})
    if made.task.gradients is not None:
        raise DoesNotApply("the task computes its own gradients, which are not accumulated")
    if not made.task.rows_independent:
        try:
            prepare(split, devices)
        except BadInput:
            return "rows are not independent, and accumulation is refused"
        raise Broken("rows are not independent, but accumulation is not refused")
    if draws(made):
        raise DoesNotApply("the loss draws from `key`, anew in each part, so that parts differ")
    unsplit, _ = train_losses(made, steps)
    losses, _ = train_losses(prepare(split, devices), steps)
    difference = near(unsplit, losses)
    hold(difference <= tolerance, f"{parts} parts: losses differ by {difference:.1e} relative")
    return f"{parts} parts a batch, {steps} steps: losses agree to {difference:.1e} relative"


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
                once = np.array_equal(rows, np.arange(source.size))
                hold(once, f"{name}, {size} rows at a time: not every row exactly once")
        sized = [n for n in task.evaluators if "batch_size" in config["evals"].get(n, {})]
        worst = 0.0
        for name in sized:
            metrics = []
            for size in (16, 100):
                resized = prepare(
                    changed(config, **{f"evals.{name}.batch_size": size}), jax.devices()[:1]
                )
                evaluator = resized.task.evaluators[name]
                metrics.append(evaluator.run(eval_context(resized, state, 0)))
            for key, value in metrics[0].items():
                other = metrics[1][key]
                difference = difference_of(value, other)
                if difference > 1e-5:
                    context = eval_context(resized, state, 0)
                    context = context._replace(key=purpose_key(0, "laws"))
                    random = difference_of(other, evaluator.run(context)[key]) > 0
                    cause = (
                        "; its random numbers depend on the batch: draw them from "
                        "row_keys(key, batch), a key per row"
                    )
                    hold(
                        False,
                        f"{name}/{key}: {value} 16 rows at a time, {other} 100 at a time"
                        + (cause if random else ""),
                    )
                worst = max(worst, difference)

        @jax.jit
        def weights(params, batch):
            batch = task.prepare(purpose_key(0, "prepare"), batch, True)
            terms, _ = task.loss(params, state.extra, batch, purpose_key(0, "loss"))
            return {name: w for name, (_, w) in terms.items()}

        batch = next(loading.eval_batches(task.sources["train"], 16, made.layout))
        nans = jax.tree.map(lambda p: np.full(p.shape, np.nan, p.dtype), state.params)
        actual, other = jax.device_get((weights(state.params, batch), weights(nans, batch)))
    reads = [n for n in actual if not np.array_equal(actual[n], other[n], equal_nan=True)]
    hold(not reads, f"the weights of {reads} depend on the parameters")
    return (
        f"{len(task.sources)} sets complete at any batch size, metrics to {worst:.1e}; no weight "
        f"of {', '.join(actual)} reads a parameter"
    )


def no_dead_knob(config) -> str:
    """5: every key of every section is read by its function and present in the config."""
    sections = program.sections(config)
    count = 0
    for where, function in sections.items():
        known, selector = set(parameters(function)), set()
        if isinstance(function, Selected):
            selector, function = {function.selector}, function.function
        unread = known - selector - names_read(function) - set(read_by_program(where))
        hold(not unread, f"config.{where}: nothing reads {', '.join(sorted(unread))}")
        count += len(known)
        values = {k: v for k, v in flatten(config).items() if k.startswith(f"{where}.")}
        missing = [k for k in known if not any(v.startswith(f"{where}.{k}") for v in values)]
        hold(not missing, f"config.{where} lacks {missing}")
    return f"{count} keys in {len(sections)} sections, each read by its function"


def parameters_are_plain(config) -> str:
    """6: nested dicts of arrays; the partition table covers every matrix, with no idle row."""
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
    """8: a flipped byte in a checkpoint's data is detected, and the step before it is used; or it
    changes nothing, as in an index that a later one has replaced."""
    made, digests = prepare(config, jax.devices()[:1]), {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, state = checkpoint.Checkpoints(folder, made.saving), None
        for step in (1, 2):
            _, state = train_losses(made, 1, state)
            checkpoints.save(step, state)
            digests[step] = tree.hexdigest(state)
        checkpoints.close()
        newest, kept = pathlib.Path(folder, "checkpoints", "2"), pathlib.Path(folder, "kept")
        shutil.copytree(newest, kept)
        steps = []
        for file, at in _places(newest / "state"):
            flip(file, at)
            checkpoints = checkpoint.Checkpoints(folder, made.saving)
            state, step = checkpoints.restore(made.like)
            checkpoints.close()
            same = tree.hexdigest(state) == digests[step]
            hold(same, f"byte {at} of {file.name}: step {step} was restored as another state")
            steps.append(step)
            shutil.rmtree(newest, ignore_errors=True)  # it may have been set aside
            shutil.copytree(kept, newest)
    detected = steps.count(1)
    hold(detected > 0, f"none of {len(steps)} flipped bytes was detected")
    return f"{detected} of {len(steps)} flipped bytes were detected, the others changed nothing"


def _places(state: pathlib.Path) -> list[tuple[pathlib.Path, int]]:
    """(file, position) of two bytes in the largest file of each folder of data, of which there is
    one for each process, and one that joins them."""
    folders = sorted(path for path in state.rglob("d") if path.is_dir())
    size = lambda file: file.stat().st_size
    largest = [max(folder.iterdir(), key=size) for folder in folders]
    return [(file, size(file) * part // 3) for file in largest for part in (1, 2)]


def loop_ends_where_steps_do(config, steps: int = 6) -> str:
    """2: the program's loop, with its log and evaluations, ends in the same state as bare steps."""
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
