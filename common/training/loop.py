"""The training loop: evaluate, save, read a batch, step, log; and when each is due.

`drive` holds everything but the update itself, so that one run (`loop`) and a stacked population
(`common.sweeps.population`) share it. What is due after a step is a pure function of the program,
the step and the log (`due`), so a run interrupted anywhere does exactly what is still missing.
"""

import contextlib
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from common import tree
from common.data import loading
from common.devices import ending, mesh, runtime
from common.errors import NotFinite, Preempted, choice
from common.runs.checkpoint import Checkpoints
from common.runs.history import metric_keys, why_stop
from common.runs.log import Log, logged
from common.runs.progress import Progress, spelled
from common.sections import call
from common.task import EvalContext, Shown, purpose_key
from common.training import interval, unsaved
from common.training.program import Program
from common.training.step import TrainState


class Run(NamedTuple):
    """A run with an open workdir.

    Attributes:
      program: the prepared config.
      metrics: the log.
      progress: the clock and the progress line.
      checkpoints: None saves none.
      preemption: None ignores preemption.
      folder: the workdir, if any.
      sums: f32[2, N], of the Terms since the last line of the log (`common.training.interval`);
        None for none.
    """

    program: Program
    metrics: Log
    progress: Progress
    checkpoints: Checkpoints | None = None
    preemption: ending.Preemption | None = None
    folder: epath.Path | None = None
    sums: np.ndarray | None = None


# --------------------------------------------------------------------------------------------- due


class Due(NamedTuple):
    """Work due between two steps.

    Attributes:
      evaluate: names of the evaluators to run.
      stop: whether early stopping ends the run here.
      last: whether the run ends here, early or not.
      save: whether to save a checkpoint.
    """

    evaluate: frozenset[str]
    stop: bool
    last: bool
    save: bool


def due(program: Program, step: int, history: list[dict]) -> Due:
    """Determines what is due after `step` updates.

    Args:
      program: the run's program.
      step: completed updates.
      history: the lines of the log so far. New evaluations may change the answer: a new best is
        saved, and early stopping evaluates everything.
    """
    plan, saving = program.plan, program.saving
    at_end = step == plan.total
    evaluate = {name for name, n in program.every.items() if step and (step % n == 0 or at_end)}
    decides = bool(evaluate) or (_stops_on_training(program) and is_log_step(program, step))
    stop = decides and bool(call(why_stop, program.config["train"]["stop"], history))
    is_best = bool(evaluate) and saving.best is not None and logged(history, step, saving.best[1])
    if stop:
        evaluate = program.every
    return Due(
        evaluate=frozenset(evaluate),
        stop=stop,
        last=stop or at_end,
        save=stop or at_end or is_best or (step > 0 and step % saving.every == 0),
    )


def next_steps(program: Program, step: int, profiled: range = range(0)) -> range:
    """The range of steps that one call executes from `step`: it ends where something is due.

    Args:
      program: the run's program.
      step: completed updates.
      profiled: the steps that the profiler records.
    """
    plan = program.plan
    every = *program.every.values(), program.saving.every, plan.log_every
    stops = [step - step % n + n for n in every]
    stops += [s for s in (plan.total, profiled.start, profiled.stop) if s > step]
    return range(step, min(step + plan.steps_per_call, *stops))


def is_log_step(program: Program, step: int) -> bool:
    """Whether a line of training is due after `step` updates; the end logs one, too."""
    return step > 0 and step % program.plan.log_every == 0


def _stops_on_training(program: Program) -> bool:
    key = metric_keys(program.config).get("config.train.stop.metric", "")
    return key.startswith("train/")


# -------------------------------------------------------------------------------------------- loop


def loop(run: Run, state: TrainState) -> TrainState:
    """Trains `state` until the run ends or stops early; see `drive`."""
    program, step = run.program, int(state.step)
    terms, finite = None, None
    zeros = mesh.put_replicated(program.layout, interval.zeros(program.terms))
    sums = zeros if run.sums is None else mesh.put_replicated(program.layout, run.sums)
    batches = batches_from(program, step)
    count = functools.cache(lambda n: mesh.put_replicated(program.layout, np.int32(n)))
    several, outputs = program.plan.steps_per_call > 1, lambda: (sums, terms, finite)
    with contextlib.closing(drive(run, step, lambda: state, outputs)) as calls:
        for steps in calls:
            with jax.profiler.StepTraceAnnotation("train", step_num=steps.start):
                inputs = count(len(steps)) if several else next(batches)
                if is_log_step(program, steps.start):
                    sums = zeros
                state, sums, terms, finite = program.update(
                    program.hypers, state, sums, inputs, program.resident
                )
    return state


def drive(run: Run, step: int, state: Callable, outputs: Callable) -> Iterator[range]:
    """Drives a run: yields the range of steps to execute next; between them evaluates,
    checkpoints, logs and stops. Its caller begins new sums after each step that is logged
    (`is_log_step`).

    Metrics of call k are fetched after call k+1 is dispatched; at most two calls are in flight.

    Args:
      run: the run, with its workdir open.
      step: completed updates.
      state: () -> the current TrainState.
      outputs: () -> (sums, Terms, number of finite steps) of the newest call.

    Raises:
      NotFinite: at the first step whose loss or update is not finite; it is not saved.
      Preempted: on a preemption signal, after saving the state.
    """
    program, checkpoints = run.program, run.checkpoints
    plan, history = program.plan, run.metrics.history
    profiled = runtime.profiled(program.config["runtime"]["profile"] if run.folder else "")
    written = run.folder / "profile" if len(profiled) else None
    if written and not step <= profiled.start < plan.total and not written.exists():
        span = f"this start does steps {step} to {plan.total}"
        logging.warning("config.runtime.profile: there is nothing to profile: %s", span)
    saved = set(checkpoints.steps()) if checkpoints else set()
    in_flight = None  # the newest call: (steps, sums, Terms, finite, digests)
    calls, longest = 0, 0.0  # calls so far, and seconds of the slowest

    def fetch():
        nonlocal in_flight
        if in_flight is not None:
            _log(run, *in_flight)
        in_flight = None

    with contextlib.ExitStack() as profile, ending.busy("starting"):
        if step == 0 and run.metrics.tracked and program.task.shown is not None:
            shown = program.task.shown(first_rows(program))
            run.metrics.show(0, {f"train/{name}": value for name, value in shown.items()})
        while True:
            # Evaluate.
            if is_log_step(program, step) and _stops_on_training(program):
                fetch()
            evaluated: set[str] = set()
            interrupted = False
            while names := (now := due(program, step, history)).evaluate - evaluated:
                fetch()
                ending.now_busy(f"evaluating after step {step}")
                begun = time.monotonic()
                try:
                    _evaluate(run, state(), step, sorted(names))
                    if jax.process_count() > 1:  # it is not interrupted there
                        longest = max(longest, time.monotonic() - begun)
                except ending.Ended:  # by `Preemption.interrupting`: evaluated again later
                    interrupted = True
                    break
                evaluated |= names

            # Save.
            preempted = interrupted or (
                run.preemption is not None and not now.last and run.preemption.noticed()
            )
            if checkpoints and (now.save or preempted) and step not in saved:
                fetch()
                run.progress.pause()
                run.metrics.sync()
                with saving(checkpoints, step):
                    part = unsaved.kept(program, state())
                    checkpoints.save(step, part, _pending(program, step, outputs()[0]))
                if saved:  # by now the one before is on disk
                    ending.keeps(max(saved))
                saved.add(step)
                run.progress.start()
            if now.last or preempted or step == profiled.stop:
                fetch()
                profile.close()
                if written and step == profiled.stop:
                    run.progress.say(f"profile: {written}")
            if now.last and not interrupted:
                return
            if preempted:
                if checkpoints:
                    with saving(checkpoints, step):
                        checkpoints.wait()
                raise Preempted(f"told to end: saved step {step}")

            # The caller reads the batch and steps.
            if len(profiled) and step == profiled.start:
                profile.enter_context(jax.profiler.trace(str(written)))
            steps = next_steps(program, step, profiled)
            ending.now_busy(_named(plan, steps) + ("" if calls else ", which is compiled"))
            begun = time.monotonic()
            yield steps
            step = steps.stop

            # Log. Digests are computed now: the next call reuses the state's memory.
            logs = is_log_step(program, step) or step == plan.total
            digests = tree.digests(state()) if logs else None
            fetch()
            in_flight = (steps, *outputs(), digests)
            calls += 1
            if calls > 2:  # the first one compiles
                longest = max(longest, time.monotonic() - begun)
                ending.allow(longest)


def _pending(program: Program, step: int, sums) -> dict:
    """What a checkpoint of `step` keeps of the sums: {} if they are in the log."""
    if step == 0 or is_log_step(program, step) or step == program.plan.total:
        return {}
    return interval.to_json(jax.device_get(sums), program.terms)


@contextlib.contextmanager
def saving(checkpoints: Checkpoints, step: int) -> Iterator[None]:
    """A save in progress: it may end, however long it takes, also when the run is told to end."""
    with (
        ending.busy(lambda: f"saving step {step}: {checkpoints.written()}"),
        ending.grace(math.inf),
    ):
        yield


def _named(plan, steps: range) -> str:
    name = f"step {steps.stop}" if len(steps) == 1 else f"steps {steps.start + 1} to {steps.stop}"
    return f"{name} of {plan.total}"


def batches_from(program: Program, step: int) -> Iterator[dict]:
    """Batches from `step` on; empty where the step gathers its own rows from resident data."""
    if program.resident:
        return itertools.repeat({})
    plan, config = program.plan, program.config
    source, workers = program.task.sources["train"], config.get("data", {}).get("workers", 0)
    steps = range(step, plan.total)
    return loading.train_batches(
        source, config["seed"], steps, plan.batch_size, program.layout, workers=workers
    )


def first_rows(program: Program, count: int = 16) -> dict[str, np.ndarray]:
    """The first rows of the first training batch, prepared as in a step, on the host."""
    task, plan = program.task, program.plan

    @jax.jit
    def prepared(seed, batch, resident):
        if resident:
            size = task.sources["train"].size
            batch = loading.gather(seed, 0, plan.batch_size, size, resident)
        batch = task.prepare(purpose_key(seed, "prepare"), batch, True)
        rows = jax.tree.map(lambda x: x[:count], batch)
        return jax.lax.with_sharding_constraint(rows, mesh.replicated(program.layout))

    batch: dict = {}
    if not program.resident:
        source, seed = task.sources["train"], program.config["seed"]
        args = source, seed, range(1), plan.batch_size, program.layout
        batch = next(loading.train_batches(*args))
    return jax.device_get(prepared(program.hypers["seed"], batch, program.resident))


def _log(run: Run, steps: range, sums, terms, finite, digests) -> None:
    """Fetches the outputs of a call; raises `NotFinite`, and logs if `digests` are given: means
    since the last line, and the learning rate and sparsity of this step."""
    finite, step = int(jax.device_get(finite)), steps.stop
    if finite < len(steps):
        values = {n: s / w for n, (s, w) in jax.device_get(terms).items() if np.ndim(s) == 0}
        values = {n: float(v) for n, v in values.items()}
        raise NotFinite(
            f"step {steps[finite] + 1}: loss or update is not finite: {spelled(values)}"
        )
    run.progress.done(step)
    if digests is None:
        return
    newest = {name: terms[name][0] for name in ("learning_rate", "sparsity") if name in terms}
    sums, newest = jax.device_get((sums, newest))
    values = interval.means(sums, run.program.terms) | newest
    values = {f"train/{name}": value for name, value in values.items()}
    groups = tree.group_digests(jax.device_get(digests))
    clock = {"seconds": round(run.progress.seconds(), 3), **run.progress.speeds()}
    clock = {f"time/{name}": value for name, value in clock.items()}
    run.metrics.write(step, values | {"digests": groups} | clock)
    run.progress.show(step, {n: float(v) for n, v in values.items() if np.ndim(v) == 0})


# -------------------------------------------------------------------------------------- evaluation


def eval_context(
    program: Program, state: TrainState, step: int, folder=None, show: bool = False
) -> EvalContext:
    """The evaluators' view of a state: its averaged parameters if the run keeps an average."""
    if state.average:
        params, extra = state.average["params"], state.average["extra"]
        params = tree.joined(state.params, params)
    else:
        params, extra = program.optimizer.eval_params(state.opt_state, state.params), state.extra
    return EvalContext(
        params=params,
        extra=extra,
        step=step,
        key=purpose_key(np.uint32(program.config["seed"]), "evaluate"),
        batches=lambda source, size: loading.eval_batches(source, size, program.layout),
        workdir=folder,
        show=show,
    )


def _evaluate(run: Run, state: TrainState, step: int, names: Iterable[str]) -> None:
    """Runs the evaluators whose results for this step are not yet in the log."""
    program, progress = run.program, run.progress
    names = [name for name in names if not run.metrics.has(step, f"eval/{name}/")]
    if not names:
        return
    progress.pause()
    context = eval_context(program, state, step, run.folder, run.metrics.tracked)
    for name in names:
        with run.preemption.interrupting() if run.preemption else contextlib.nullcontext():
            values = program.task.evaluators[name].run(context)
        shown = {key: value for key, value in values.items() if isinstance(value, Shown)}
        values = {key: value for key, value in values.items() if key not in shown}
        for where, key in metric_keys(program.config).items():
            if key.startswith(f"eval/{name}/"):
                choice(where, key, [f"eval/{name}/{metric}" for metric in values])
        run.metrics.write(step, {f"eval/{name}/{key}": value for key, value in values.items()})
        run.metrics.show(step, {f"eval/{name}/{key}": value for key, value in shown.items()})
        progress.say(f"step {step}  {name}: {spelled(values)}")
        for text in (value for value in values.values() if isinstance(value, str)):
            progress.say(text)
    progress.start()
