"""Trials by Ray Tune (the extra `sweep`): on this machine, or on the cluster that `address` names.

Ray decides where and when a trial runs, tries again what failed, and may end early, by ASHA (Li et
al. 2020), what falls behind; Optuna may choose the trials of a space. Each is an ordinary run in
its folder, trained by a process of its own, so that a sweep begun by Ray goes on with any other
launcher. On a cluster the workdir must be one that all machines see, and the project must lie at
the same place on each.
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

SECONDS = 0.5  # between two looks at a log
ENDLESS = 10**12  # steps, for ASHA, to which the length of a run is nothing


class Options(NamedTuple):
    """What Ray is asked for.

    Attributes:
      address: of a cluster, or "auto"; "" starts Ray on this machine.
      at_once: trials at a time, at most.
      cpus, gpus: of each trial; Ray counts them, and a fraction of a GPU is shared.
      retries: how often a trial that failed is tried again.
      metric: (sign, key of the log), the sign 1 for max and -1 for min: what ASHA and Optuna go by;
        None where neither is asked for.
      grace: steps before ASHA may end a trial; None is no early end.
    """

    address: str
    at_once: int
    cpus: float
    gpus: float
    retries: int
    metric: tuple[int, str] | None
    grace: int | None


def run(
    given: Sequence[Overrides],
    command: Callable[[Overrides], list[str]],
    root: str,
    options: Options,
    look: Callable[[], None],
    space: sweep.Space | None = None,
    count: int = 0,
) -> None:
    """Runs trials until each is finished, has failed, or was ended early.

    Args:
      given: overrides of the trials to run; with a space, of those that it begins with.
      command: overrides -> the command line that trains the trial.
      root: of the sweep.
      options: what Ray is asked for.
      look: is called about once a second, by a thread, to show where the trials are.
      space: of which Optuna chooses trials, knowing those that are finished.
      count: trials that there are to be in the end, of a space.

    Raises:
      BadInput: if Ray or Optuna is missing, or there is no such cluster.
    """
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is for `_started`
    # A trial is told when the process of Ray's that began it ends, and saves; Ray would kill it.
    os.environ["RAY_kill_child_processes_on_worker_exit"] = "false"  # noqa: SIM112
    ray = _need("ray")
    tune, schedulers = _need("ray.tune"), _need("ray.tune.schedulers")
    root = os.fspath(absolute(root))
    sign, metric = options.metric or (1, None)
    here, sharing = os.getcwd(), int(1 / options.gpus) if 0 < options.gpus < 1 else 1

    def overrides_of(settings: dict) -> Overrides:
        return settings["overrides"] if space is None else _decoded(space, settings)

    def trainable(settings):
        """Trains one trial, in a process of Ray's."""
        overrides = overrides_of(settings)
        name, words = _name(overrides), command(overrides)
        # Ray's processes are in folders of their own, and paths of the config may be relative.
        process, output = launch.start_process(words, root, name, sharing, here)
        _follow(process, output, epath.Path(root) / name, metric, tune.report)

    class Stops(tune.Callback):
        """Notes that a trial was ended early."""

        def on_trial_complete(self, iteration, trials, trial, **info):
            folder = epath.Path(root) / _name(overrides_of(trial.config))
            if options.grace and not (folder / "result.json").exists():
                step = trial.last_result.get("step")
                replace_text(folder / STOPPED, f"ended by ASHA at step {step}\n")

    search, parameters, samples = None, {"overrides": tune.grid_search(list(given))}, 1
    if space is not None:
        search, known = _optuna(space, given, root, options)
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

    told = []

    def tell(number, _frame):
        told.append(number)
        raise KeyboardInterrupt

    old = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except BaseException as error:  # Ray raises what it makes of the interrupt
        if told:
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
    """Reports a trial's evaluations as they come, until its process ends. Raises if it fails.

    When Ray ends this process early, the trial is told to end, and saves.
    """
    seen = -1
    while True:
        ended = process.poll() is not None
        for line in log.tail(folder):
            if line["step"] > seen and (metric is None or metric in line):
                seen = line["step"]
                report({"step": seen} | ({metric: line[metric]} if metric else {}))
        if ended:
            break
        time.sleep(SECONDS)
    reason = launch.failure(process.returncode, output)
    if reason:
        trials.note_failure(folder, trials.noted(folder / FAILED) or reason)
        raise RuntimeError(trials.noted(folder / FAILED))
    if process.returncode:
        raise RuntimeError("told to end, and saved")
    if seen < 0:
        raise RuntimeError(f"its log has no {metric}")


# ------------------------------------------------------------------------------------------ Optuna


def chosen(space: sweep.Space, root) -> list[Overrides]:
    """The trials of a space that have begun in `root`, as their folders say."""
    found = []
    for folder in sorted(epath.Path(root).glob("*/config.json")):
        flat = config.flatten(read_config(folder.parent))
        overrides = {key: _own(one, flat.get(key)) for key, one in space.items()}
        if _name(overrides) == folder.parent.name:
            found.append(overrides)
    return found


def _own(one, value):
    """A value of a config as the space spells it: 0 may be 0.0 there."""
    if isinstance(one, sweep.Choice) and value in one.options:
        return one.options[one.options.index(value)]
    return int(value) if isinstance(one, sweep.Integers) and value is not None else value


def _decoded(space: sweep.Space, settings: dict) -> Overrides:
    """What Optuna chose, as overrides: of options it chooses the number."""
    value = lambda one, x: one.options[x] if isinstance(one, sweep.Choice) else x
    return sweep.rounded({key: value(one, settings[key]) for key, one in space.items()})


def _encoded(space: sweep.Space, overrides: Overrides) -> dict:
    """The inverse of `_decoded`."""
    number = lambda one, x: one.options.index(x) if isinstance(one, sweep.Choice) else x
    return {key: number(one, overrides[key]) for key, one in space.items()}


def _optuna(space: sweep.Space, given: Sequence[Overrides], root: str, options: Options):
    """(search algorithm, how many finished trials it knows); `given` are tried first."""
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
        if overrides not in given and values:
            known.append((overrides, values[-1]))
    search = _need("ray.tune.search.optuna").OptunaSearch(
        space={key: kinds[type(one)](one) for key, one in space.items()},
        metric=metric,
        mode="max" if sign > 0 else "min",
        points_to_evaluate=[_encoded(space, overrides) for overrides in given] or None,
        seed=len(known),  # with the same one it would begin with the same trials again
    )
    for overrides, value in known:
        search.add_evaluated_point(_encoded(space, overrides), value)
    return search, len(known)
