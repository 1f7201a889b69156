"""The training program: from a config to a finished run. `run` reads top to bottom; the rest is its parts.

`prepare` turns a config into a `Program`: the task, the optimizer, where everything lives, and the compiled
step. `loop` takes a state to the end of the run. Everything that a step computes is a function of
(config, seed, step), so nothing but the state is saved, and a run that was killed ends bit for bit like
one that was not.
"""

import importlib
import itertools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common import checkpoint, data, log, mesh, optim, runtime, tree, workdir
from common.config import (
    BadInput,
    call,
    choice,
    parameters,
    plain,
    require,
    steps,
    substitute,
    traced,
)
from common.task import EvalContext, Task, Terms, purpose_key


class TrainState(NamedTuple):
    """Arrays only. `step` counts completed updates; `average` is {} or {"params", "extra"}."""

    step: jax.Array
    params: dict
    extra: dict
    opt_state: Any
    average: dict


class Plan(NamedTuple):
    """The section `train`, checked, in steps."""

    batch_size: int
    total: int
    accumulate: int
    average: float | None
    log_every: int


class Program(NamedTuple):
    """A config made ready to run.

    Attributes:
      config: the nested dict of every key.
      plan, saving: the sections `train` and `checkpoint` in steps.
      task, optimizer: built with the config's own numbers, for use outside the step.
      layout: the mesh and its rules.
      hypers: the traced numbers, on the device.
      create: jitted: hypers -> TrainState.
      adopt: jitted: (hypers, params, extra) -> TrainState of step 0 around these parameters.
      step: jitted: (hypers, state, batch, resident) -> (state, Terms, finite); donates the state.
      like: ShapeDtypeStructs with shardings of a TrainState.
      resident: the training set on the device, or {}.
      every: {evaluator: steps}.
    """

    config: dict
    plan: Plan
    saving: checkpoint.Policy
    task: Task
    optimizer: optim.Optimizer
    layout: mesh.Layout
    hypers: dict
    create: Callable
    adopt: Callable
    step: Callable
    like: TrainState
    resident: dict
    every: dict


class NotFinite(Exception):
    """The loss or the update of a step is NaN or infinite."""


class Preempted(Exception):
    """The state is saved; run the same command again to go on."""


# ---------------------------------------------------------------------------------------- sections


def task_module(name: str):
    """The module of `config.task`. Raises `BadInput` if it cannot be imported or is no task."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        require(error.name is not None and name.startswith(error.name), f"config.task: {error}")
        raise BadInput(f"config.task: there is no module {name!r}") from error
    for function in ("sections", "sources", "make"):
        require(hasattr(module, function), f"config.task: {name!r} has no {function}; see common/task.py")
    return module


def sections(config) -> dict[str, Callable]:
    """{section: the function that it feeds}, the program's and the task's."""
    require(isinstance(config.get("task"), str), "config.task: required, e.g. 'vision.classify'")
    name = (config.get("optim") or {}).get("name", parameters(optim.make)["name"].default)
    return {
        **task_module(config.task).sections(config),
        "optim": optim.make,
        "optim.direction": optim.direction(name),
        "mesh": mesh.make,
        "train": plan,
        "train.stop": should_stop,
        "checkpoint": checkpoint.policy,
        "init": checkpoint.initialise,
        "runtime": runtime.start,
        "log": log.options,
    }


def plan(
    size: int,
    *,
    batch_size: int = 128,
    duration: str = "1 epoch",
    accumulate: int = 1,
    average: float | None = None,
    log_every: str = "50 steps",
) -> Plan:
    """Checks the section `train`.

    Args:
      size: examples in the training set.
      batch_size: examples a step, over all devices.
      duration: of the whole run.
      accumulate: parts that a batch is computed in, one after the other; the result is the same.
      average: decay of an exponential average of the parameters, which evaluation then uses.
      log_every: a duration between lines of the log.

    Raises:
      BadInput: for a value out of range.
    """
    require(batch_size > 0, f"config.train.batch_size: {batch_size} is not a positive number of examples")
    require(accumulate > 0, f"config.train.accumulate: {accumulate} is not positive")
    require(
        batch_size % accumulate == 0,
        f"config.train.accumulate: {accumulate} does not divide the batch of {batch_size}",
    )
    in_range = average is None or 0 < average < 1
    require(in_range, f"config.train.average: {average} is not between 0 and 1")
    total = steps(duration, where="config.train.duration", batch_size=batch_size, size=size, low=1)
    every = steps(
        log_every, where="config.train.log_every", batch_size=batch_size, size=size, total=total, low=1
    )
    return Plan(batch_size, total, accumulate, average, every)


def should_stop(
    history: list[dict], *, metric: str = "", patience: int = 5, min_delta: float = 0.0
) -> bool:
    """Early stopping: a pure function of the log, so that a resumed run decides the same.

    Args:
      history: the lines of the log.
      metric: "max eval/valid/accuracy" or "min eval/valid/loss": any key of the log; "" never stops.
      patience: how many of its values in a row may fail to beat the best one before them.
      min_delta: by how much they must beat it.
    """
    require(patience > 0, f"config.train.stop.patience: {patience} is not positive")
    require(min_delta >= 0, f"config.train.stop.min_delta: {min_delta} is negative")
    parsed = checkpoint.parse_best("config.train.stop.metric", metric)
    if parsed is None:
        return False
    sign, key = parsed
    best, waited = -np.inf, 0
    for value in (line[key] for line in history if key in line):
        score = -np.inf if value is None else sign * value
        best, waited = (score, 0) if score > best + min_delta else (best, waited + 1)
    return waited >= patience


# -------------------------------------------------------------------------------------------- step


def _gradients(task: Task, params, extra, batch: dict, key, accumulate: int, split: Callable):
    """(gradients, loss, Terms, extra) of the objective sum_i c_i S_i / W_i over the whole batch."""

    def loss(params, extra, batch, key, weights=None):
        terms, extra = task.loss(params, extra, batch, key)
        weights = {n: w for n, (_, w) in terms.items()} if weights is None else weights
        parts = [
            c * terms[n][0] / jnp.maximum(jax.lax.stop_gradient(weights[n]), 1e-30)
            for n, c in task.objective.items()
        ]
        return sum(parts), (terms, extra)

    if task.gradients is not None:
        grads, terms, extra = task.gradients(loss, params, extra, batch, key)
        value = sum(c * terms[n][0] / terms[n][1] for n, c in task.objective.items())
        return grads, value, terms, extra
    if accumulate == 1:
        (value, (terms, extra)), grads = jax.value_and_grad(loss, has_aux=True)(params, extra, batch, key)
        return grads, value, terms, extra

    # The weights of the whole batch first: only then is a sum over parts the whole objective. They do
    # not depend on the parameters, so the compiler drops the rest of this pass.
    weights = {n: w for n, (_, w) in task.loss(params, extra, batch, key)[0].items()}

    def part(carry, inputs):
        grads, value, extra = carry
        number, rows = inputs
        (v, (terms, extra)), g = jax.value_and_grad(loss, has_aux=True)(
            params, extra, rows, jax.random.fold_in(key, number), weights
        )
        return (jax.tree.map(jnp.add, grads, g), value + v, extra), terms

    start = (jax.tree.map(jnp.zeros_like, params), jnp.float32(0), extra)
    # Unrolled on CPU, where XLA's convolutions are ten times slower inside a loop.
    (grads, value, extra), terms = jax.lax.scan(
        part, start, (jnp.arange(accumulate), split(batch)), unroll=jax.default_backend() == "cpu"
    )
    return grads, value, jax.tree.map(lambda x: x.sum(axis=0), terms), extra


def make_step(build: Callable, layout: mesh.Layout, plan: Plan, size: int) -> Callable:
    """The pure step: (hypers, state, batch, resident) -> (state, Terms, finite).

    Args:
      build: hypers -> (Task, Optimizer), called while tracing.
      layout: where batches live.
      plan: batch size, accumulation, average.
      size: examples in the training set.

    The step takes its batch from `resident` ({name: [N, ...]}) or, if that is empty, from `batch`. The
    Terms are the task's, and `loss` (the objective), `learning_rate`, `gradient_norm`, `update_norm`.
    `finite` is whether loss, gradients and update are.
    """
    by_rows = mesh.batch_sharding(layout)

    def split(batch):
        """[B, ...] -> [accumulate, B / accumulate, ...], strided, so that rows stay on their devices."""

        def one(x):
            parts = x.reshape(-1, plan.accumulate, *x.shape[1:])
            parts = jax.lax.with_sharding_constraint(parts, by_rows)
            return jnp.swapaxes(parts, 0, 1)

        return jax.tree.map(one, batch)

    def step(hypers, state: TrainState, batch: dict, resident: dict):
        task, optimizer = build(hypers)
        seed = hypers["seed"]
        if resident:
            batch = data.gather(seed, state.step, plan.batch_size, size, resident)
            batch = jax.lax.with_sharding_constraint(batch, by_rows)
        batch = task.prepare(purpose_key(seed, "prepare", state.step), batch, True)
        grads, loss, terms, extra = _gradients(
            task,
            state.params,
            state.extra,
            batch,
            purpose_key(seed, "loss", state.step),
            plan.accumulate,
            split,
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, state.step)
        params = jax.tree.map(jnp.add, state.params, updates)
        average = state.average
        if plan.average is not None:
            count = state.step.astype(jnp.float32)
            keep = jnp.minimum(plan.average, (1 + count) / (10 + count))
            average = jax.tree.map(
                lambda old, new: (keep * old + (1 - keep) * new).astype(old.dtype),
                average,
                {"params": params, "extra": extra},
            )
        one = jnp.float32(1)
        norms = {"gradient_norm": _norm(grads), "update_norm": _norm(updates)}
        terms = {
            **terms,
            "loss": (loss, one),
            "learning_rate": (optimizer.learning_rate(state.step), one),
            **{name: (norm, one) for name, norm in norms.items()},
        }
        finite = jnp.isfinite(loss) & jnp.isfinite(sum(norms.values()))
        return TrainState(state.step + 1, params, extra, opt_state, average), terms, finite

    return step


def _norm(grads) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)))


# ----------------------------------------------------------------------------------------- prepare


def prepare(config) -> Program:
    """Makes a completed config ready: reads its data, checks the rest, lays it out. Writes nothing.

    Raises:
      BadInput: for anything that the user can mend.
    """
    config = config if isinstance(config, dict) else plain(config)
    require(0 <= config["seed"] < 2**32, f"config.seed: {config['seed']} is not in [0, 2^32)")
    module = task_module(config["task"])
    layout = call(mesh.make, config["mesh"])
    sources = module.sources(config)
    size = sources["train"].size
    schedule = call(plan, config["train"], size)
    mesh.check_batch(layout, schedule.batch_size // schedule.accumulate, "config.train.batch_size")
    for name, section in config.get("evals", {}).items():
        mesh.check_batch(layout, section["batch_size"], f"config.evals.{name}.batch_size")

    def to_steps(text, where, low=0):
        return steps(
            text, where=where, batch_size=schedule.batch_size, size=size, total=schedule.total, low=low
        )

    saving = call(checkpoint.policy, config["checkpoint"], to_steps)
    call(should_stop, config["train"]["stop"], [])
    hypers = {k: np.uint32(v) if k == "seed" else np.float32(v) for k, v in traced(config).items()}

    def build(values):
        changed = substitute(config, values)
        task = module.make(changed, sources, mesh.constrainer(layout))
        section = changed["optim"]
        return task, call(optim.make, section, schedule.total, to_steps, section["direction"])

    task, optimizer = build({})
    unknown = set(task.objective) - set(_terms_of(task))
    require(not unknown, f"{config['task']}: the objective names {sorted(unknown)}, not among its terms")
    require(
        schedule.accumulate == 1 or task.rows_independent,
        "config.train.accumulate: the loss of this task mixes rows (batch norm), so it cannot be split",
    )
    require(
        schedule.accumulate == 1 or task.gradients is None,
        "config.train.accumulate: this task computes its own gradients, which cannot be split",
    )
    _check_metrics(config, task)

    def adopt(hypers, params, extra):
        _, optimizer = build(hypers)
        average = {"params": params, "extra": extra} if schedule.average is not None else {}
        average = jax.tree.map(jnp.copy, average)
        return TrainState(jnp.uint32(0), params, extra, optimizer.init(params), average)

    def create(hypers):
        task, _ = build(hypers)
        return adopt(hypers, *task.init(purpose_key(hypers["seed"], "init")))

    shapes = jax.eval_shape(create, hypers)
    optim.check_tables(config["optim"], shapes.params)
    placed = mesh.shardings(layout, task.partition, shapes.params)
    rest = shapes._replace(params={})
    places = mesh.follow(layout, rest, shapes.params, placed)._replace(params=placed)
    like = jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, places
    )
    whole = mesh.replicated(layout)
    step = jax.jit(
        make_step(build, layout, schedule, size), donate_argnums=1, out_shardings=(places, whole, whole)
    )
    resident = sources["train"].resident or {}
    return Program(
        config=config,
        plan=schedule,
        saving=saving,
        task=task,
        optimizer=optimizer,
        layout=layout,
        hypers=mesh.put_replicated(layout, hypers),
        create=jax.jit(create, out_shardings=places),
        adopt=jax.jit(adopt, out_shardings=places),
        step=step,
        like=like,
        resident=mesh.put_replicated(layout, resident),
        every={
            name: to_steps(evaluator.every, f"config.evals.{name}.every", low=1)
            for name, evaluator in task.evaluators.items()
        },
    )


def _terms_of(task: Task) -> Terms:
    """The shapes of a task's terms, on a batch of one row."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    source = task.sources["train"]
    row = {n: jax.ShapeDtypeStruct((1, *s.shape), s.dtype) for n, s in source.spec.items()}
    row |= {
        "index": jax.ShapeDtypeStruct((1,), jnp.uint32),
        "valid": jax.ShapeDtypeStruct((1,), jnp.float32),
    }

    def terms(key, row):
        params, extra = task.init(key)
        return task.loss(params, extra, task.prepare(key, row, True), key)[0]

    return jax.eval_shape(terms, key, row)


def _check_metrics(config: dict, task: Task) -> None:
    """The keys by which runs stop and checkpoints are best must be of an evaluator that there is."""
    for where, text, kinds in (
        ("config.checkpoint.best", config["checkpoint"]["best"], ("eval",)),
        ("config.train.stop.metric", config["train"]["stop"]["metric"], ("eval", "train")),
    ):
        if text:
            kind, *rest = text.split()[-1].split("/")
            require(kind in kinds, f"{where}: {text!r}: a key here begins with {' or '.join(kinds)}")
            if kind == "eval":
                choice(where, rest[0] if rest else "", task.evaluators)


def initial_state(program: Program) -> TrainState:
    """The state of step 0: fresh, or with the parameters that the section `init` or the task bring."""
    state = program.create(program.hypers)
    section = program.config["init"]
    if program.task.pretrained is None and not any(section.values()):
        return state
    params = jax.device_get(state.params)
    if program.task.pretrained is not None:
        params = program.task.pretrained(params)
    params = call(checkpoint.initialise, section, params)
    put = lambda x, s: jax.make_array_from_callback(x.shape, s.sharding, lambda i: np.asarray(x)[i])
    params = jax.tree.map(put, params, program.like.params)
    return program.adopt(program.hypers, params, state.extra)


# ------------------------------------------------------------------------------- evaluation and loop


def eval_context(program: Program, state: TrainState, step: int, folder=None) -> EvalContext:
    """What evaluators see of a state: the average if there is one."""
    if state.average:
        params, extra = state.average["params"], state.average["extra"]
    else:
        params, extra = program.optimizer.eval_params(state.opt_state, state.params), state.extra
    return EvalContext(
        params=params,
        extra=extra,
        step=step,
        key=purpose_key(np.uint32(program.config["seed"]), "evaluate"),
        batches=lambda source, size: data.eval_batches(source, size, program.layout),
        workdir=folder,
    )


def loop(
    program: Program,
    state: TrainState,
    metrics: log.Log,
    progress: log.Progress,
    checkpoints: checkpoint.Checkpoints | None = None,
    preemption: runtime.Preemption | None = None,
    folder=None,
) -> TrainState:
    """Takes `state` to the end of the run, or to where it stops early.

    What is due after a step (evaluation, a save) is found from its number and the log, so a run that
    was cut anywhere does what is missing and no more. A step's numbers are read while the next one
    runs, and no more than two are in flight.

    Raises:
      NotFinite: at the first step whose loss or update is not finite; it is not saved.
      Preempted: when the process was told to end; the state is saved.
    """
    plan, resident = program.plan, program.resident
    step = int(state.step)
    batches = itertools.repeat({})
    if not resident:
        source, seed = program.task.sources["train"], program.config["seed"]
        workers = program.config.get("data", {}).get("workers", 0)
        batches = data.train_batches(
            source, seed, step, plan.total, plan.batch_size, program.layout, workers
        )
    tracing = runtime.profiled(program.config["runtime"]["profile"])
    pending = None
    best_key = program.saving.best and program.saving.best[1]
    saved = set(checkpoints.steps()) if checkpoints else set()

    def observe():
        """Reads the step in flight: stops at what is not finite, logs what is due."""
        nonlocal pending
        if pending is None:
            return
        number, terms, finite = pending
        pending = None
        if not jax.device_get(finite):
            values = {n: float(s / w) for n, (s, w) in jax.device_get(terms).items() if np.ndim(s) == 0}
            raise NotFinite(f"step {number}: loss or update is not finite: {log.spelled(values)}")
        progress.done(number)
        if number % plan.log_every == 0 or number == plan.total:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = {f"train/{n}": np.float32(s) / w for n, (s, w) in jax.device_get(terms).items()}
            clock = {
                "time/seconds": round(progress.seconds(), 3),
                "time/examples_per_second": round(progress.examples_per_second(), 1),
            }
            metrics.write(number, values | clock)
            progress.show(number, {n: float(v) for n, v in values.items() if np.ndim(v) == 0})

    while True:
        evaluated = {
            name
            for name, every in program.every.items()
            if step and (step % every == 0 or step == plan.total)
        }
        stop = False
        if evaluated:
            observe()
            _evaluate(program, state, step, sorted(evaluated), metrics, progress, folder)
            stop = call(should_stop, program.config["train"]["stop"], metrics.history)
            if stop:
                _evaluate(program, state, step, sorted(program.every), metrics, progress, folder)
        last = stop or step == plan.total
        is_best = best_key is not None and metrics.has(step, best_key)
        told = preemption is not None and not last and preemption.noticed(step)
        if checkpoints and step and step not in saved:
            if last or told or is_best or step % program.saving.every == 0:
                observe()
                progress.pause()
                metrics.sync()
                checkpoints.save(step, state)
                saved.add(step)
                progress.start()
        if last or told:
            observe()
        if last:
            return state
        if told:
            if checkpoints:
                checkpoints.wait()
            raise Preempted(f"told to end: saved step {step}")

        if step in tracing and step == tracing.start and folder is not None:
            jax.profiler.start_trace(str(folder / "profile"))
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, terms, finite = program.step(program.hypers, state, next(batches), resident)
        step += 1
        observe()
        pending = (step, terms, finite)
        if step == tracing.stop and len(tracing) and folder is not None:
            observe()
            jax.profiler.stop_trace()


def _evaluate(program: Program, state, step: int, names, metrics: log.Log, progress, folder) -> None:
    """Runs the evaluators that the log does not hold yet for this step."""
    names = [name for name in names if not metrics.has(step, f"eval/{name}/")]
    if not names:
        return
    progress.pause()
    context = eval_context(program, state, step, folder)
    for name in names:
        values = program.task.evaluators[name].run(context)
        metrics.write(step, {f"eval/{name}/{key}": value for key, value in values.items()})
        progress.say(f"step {step}  {name}: {log.spelled(values)}")
    progress.start()


# --------------------------------------------------------------------------------------------- run


def run(config, folder, *, show: bool = True) -> dict:
    """Trains a config in a workdir, from wherever it stands, and returns the result.

    Args:
      config: a completed config (`common.config.load`).
      folder: the workdir; created if need be. What it holds: see README.md.
      show: whether to print progress on standard error.

    Returns:
      What `result.json` holds: steps, eval, wall_seconds, examples_per_second, digest, parameters.

    Raises:
      BadInput, NotFinite, Preempted: see there.
    """
    config = config if isinstance(config, dict) else plain(config)
    call(runtime.start, config["runtime"])
    options = call(log.options, config["log"])
    program = prepare(config)
    prints = {name: source.fingerprint for name, source in program.task.sources.items()}
    folder = workdir.claim(folder, config, prints, write=runtime.is_main())
    show = show and runtime.is_main()
    name = f"{folder.name}-{zlib.crc32(str(folder).encode()):08x}"

    history: list[dict] = []
    checkpoints = checkpoint.Checkpoints(folder, program.saving, lambda: history)
    try:
        with jax.set_mesh(program.layout.mesh), runtime.Preemption() as preemption:
            restored = checkpoints.restore(program.like)
            state, step = restored or (initial_state(program), 0)
            metrics = log.Log(
                folder, step, writing=runtime.is_main(), name=name, config=config, **options
            )
            history = metrics.history
            clocks = [line["time/seconds"] for line in history if "time/seconds" in line]
            progress = log.Progress(
                program.plan.total, program.plan.batch_size, step, max(clocks, default=0.0), show
            )
            progress.say(_headline(program, folder, step))
            try:
                state = loop(
                    program, state, metrics, progress, checkpoints, preemption, folder
                )
            except NotFinite as error:
                checkpoints.wait()
                kept = checkpoints.steps()
                raise NotFinite(
                    f"{error}; the newest checkpoint is step {kept[-1] if kept else 'none'}, in {folder}. "
                    "Lower config.optim.lr, or set config.optim.clip, in a new workdir"
                ) from None
            finally:
                metrics.close()
            checkpoints.wait()
    finally:
        checkpoints.close()
    result = {
        "steps": int(state.step),
        "eval": _last_values(metrics.history, int(state.step)),
        "wall_seconds": round(progress.seconds(), 2),
        "examples_per_second": round(progress.examples_per_second(), 1),
        "digest": tree.hexdigest(state),
        "parameters": tree.count(state.params),
    }
    if runtime.is_main():
        workdir.finish(folder, result)
    return result


def _headline(program: Program, folder, step: int) -> str:
    task, plan = program.task, program.plan
    devices = jax.devices()
    begun = f"going on at step {step}" if step else "starting"
    return (
        f"{program.config['task']}: {tree.count(program.like.params):,} parameters, "
        f"{task.sources['train'].size:,} examples, {plan.total} steps of {plan.batch_size} on "
        f"{len(devices)} {devices[0].device_kind}; {begun}, in {folder}"
    )


def _last_values(history: list[dict], step: int) -> dict:
    """{evaluator: {metric: value}} of the lines of `step`."""
    found: dict[str, dict] = {}
    for line in history:
        if line["step"] == step:
            for key, value in line.items():
                if key.startswith("eval/"):
                    _, name, metric = key.split("/", 2)
                    found.setdefault(name, {})[metric] = value
    return found
