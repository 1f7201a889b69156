"""Runs trials with Ray Tune (the extra `sweep`), on this machine or on the cluster at `address`.

Ray decides where and when a trial runs, retries failures, and may stop early, by ASHA (Li et al.
2020), trials that fall behind; Optuna may choose the trials of a space. Each trial is an ordinary
run in its folder, trained by its own process, so any other launcher can continue a sweep begun by
Ray. On a cluster, all machines must see the workdir, and the project must have the same path on
each.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from common import config
from common.errors import BadInput, Preempted
from common.runs import log
from common.runs.files import absolute, replace_text
from common.sweeps import launch, sweep, trials
from common.sweeps.sweep import Overrides
from common.sweeps.trials import FAILED, STOPPED
from common.sweeps.trials import folder_name as _name
from common.training.saved import read_config

SECONDS = 0.5  # between polls of a log
ENDLESS = 10**12  # steps; ASHA's upper limit, beyond any run


class Options(NamedTuple):
    """Settings for Ray.

    Attributes:
      address: of a cluster, or "auto"; "" starts Ray on this machine.
      at_once: maximum number of concurrent trials.
      cpus, gpus: per trial; Ray only counts them, and a fraction of a GPU is shared.
      retries: how often a failed trial is retried.
      metric: (sign, log key), the sign 1 for max and -1 for min: the objective of ASHA and Optuna;
        None if neither is used.
      grace: steps before ASHA may stop a trial; None disables early stopping.
    """

    address: str
    at_once: int
    cpus: float
    gpus: float
    retries: int
    metric: tuple[int, str] | None
    grace: int | None


def run(
    pending: Sequence[Overrides],
    command: Callable[[Overrides], list[str]],
    root: str,
    options: Options,
    look: Callable[[], None],
    *,
    space: sweep.Space | None = None,
    count: int = 0,
) -> None:
    """Runs trials until each has finished, failed or been stopped early.

    Args:
      pending: overrides of the trials to run; with a space, of the first ones to try.
      command: overrides -> the command line that trains the trial.
      root: folder of the sweep.
      options: settings for Ray.
      look: called about once a second, by a thread, to display the trials' progress.
      space: from which Optuna chooses trials, given the results of the finished ones.
      count: total number of trials of a space.

    Raises:
      BadInput: if Ray or Optuna is missing, or the cluster does not exist.
    """
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is for `_started`
    # A trial is told to end, and saves, when its Ray worker ends; Ray itself would kill it.
    os.environ["RAY_kill_child_processes_on_worker_exit"] = "false"  # noqa: SIM112
    ray = _need("ray")
    tune, schedulers = _need("ray.tune"), _need("ray.tune.schedulers")
    root = os.fspath(absolute(root))
    sign, metric = options.metric or (1, None)
    cwd, per_gpu = os.getcwd(), int(1 / options.gpus) if 0 < options.gpus < 1 else 1

    def overrides_of(settings: dict) -> Overrides:
        return settings["overrides"] if space is None else _decoded(space, settings)

    def trainable(settings):
        """Trains one trial, in a Ray worker."""
        overrides = overrides_of(settings)
        name, words = _name(overrides), command(overrides)
        # Ray's workers have their own working directories; paths in the config may be relative.
        process, output = launch.start_process(words, root, name, per_gpu, cwd)
        _follow(process, output, epath.Path(root) / name, metric, tune.report)

    class Stops(tune.Callback):
        """Records which trials were stopped early."""

        def on_trial_complete(self, iteration, trials, trial, **info):
            folder = epath.Path(root) / _name(overrides_of(trial.config))
            if options.grace and not (folder / "result.json").exists():
                step = trial.last_result.get("step")
                replace_text(folder / STOPPED, f"ended by ASHA at step {step}\n")

    search, parameters, samples = None, {"overrides": tune.grid_search(list(pending))}, 1
    if space is not None:
        search, known = _optuna(space, pending, root, options)
        parameters, samples = {}, count - known
    asha = options.grace and schedulers.ASHAScheduler(
        time_attr="step", max_t=ENDLESS, grace_period=options.grace
    )
    with _started(ray, options), _watching(look):
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": options.cpus, "gpu": options.gpus}),
            param_space=parameters,
            tune_config=tune.TuneConfig(
                metric=metric,
                mode=metric and ("max" if sign > 0 else "min"),
                scheduler=asha or None,
                search_alg=search,
                num_samples=samples,
                max_concurrent_trials=options.at_once,
            ),
            run_config=tune.RunConfig(
                storage_path=os.path.join(root, "ray"),
                failure_config=tune.FailureConfig(max_failures=options.retries),
                callbacks=[Stops()],
                verbose=0,
            ),
        ).fit()


def _need(module: str):
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise BadInput(
            f"--launcher ray: {error.name} is missing: pip install -e '.[sweep]'"
        ) from error


@contextlib.contextmanager
def _started(ray, options: Options) -> Iterator[None]:
    try:
        ray.init(
            address=options.address or "local",
            include_dashboard=False if not options.address else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except ConnectionError as error:
        raise BadInput(f"--address: no cluster at {options.address!r}: {error}") from error

    signals = []

    def interrupt(number, _frame):
        signals.append(number)
        raise KeyboardInterrupt

    old = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except BaseException as error:  # Ray wraps the interrupt in errors of its own
        if signals:
            raise Preempted("told to end: the trials have saved, or are saving") from error
        raise
    finally:
        ray.shutdown()
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _watching(look: Callable[[], None]) -> Iterator[None]:
    done = threading.Event()

    def watch():
        while not done.wait(SECONDS):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(process, output: str, folder: epath.Path, metric: str | None, report: Callable) -> None:
    """Reports a trial's evaluations as they are logged, until its process ends. Raises if it fails.

    When Ray ends this process early, the trial is told to end, and saves.
    """
    last_step = -1
    while True:
        ended = process.poll() is not None
        for line in log.tail(folder):
            if line["step"] > last_step and (metric is None or metric in line):
                last_step = line["step"]
                report({"step": last_step} | ({metric: line[metric]} if metric else {}))
        if ended:
            break
        time.sleep(SECONDS)
    reason = launch.failure(process.returncode, output)
    if reason:
        trials.note_failure(folder, trials.noted(folder / FAILED) or reason)
        raise RuntimeError(trials.noted(folder / FAILED))
    if process.returncode:
        raise RuntimeError("told to end, and saved")
    if last_step < 0:
        raise RuntimeError(f"its log has no {metric}")


# ------------------------------------------------------------------------------------------ Optuna


def chosen(space: sweep.Space, root) -> list[Overrides]:
    """The trials of a space that have begun in `root`, read from their folders."""
    begun = []
    for folder in sorted(epath.Path(root).glob("*/config.json")):
        try:
            flat = config.flatten(read_config(folder.parent))
        except BadInput:  # damaged: its standing says so
            continue
        overrides = {key: _own(spec, flat.get(key)) for key, spec in space.items()}
        if _name(overrides) == folder.parent.name:
            begun.append(overrides)
    return begun


def _own(spec, value):
    """A config value in the type that the space declares: 0 may be 0.0 there."""
    if isinstance(spec, sweep.Choice) and value in spec.options:
        return spec.options[spec.options.index(value)]
    return int(value) if isinstance(spec, sweep.Integers) and value is not None else value


def _decoded(space: sweep.Space, settings: dict) -> Overrides:
    """Optuna's settings as overrides: it chooses among options by index."""
    value = lambda spec, x: spec.options[x] if isinstance(spec, sweep.Choice) else x
    return sweep.rounded({key: value(spec, settings[key]) for key, spec in space.items()})


def _encoded(space: sweep.Space, overrides: Overrides) -> dict:
    """The inverse of `_decoded`."""
    number = lambda spec, x: spec.options.index(x) if isinstance(spec, sweep.Choice) else x
    return {key: number(spec, overrides[key]) for key, spec in space.items()}


def _optuna(space: sweep.Space, pending: Sequence[Overrides], root: str, options: Options):
    """(search algorithm, number of finished trials it knows); `pending` trials are tried first."""
    optuna = _need("optuna")
    distributions = optuna.distributions
    kinds = {
        sweep.LogUniform: lambda d: distributions.FloatDistribution(d.low, d.high, log=True),
        sweep.Integers: lambda d: distributions.IntDistribution(d.low, d.high),
        sweep.Choice: lambda d: distributions.CategoricalDistribution(range(len(d.options))),
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sign, metric = options.metric
    known = []
    for overrides in chosen(space, root):
        folder = epath.Path(root) / _name(overrides)
        values = [line[metric] for line in log.tail(folder) if metric in line]
        if overrides not in pending and values:
            known.append((overrides, values[-1]))
    search = _need("ray.tune.search.optuna").OptunaSearch(
        space={key: kinds[type(spec)](spec) for key, spec in space.items()},
        metric=metric,
        mode="max" if sign > 0 else "min",
        points_to_evaluate=[_encoded(space, overrides) for overrides in pending] or None,
        seed=len(known),  # a fixed seed would repeat the first trials
    )
    for overrides, value in known:
        search.add_evaluated_point(_encoded(space, overrides), value)
    return search, len(known)
