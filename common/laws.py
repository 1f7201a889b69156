"""The laws that every task obeys, as functions that check one task: ours and anybody's.

    python -m common.laws --config configs/vision/digits.py:mlp

Each law takes a completed config, runs the real program on it for a few steps, and returns a line
that says what was checked; a law that does not hold raises `Broken` with what was found.

1. The position is the step: batches are a pure function of (config, seed, step).
2. Resume is exact. 3. The mesh, and accumulation, do not change the maths. 4. Means are exact.
5. No dead knob. 6. Plain parameters. 8. Nothing is lost quietly.
(7, that a model is a plain linen module, is for the tests of the model.)
"""

import ast
import copy
import inspect
import itertools
import math
import pathlib
import tempfile
import textwrap
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import checkpoint, cli, data, log, mesh, optim, program, runtime, tree
from common.config import BadInput, flatten, parameters, plain
from common.program import Program, initial_state, prepare
from common.task import purpose_key
from common.train import eval_context, loop


class Broken(AssertionError):
    """A law that does not hold, and what was found."""


def hold(condition: bool, found: str) -> None:
    """Raises `Broken(found)` unless `condition` is true."""
    if not condition:
        raise Broken(found)


def changed(config, **overrides) -> dict:
    """A copy of a config as nested dicts with keys replaced: changed(c, **{"train.batch_size":
    8})."""
    config = copy.deepcopy(config if isinstance(config, dict) else plain(config))
    for key, value in overrides.items():
        *parents, last = key.split(".")
        section = config
        for part in parents:
            section = section[part]
        section[last] = value
    return config


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
            batches = data.train_batches(source, seed, first, first + steps, size, made.layout)
        found = []
        for _ in range(steps):
            state, terms, _ = made.step(made.hypers, state, next(batches), made.resident)
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
    rows = np.concatenate([data.order(seed, s, size, source.size) for s in range(epoch)])
    first = np.sort(rows[: source.size])
    hold(np.array_equal(first, np.arange(source.size)), "an epoch does not visit every row once")
    on_device = jax.jit(lambda s: data.order(jnp.uint32(seed), s, size, source.size, jnp))
    steps = (0, 1, epoch - 1, epoch, 12_345_678)
    for s in steps:
        same = np.array_equal(data.order(seed, s, size, source.size), on_device(jnp.uint32(s)))
        hold(same, f"step {s}: host and device differ in the order of rows")

    def prepared(batch, step):
        key = purpose_key(np.uint32(seed), "prepare", np.uint32(step))
        return jax.device_get(jax.jit(made.task.prepare, static_argnums=2)(key, batch, True))

    start, stop = 3, 7
    expected = [
        prepared(
            source.read(data.order(seed, s, size, source.size))
            | {"index": data.stream_index(s, size), "valid": np.ones(size, np.float32)},
            s,
        )
        for s in range(start, stop)
    ]
    for count in workers:
        found = data.train_batches(source, seed, start, stop, size, made.layout, count)
        for s, (batch, want) in enumerate(zip(found, expected, strict=True), start):
            for name, value in prepared(batch, s).items():
                same = np.array_equal(value, want[name])
                hold(same, f"step {s}, {count} workers: {name} is another")
    if source.resident is not None:
        whole = jax.tree.map(jnp.asarray, source.resident)
        gather = jax.jit(lambda s, whole: data.gather(seed, s, size, source.size, whole))
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
    config, shapes: list[tuple[int, int, int]], steps: int = 10, tolerance: float = 1e-5
) -> str:
    """3: the losses on each mesh (data, fsdp, tensor) are those of one device."""
    alone, _ = train_losses(prepare(config, jax.devices()[:1]), steps)
    worst = 0.0
    for shape in shapes:
        sizes = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), shape, strict=True))
        made = prepare(changed(config, **sizes), jax.devices()[: math.prod(shape)])
        found, _ = train_losses(made, steps)
        difference = near(alone, found)
        worst = max(worst, difference)
        hold(difference <= tolerance, f"mesh {shape}: losses differ by {difference:.1e} relative")
    return f"{steps} steps on {len(shapes)} meshes: losses agree to {worst:.1e} relative"


def accumulation_changes_nothing(
    config, parts: int = 4, steps: int = 10, tolerance: float = 1e-5
) -> str:
    """3: a batch computed in parts gives the same losses; refused where rows are not
    independent."""
    devices = jax.devices()[:1]
    # Another part, another mask: equality is promised without dropout.
    rates = [f"model.{name}" for name in config["model"] if name.endswith("dropout")]
    config = changed(config, **dict.fromkeys(rates))
    made = prepare(config, devices)
    split = changed(config, **{"train.accumulate": parts})
    if made.task.gradients is not None:
        return "the task computes its own gradients: there is nothing to accumulate"
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
    return f"{parts} parts a batch: losses agree to {difference:.1e} relative"


def means_are_exact(config) -> str:
    """4: evaluation weighs every row once at any batch size; no weight reads a parameter."""
    made = prepare(config, jax.devices()[:1])
    task = made.task
    with jax.set_mesh(made.layout.mesh):
        state = initial_state(made)
        for name, source in task.sources.items():
            for size in (7, 64):
                batches = [jax.device_get(b) for b in data.eval_batches(source, size, made.layout)]
                rows = np.concatenate([b["index"][b["valid"] > 0] for b in batches])
                whole = np.array_equal(rows, np.arange(source.size))
                hold(whole, f"{name}, {size} rows at a time: not every row once")
        for name in task.evaluators:
            found = []
            for size in (16, 100):
                made_so = prepare(
                    changed(config, **{f"evals.{name}.batch_size": size}), jax.devices()[:1]
                )
                context = eval_context(made_so, state, 0)
                found.append(made_so.task.evaluators[name].run(context))
            for key, value in found[0].items():
                other = found[1][key]
                same = (
                    value == other
                    if isinstance(value, str)
                    else np.allclose(value, other, 1e-5, 1e-6)
                )
                hold(same, f"{name}/{key}: {value} 16 rows at a time, {other} 100 at a time")

        def weights(params):
            batch = next(data.eval_batches(task.sources["train"], 16, made.layout))
            batch = task.prepare(purpose_key(0, "prepare"), batch, True)
            terms, _ = task.loss(params, state.extra, batch, purpose_key(0, "loss"))
            return {name: float(w) for name, (_, w) in terms.items()}

        nothing = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), state.params)
        one, other = weights(state.params), weights(nothing)
    reads = [name for name in one if one[name] != other[name]]
    hold(not reads, f"the weights of {reads} depend on the parameters")
    return (
        f"{len(task.sources)} sets whole at any batch size; {len(one)} weights free of parameters"
    )


def no_dead_knob(config) -> str:
    """5: every key of every section is read by its function, and a key that it lacks is refused."""
    sections = program.sections(config)
    count = 0
    for where, function in sections.items():
        known = set(parameters(function))
        if not isinstance(function, dict):
            unread = known - _names_read(function)
            hold(not unread, f"config.{where}: nothing reads {', '.join(sorted(unread))}")
        count += len(known)
        values = {k: v for k, v in flatten(config).items() if k.startswith(f"{where}.")}
        missing = [k for k in known if not any(v.startswith(f"{where}.{k}") for v in values)]
        hold(not missing, f"config.{where} does not hold {missing}")
    return f"{count} keys in {len(sections)} sections, each read by its function"


def _names_read(function: Callable) -> set[str]:
    """The names that a function's body loads, or the fields of `self` that a module's methods
    load."""
    body = ast.parse(textwrap.dedent(inspect.getsource(function)))
    if inspect.isclass(function) and issubclass(function, nn.Module):
        return {node.attr for node in ast.walk(body) if isinstance(node, ast.Attribute)}
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
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(made.layout.mesh):
        metrics = log.Log(
            folder, 0, writing=True, name="laws", config={}, tensorboard=False, wandb=""
        )
        progress = log.Progress(steps, made.plan.batch_size, 0, 0.0, show=False)
        looped = loop(made, initial_state(made), metrics, progress)
        metrics.close()
        evaluated = {k for line in metrics.history for k in line if k.startswith("eval/")}
    hold(tree.hexdigest(looped) == tree.hexdigest(state), "the loop ends in another state")
    for name in made.task.evaluators:
        hold(any(k.startswith(f"eval/{name}/") for k in evaluated), f"{name} was not evaluated")
    return f"{steps} steps of the loop end where {steps} bare steps do"


LAWS: dict[str, Callable] = {
    "1 position is step": position_is_step,
    "2 resume is exact": resume_is_exact,
    "2 loop is the step": loop_ends_where_steps_do,
    "3 mesh": lambda config: mesh_changes_nothing(config, meshes(jax.device_count())),
    "3 accumulation": accumulation_changes_nothing,
    "4 means are exact": means_are_exact,
    "5 no dead knob": no_dead_knob,
    "6 plain parameters": parameters_are_plain,
    "8 damage is found": damage_is_found,
}


def meshes(devices: int) -> list[tuple[int, int, int]]:
    """Every (data, fsdp, tensor) of all devices; with one device, just that."""
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    return [s for s in itertools.product(sizes, repeat=3) if math.prod(s) == devices]


def main(argv=None) -> int:
    """Checks every law on a config and prints a report; exit code 1 if one is broken."""
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    _, config = cli.parse(parser, argv)
    runtime.start()
    broken = 0
    for name, law in LAWS.items():
        try:
            verdict, found = "holds ", law(config)
        except (Broken, BadInput) as error:
            verdict, found, broken = "BROKEN", str(error), broken + 1
        print(f"{verdict}  {name:20}  {found}", flush=True)
    print(f"{len(LAWS) - broken} of {len(LAWS)} laws hold")
    return 1 if broken else 0


if __name__ == "__main__":
    cli.exit(main)
