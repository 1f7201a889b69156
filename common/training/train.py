"""The training program: `run` takes a config and a workdir to a finished run; it reads top to
bottom.

Everything that a step computes is a function of (config, seed, step), so nothing but the state is
saved, and a run that was killed ends bit for bit like one that was not.
"""

import contextlib
import errno
import functools
import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from common import tree
from common.config import call, plain
from common.data import loading
from common.devices import chips, mesh, runtime
from common.devices.agreement import gather
from common.errors import choice, require
from common.runs import checkpoint, log, workdir
from common.runs.files import absolute
from common.runs.history import (
    best_steps,
    last_speeds,
    last_values,
    metric_keys,
    parse_best,
    should_stop,
)
from common.runs.progress import Progress, spelled
from common.task import EvalContext, purpose_key
from common.training.program import Program, initial_state, prepare
from common.training.step import TrainState


class NotFinite(Exception):
    """The loss or the update of a step is NaN or infinite."""


class Preempted(Exception):
    """The state is saved; run the same command again to go on."""


class CannotWrite(Exception):
    """The file system takes no more: it is full, say. The newest checkpoint is whole."""


# ------------------------------------------------------------------------------- evaluation and
# loop


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
        batches=lambda source, size: loading.eval_batches(source, size, program.layout),
        workdir=folder,
    )


def loop(
    program: Program,
    state: TrainState,
    metrics: log.Log,
    progress: Progress,
    checkpoints: checkpoint.Checkpoints | None = None,
    preemption: runtime.Preemption | None = None,
    folder=None,
) -> TrainState:
    """Takes `state` to the end of the run, or to where it stops early; see `course`."""
    step, terms, made = int(state.step), None, None
    batches = batches_from(program, step)
    count = functools.cache(lambda n: mesh.put_replicated(program.layout, np.int32(n)))
    around = metrics, progress, checkpoints, preemption, folder
    with contextlib.closing(
        course(program, step, lambda: state, lambda: (terms, made), *around)
    ) as steps:
        for now in steps:
            with jax.profiler.StepTraceAnnotation("train", step_num=now.start):
                if program.steps is None:
                    update, given = program.step, next(batches)
                else:
                    update, given = program.steps, count(len(now))
                state, terms, made = update(program.hypers, state, given, program.resident)
    return state


def course(
    program: Program,
    step: int,
    state: Callable,
    numbers: Callable,
    metrics: log.Log,
    progress: Progress,
    checkpoints: checkpoint.Checkpoints | None = None,
    preemption: runtime.Preemption | None = None,
    folder=None,
) -> Iterator[range]:
    """What a run does around its updates, from `step` on: yields the numbers of those that are to
    be made next, by one call, and ends where the run does.

    What is due after a step (evaluation, a save) is found from its number and the log, so a run
    that was cut anywhere does what is missing and no more. A call's numbers are read while the
    next one runs, and no more than two are in flight.

    Args:
      state: () -> the TrainState as it is now.
      numbers: () -> what the newest call gave: (Terms, how many of its steps were finite).

    Raises:
      NotFinite: at the first step whose loss or update is not finite; it is not saved.
      Preempted: when the process was told to end; the state is saved.
    """
    plan = program.plan
    profiled = runtime.profiled(program.config["runtime"]["profile"] if folder else "")
    best_key = program.saving.best and program.saving.best[1]
    stopping = program.config["train"]["stop"]
    stop_key = metric_keys(program.config).get("config.train.stop.metric", "")
    saved = set(checkpoints.steps()) if checkpoints else set()
    pending = None

    def observe():
        nonlocal pending
        if pending is not None:
            _read(*pending, metrics, progress)
        pending = None

    def evaluate(names):
        observe()
        _evaluate(program, state(), step, sorted(names), metrics, progress, folder)

    with contextlib.ExitStack() as profile:
        while True:
            end = step == plan.total
            due = {name for name, n in program.every.items() if step and (step % n == 0 or end)}
            if due:
                evaluate(due)
            stop = False
            if due or (stop_key.startswith("train/") and step and step % plan.log_every == 0):
                observe()
                stop = call(should_stop, stopping, metrics.history)
            if stop:
                evaluate(program.every)
            last = stop or end
            told = preemption is not None and not last and preemption.noticed()
            is_best = bool(due) and best_key is not None and metrics.has(step, best_key)
            save = last or told or is_best or (step and step % program.saving.every == 0)
            if checkpoints and save and step not in saved:
                observe()
                progress.pause()
                metrics.sync()
                checkpoints.save(step, state())
                saved.add(step)
                progress.start()
            if last or told or step == profiled.stop:
                observe()
                profile.close()
            if last:
                return
            if told:
                if checkpoints:
                    checkpoints.wait()
                raise Preempted(f"told to end: saved step {step}")

            if len(profiled) and step == profiled.start:
                profile.enter_context(jax.profiler.trace(str(folder / "profile")))
            now = _next_call(program, step, profiled)
            yield now
            step = now.stop
            # Before the next update is made, which takes the state's memory.
            logs = step % plan.log_every == 0 or step == plan.total
            digests = tree.digests(state()) if logs else None
            observe()
            pending = (now, *numbers(), digests)


def _next_call(program: Program, step: int, profiled: range) -> range:
    """The steps that are made by one call from `step` on: none behind one after which something is
    due."""
    plan = program.plan
    every = *program.every.values(), program.saving.every, plan.log_every
    due = [step - step % n + n for n in every]
    due += [s for s in (plan.total, profiled.start, profiled.stop) if s > step]
    return range(step, min(step + plan.steps_per_call, *due))


def batches_from(program: Program, step: int) -> Iterator[dict]:
    """The batches from `step` on; empty ones where the step gathers its own from resident data."""
    if program.resident:
        return itertools.repeat({})
    plan, config = program.plan, program.config
    source, workers = program.task.sources["train"], config.get("data", {}).get("workers", 0)
    return loading.train_batches(
        source, config["seed"], step, plan.total, plan.batch_size, program.layout, workers
    )


def _read(now: range, terms, made, digests, metrics: log.Log, progress: Progress) -> None:
    """Reads what a call computed: stops at what is not finite, logs what is due (`digests`)."""
    made, step = int(jax.device_get(made)), now.stop
    if made < len(now):
        values = {n: s / w for n, (s, w) in jax.device_get(terms).items() if np.ndim(s) == 0}
        values = {n: float(v) for n, v in values.items()}
        raise NotFinite(f"step {now[made] + 1}: loss or update is not finite: {spelled(values)}")
    progress.done(step)
    if digests is None:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {f"train/{n}": s / w for n, (s, w) in jax.device_get(terms).items()}
    groups = tree.group_digests(jax.device_get(digests))
    clock = {"seconds": round(progress.seconds(), 3), **progress.speeds()}
    clock = {f"time/{name}": value for name, value in clock.items()}
    metrics.write(step, values | {"digests": groups} | clock)
    progress.show(step, {n: float(v) for n, v in values.items() if np.ndim(v) == 0})


def _evaluate(
    program: Program, state, step: int, names, metrics: log.Log, progress, folder
) -> None:
    """Runs the evaluators that the log does not hold yet for this step."""
    names = [name for name in names if not metrics.has(step, f"eval/{name}/")]
    if not names:
        return
    progress.pause()
    context = eval_context(program, state, step, folder)
    for name in names:
        values = program.task.evaluators[name].run(context)
        for where, key in metric_keys(program.config).items():
            if key.startswith(f"eval/{name}/"):
                choice(where, key, [f"eval/{name}/{metric}" for metric in values])
        metrics.write(step, {f"eval/{name}/{key}": value for key, value in values.items()})
        progress.say(f"step {step}  {name}: {spelled(values)}")
        for text in (value for value in values.values() if isinstance(value, str)):
            progress.say(text)
    progress.start()


# --------------------------------------------------------------------------------------------- run


def run(config, folder, *, show: bool = True) -> dict:
    """Trains a config in a workdir, from wherever it stands, and returns the result.

    Args:
      config: a completed config (`common.config.load`).
      folder: the workdir; created if need be. What it holds: see README.md.
      show: whether to print progress on standard error.

    Returns:
      What `result.json` holds: steps, eval, wall_seconds, examples_per_second, digest, parameters;
      tokens_per_second and mfu where they apply.

    Raises:
      BadInput, NotFinite, Preempted, CannotWrite: see there.
    """
    config = config if isinstance(config, dict) else plain(config)
    call(runtime.start, config["runtime"])
    call(log.options, config["log"])
    # The workdir is taken before the data is read, which may take long.
    with workdir.Lock(folder) as lock, refusals(folder):
        return run_program(prepare(config), folder, lock, show)


def run_program(program: Program, folder, lock: workdir.Lock, show: bool = True) -> dict:
    """`run` from where its program is made ready."""
    with jax.set_mesh(program.layout.mesh), begun(program, folder, lock, show) as here:
        with runtime.Preemption() as preemption:
            around = here.metrics, here.progress, here.checkpoints, preemption, here.folder
            state = loop(program, here.state, *around)
        return finish(here, state)


class Begun(NamedTuple):
    """A run whose workdir is open.

    Attributes:
      program, folder: of the run.
      state, step: what it begins with, or goes on from.
      metrics, progress, checkpoints: open.
    """

    program: Program
    folder: epath.Path
    state: TrainState
    step: int
    metrics: log.Log
    progress: Progress
    checkpoints: checkpoint.Checkpoints


@contextlib.contextmanager
def refusals(folder):
    """Raises `CannotWrite`, with what is kept, for what the file system refuses in the workdir."""
    refused = (*workdir.FULL, errno.EROFS)
    try:
        yield
    except OSError as error:
        where = os.fspath(error.filename or absolute(folder))
        inside = where.startswith(os.fspath(absolute(folder)))
        if error.errno is None or not (inside or error.errno in refused):
            raise
        kept = checkpoint.steps_in(folder)[-1:]
        raise CannotWrite(
            f"{os.strerror(error.errno).lower()}: {where}; "
            + (f"the checkpoint of step {kept[0]} is whole" if kept else "no step is saved yet")
            + ("; make room" if error.errno in workdir.FULL else "; mend that")
            + " and run the same command again"
        ) from error


@contextlib.contextmanager
def begun(
    program: Program, folder, lock: workdir.Lock, show: bool, population: int = 1
) -> Iterator[Begun]:
    """Makes `folder` the run's own, finds what it goes on from, and closes everything behind it.

    Args:
      program: of the run.
      folder, lock: its workdir.
      show: whether to print progress on standard error.
      population: how many runs are trained as one program; environment.json says it.
    """
    config = program.config
    # What the user asked to begin with is found, or found missing, before anything is written.
    there = any(gather(workdir.begun(folder)))
    fresh = None if there else initial_state(program)
    done = checkpoint.steps_in(folder)
    require(
        not done or done[-1] <= program.plan.total,
        f"config.train.duration: {program.plan.total} steps, and {folder} has done {done[-1:]}",
    )
    prints = {name: source.fingerprint for name, source in program.task.sources.items()}
    main, files = runtime.is_main(), program.task.files
    facts = {"steps": program.plan.total, "population": population}
    folder = workdir.claim(folder, config, prints, main, files, lock, facts)

    history: list[dict] = []
    checkpoints = checkpoint.Checkpoints(folder, program.saving, lambda: history)
    try:
        restored = checkpoints.restore(program.like)
        state, step = restored or (fresh or initial_state(program), 0)
        # A percentage may have been of another duration.
        log_every = 0 if "%" in config["train"]["log_every"] else program.plan.log_every
        workdir.mend_log(folder, step, log_every, main)
        name = f"{folder.name}-{zlib.crc32(str(folder).encode()):08x}"
        options = call(log.options, config["log"])
        metrics = log.Log(folder, step, writing=main, name=name, config=config, **options)
        history = metrics.history
        progress = _progress(program, history, step, show and main)
        progress.say(_headline(program, folder, step))
        with contextlib.closing(metrics):
            yield Begun(program, folder, state, step, metrics, progress, checkpoints)
    except NotFinite as error:
        checkpoints.wait()
        kept = checkpoints.steps()
        raise NotFinite(
            f"{error}; newest checkpoint in {folder}: {kept[-1] if kept else 'none'}. "
            "Lower config.optim.lr, or set config.optim.clip, in a new workdir"
        ) from None
    finally:
        checkpoints.close()


def finish(here: Begun, state: TrainState) -> dict:
    """Writes, and returns, the result of a run that came to its end in `state`."""
    here.metrics.sync()
    here.checkpoints.wait()
    history = here.metrics.history
    result = {
        "steps": int(state.step),
        "eval": last_values(history, int(state.step)),
        "wall_seconds": round(here.progress.seconds(), 2),
        "examples_per_second": None,
        **last_speeds(history),
        "digest": tree.hexdigest(state),
        "parameters": tree.count(state.params),
    }
    before = workdir.read_result(here.folder) or {}
    if all(before.get(k) == result[k] for k in ("steps", "eval", "digest", "parameters")):
        return before  # finished before: what it took is what it took then
    if runtime.is_main():
        workdir.finish(here.folder, result)
    return result


def _progress(program: Program, history: list[dict], step: int, show: bool) -> Progress:
    """The clock of a run, going on from the last line of its log."""
    clocks = [line["time/seconds"] for line in history if "time/seconds" in line]
    plan, task, devices = program.plan, program.task, program.layout.mesh.devices
    return Progress(
        plan.total,
        plan.batch_size,
        step,
        max(clocks, default=0.0),
        show,
        flops=task.flops,
        tokens=task.tokens,
        chip=chips.of(devices.flat[0].device_kind),
        devices=devices.size,
    )


def _headline(program: Program, folder, step: int) -> str:
    task, plan = program.task, program.plan
    devices = jax.devices()
    begun = f"going on at step {step}" if step else "starting"
    return (
        f"{program.config['task']}: {tree.count(program.like.params):,} parameters, "
        f"{task.sources['train'].size:,} examples, {plan.total} steps of {plan.batch_size} on "
        f"{len(devices)} {devices[0].device_kind}; {begun}, in {folder}"
    )


def evaluate_run(folder, step: str = "latest", sets: list[str] | None = None) -> dict:
    """Evaluates a checkpoint of a finished or unfinished run, exactly as training does.

    Args:
      folder: the workdir.
      step: "latest", "best" (by config.checkpoint.best), or a step's number.
      sets: names of the run's evaluators, or splits of its data set such as "test[:1000]", which
        the run's first evaluator then reads; None is all of its evaluators.

    Returns:
      {"step": …, "eval": {NAME or SPLIT: {metric: value}}}.

    Raises:
      BadInput: if there is no such run, step or set.
    """
    config = workdir.read_config(folder)
    evals = config["evals"]
    require(bool(evals), f"{folder}: the run has no evaluators")
    # What is no evaluator's name is a split, which the run's first evaluator then reads.
    named = {name: name if name in evals else f"split {name}" for name in sets or evals}
    first = next(iter(evals.values()))
    for name in set(named) - set(evals):
        require("split" in first, f"--set: {name!r}: the run has {', '.join(evals)}, and no splits")
        evals = evals | {named[name]: first | {"split": name}}
    with opened(config | {"evals": evals}, folder, step) as (program, state, number):
        context = eval_context(program, state, number, folder)
        values = {name: program.task.evaluators[key].run(context) for name, key in named.items()}
    return {"step": number, "eval": values}


@contextlib.contextmanager
def opened(config: dict, folder, step: str = "latest"):
    """A run's program and the state of one of its checkpoints, with its mesh set.

    Args:
      config: the run's, perhaps with other evaluators.
      folder: the workdir.
      step: "latest", "best" (by config.checkpoint.best), or a step's number.

    Yields:
      (Program, TrainState, step).

    Raises:
      BadInput: if there is no such checkpoint.
    """
    call(runtime.start, config["runtime"])
    program = prepare(config)
    prints = {name: source.fingerprint for name, source in program.task.sources.items()}
    workdir.check_data(absolute(folder), prints)
    with contextlib.closing(checkpoint.Checkpoints(folder)) as checkpoints:
        number = None
        if step == "best":
            best = parse_best("config.checkpoint.best", config["checkpoint"]["best"])
            require(best is not None, "--step best: the run's config.checkpoint.best is not set")
            there = checkpoints.steps()
            kept = [s for s in best_steps(best, workdir.read_log(folder)) if s in there]
            require(bool(kept), f"--step best: no checkpoint in {folder} has that evaluation")
            number = kept[0]
        elif step != "latest":
            require(step.isdigit(), f"--step: {step!r} is not 'latest', 'best' or a number")
            number = int(step)
        with jax.set_mesh(program.layout.mesh):
            restored = checkpoints.restore(program.like, number)
            require(restored is not None, f"{folder}: no checkpoint there")
            yield program, *restored
