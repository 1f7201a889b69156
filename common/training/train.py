"""Training: `run` trains a config in a workdir to completion, resuming what is already there.

Everything a step computes is a function of (config, seed, step), so only the state is saved, and a
run that was killed and resumed ends with the same bits as an uninterrupted one.
"""

import contextlib
import errno
import logging
import os
import zlib
from collections.abc import Iterator

import jax

from common import imports, tree
from common.compress import quantize
from common.config import flatten, in_full
from common.data import loading
from common.devices import agreement, chips, code, ending, memory, mesh, runtime, terminal
from common.errors import BadInput, CannotWrite, NotFinite, require
from common.runs import checkpoint, files, log, mending, workdir
from common.runs import facts as run_facts
from common.runs.history import best_steps, last_speeds, last_values, why_stop
from common.runs.progress import Progress
from common.sections import call
from common.training import extended, frozen, interval, unsaved, watched
from common.training.loop import Run, loop, saving
from common.training.program import Program, described_count, initial_state, prepare, sections
from common.training.saved import read_config
from common.training.step import TrainState

NO_ROOM = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
# Where batches of worker processes, and temporary files, are.
SHARED_PLACES = "/dev/shm", os.environ.get("TMPDIR", "/tmp")


def run(config, folder, *, show: bool = True) -> dict:
    """Trains a config in a workdir, resuming if it holds a run, and returns the result.

    Args:
      config: a `ConfigDict` or nested dicts; keys that it leaves out have their defaults.
      folder: the workdir, created if needed; scripts/README.md describes its files.
      show: whether to print progress to standard error.

    Returns:
      The contents of `result.json`: steps, eval, wall_seconds, examples_per_second, digest,
      parameters; tokens_per_second and mfu where they apply; sparsity, of a run that prunes (the
      share of zeros among what it prunes); `stopped`, {step, reason}, if early
      stopping ended it.

    Raises:
      BadInput, NotFinite, Preempted, CannotWrite: see `common.errors`.
    """
    config = in_full(config, sections)
    with contextlib.suppress(OSError):  # `Lock` says what is wrong with the folder
        for step in checkpoint.steps_in(folder)[-1:]:
            ending.keeps(step)
    with ending.busy("joining the other processes"):
        call(runtime.start, config["runtime"])
    _check_same_start(config, folder)
    call(log.log_section, config["log"])
    # Lock the workdir before reading the data, which can take long.
    with workdir.Lock(folder) as lock, refusals(folder), ending.busy("starting"):
        with agreement.together():  # before the data are read, which another key may be wrong for
            if workdir.begun(folder) and not config["init"].get("adopt"):
                workdir.check_same(folder, read_config(folder), config)
        return run_program(prepare(config), folder, lock, show)


def _check_same_start(config: dict, folder) -> None:
    """Raises `BadInput` in all processes of a run unless all were started alike: with the same
    config, workdir, code and versions. Otherwise they would do different things in turn, and wait
    for each other for ever."""
    flat = flatten(config)
    facts = {f"config.{key}": repr(value) for key, value in flat.items()}
    facts["--workdir"] = str(files.absolute(folder))
    facts |= flatten(runtime.versions(code.named(flat)))
    agreement.require_same(facts, "start all of them with the same command and code")


def run_program(program: Program, folder, lock: workdir.Lock, show: bool = True) -> dict:
    """`run` for a program that is already prepared."""
    with jax.set_mesh(program.layout.mesh), begun(program, folder, lock, show) as (opened, state):
        with ending.Preemption() as preemption:
            state = loop(opened._replace(preemption=preemption), state)
        return finish(opened, state)


@contextlib.contextmanager
def refusals(folder):
    """Turns file system errors in the workdir into `CannotWrite`, naming the checkpoint kept."""
    disk_errors = (*workdir.FULL, errno.EROFS)
    try:
        yield
    except OSError as error:
        own = os.fspath(files.absolute(folder))
        full = memory.full_place(own, *SHARED_PLACES) if error.errno in NO_ROOM else None
        where = os.fspath(error.filename or full or own)
        inside = where.startswith(own)
        if error.errno is None or not (inside or error.errno in disk_errors):
            raise
        kept = checkpoint.steps_in(folder)[-1:]
        raise CannotWrite(
            f"{os.strerror(error.errno).lower()}: {where}; "
            + (f"the checkpoint of step {kept[0]} is intact" if kept else "no step is saved yet")
            + ("; free some space" if error.errno in NO_ROOM else "; fix that")
            + " and run the same command again"
        ) from error


@contextlib.contextmanager
def begun(
    program: Program,
    folder,
    lock: workdir.Lock,
    show: bool,
    population: int = 1,
    first: TrainState | None = None,
) -> Iterator[tuple[Run, TrainState]]:
    """Claims `folder` for a run, restores what it resumes from, and closes everything afterwards.

    Args:
      program: the program to run.
      folder, lock: the workdir and its lock.
      show: whether to print progress to standard error.
      population: number of runs trained as one program, recorded in environment.json.
      first: the state that a new run begins with; None is that of step 0.

    Yields:
      (Run, TrainState): the state is restored, or the first one.
    """
    require(first is not None or not quantize.of(program.config).after, quantize.no_training())
    config, layout = program.config, program.layout
    devices = layout.mesh.local_devices
    memory.require_fits(program.like, devices, "the state of this model", "config.model")
    for where, batch in _largest_batches(program).items():
        memory.require_fits(batch, devices, "a batch of this size", where)
    # Reject a bad `config.init` before writing anything.
    resumes = any(agreement.gather(workdir.begun(folder), "to look into the workdir"))
    ending.now_busy("initialising the model")
    fresh = None if resumes else first or initial_state(program)
    main, before = runtime.is_main(), workdir.before(folder)
    fingerprints = frozen.fingerprints(program.task, program.hypers)
    if resumes:
        with agreement.together():
            _check_resumes(program, folder)
    others = unsaved.read(program, folder) if resumes else unsaved.of_state(program, fresh)
    base = {"base": tree.hexdigest(others)} if others else {}
    watched.check(program, fresh, folder)
    length = workdir.last_start(folder).get("steps")

    folder, history, checkpoints, started = files.absolute(folder), [], None, False
    try:
        workdir.claim(
            folder,
            config,
            fingerprints,
            read=read_config,
            write=main,
            lock=lock,
            keep=run_facts.contents(program.task),
            facts={
                "steps": program.plan.total,
                "population": population,
                "folders": imports.folders_of(code.own(flatten(config))),
                "kept": run_facts.digests(program.task),
                **base,
            },
        )
        run_of = workdir.identity(config, fingerprints) | base
        checkpoints = checkpoint.Checkpoints(folder, program.saving, lambda: history, run_of)
        ending.now_busy("reading the checkpoint")
        restored = checkpoints.restore(unsaved.kept(program, program.like))
        if restored:
            state, step = unsaved.restored(program, restored[0], others), restored[1]
        else:
            state = fresh or initial_state(program)
            step = int(state.step)
        sums = interval.from_json(checkpoints.beside(step) if restored else {}, program.terms)
        jump = extended.jump(program, length, step) if isinstance(length, int) else ""
        if main and jump:
            logging.warning("%s", jump)
        # A percentage may refer to an earlier, different duration.
        log_every = 0 if "%" in config["train"]["log_every"] else program.plan.log_every
        if first is None:
            mending.mend_log(folder, step, log_every, main)
        name = f"{folder.name}-{zlib.crc32(str(folder).encode()):08x}"
        options = call(log.log_section, config["log"])
        metrics = log.Log(folder, step, writing=main, name=name, config=config, **options)
        history = metrics.history
        progress = _progress(program, history, step, show and main)
        if show and main and files.can_append(folder):
            terminal.copy_to(folder / "console.log")
        progress.say(_headline(program, folder, step))
        started = True
        with contextlib.closing(metrics):
            yield Run(program, metrics, progress, checkpoints, folder=folder, sums=sums), state
    except NotFinite as error:
        checkpoints.wait()
        kept = checkpoints.steps()
        raise NotFinite(
            f"{error}; newest checkpoint in {folder}: {kept[-1] if kept else 'none'}. "
            "Lower config.optim.lr, or set config.optim.clip, in a new workdir"
        ) from None
    except BadInput:
        if not (resumes or started) and main:
            if checkpoints is not None:
                checkpoints.close()
            workdir.retract(folder, before)
        raise
    except Exception as error:
        error.workdir = folder  # where `cli` writes the traceback
        raise
    finally:
        if checkpoints is not None:
            checkpoints.close()


def _check_resumes(program: Program, folder) -> None:
    """Raises `BadInput` unless `program` may go on with the run in `folder`."""
    workdir.check_same(folder, read_config(folder), program.config)
    done, total = checkpoint.steps_in(folder), program.plan.total
    require(
        not done or done[-1] <= total,
        f"config.train.duration: {total} steps, but {folder} has done {done[-1:]}; a shorter run "
        "is another one: use another --workdir",
    )


def _largest_batches(program: Program) -> dict[str, dict]:
    """{config key: abstract batch} of training and of the evaluators."""
    by_batch, sources = mesh.batch_sharding(program.layout), program.task.sources
    sizes = {"config.train.batch_size": (sources["train"], program.plan.batch_size)}
    for name, section in program.config.get("evals", {}).items():
        if "batch_size" in section:
            where = f"config.evals.{name}.batch_size"
            sizes[where] = sources.get(name, sources["train"]), section["batch_size"]
    return {
        where: loading.batch_shapes(source, size, by_batch)
        for where, (source, size) in sizes.items()
    }


def finish(run: Run, state: TrainState) -> dict:
    """Writes and returns the result of a run that ended in `state`."""
    run.metrics.sync()
    with saving(run.checkpoints, int(state.step)):
        run.checkpoints.wait()
    ending.keeps(int(state.step))
    history = run.metrics.history
    result = {
        "steps": int(state.step),
        "eval": last_values(history, int(state.step)),
        "wall_seconds": round(run.progress.seconds(), 2),
        "examples_per_second": None,
        **last_speeds(history),
        "digest": tree.hexdigest(state),
        "parameters": tree.count(state.params) - run.program.task.padding,
    }
    if run.program.optimizer.sparsity is not None:
        result["sparsity"] = float(run.program.optimizer.sparsity(state.opt_state))
    if result["steps"] < run.program.plan.total:
        reason = call(why_stop, run.program.config["train"]["stop"], history)
        result["stopped"] = {"step": result["steps"], "reason": reason}
        run.progress.say(f"stopped early at step {result['steps']} because {reason}")
    _say_best(run, history)
    before = workdir.read_result(run.folder) or {}
    # An older version counted the rows that pad tables, too.
    counts = result["parameters"], tree.count(state.params)
    same = all(before.get(k) == result[k] for k in ("steps", "eval", "digest"))
    if same and before.get("parameters") in counts:
        return before  # already finished: keep its original timings
    if runtime.is_main():
        workdir.finish(run.folder, result)
    return result


def _say_best(run: Run, history: list[dict]) -> None:
    """Names the checkpoint that is the best by `config.checkpoint.best`."""
    best, saved = run.program.saving.best, run.checkpoints.steps()
    for step in [step for step in best_steps(best, history) if step in saved][:1]:
        value = next(line[best[1]] for line in history if line["step"] == step and best[1] in line)
        run.progress.say(f"best: {best[1]} {value:.6g} at step {step} (--step best)")


def _progress(program: Program, history: list[dict], step: int, show: bool) -> Progress:
    """The run's clock, continuing from the last line of its log."""
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
    start = f"resuming at step {step}" if step else "starting"
    if step == plan.total:
        start = "finished"
    return (
        f"{program.config['task']}: {described_count(program)}, "
        f"{task.sources['train'].size:,} examples, {plan.total} steps of {plan.batch_size} on "
        f"{len(devices)} {devices[0].device_kind}; {start}, in {folder}"
    )
