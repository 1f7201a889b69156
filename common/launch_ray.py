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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from common import checkpoint, config, launch, log, sweep, trials, workdir
from common.config import BadInput
from common.sweep import Overrides

SECONDS = 1.0  # between two looks at a log
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
    ray = _need("ray")
    tune, schedulers = _need("ray.tune"), _need("ray.tune.schedulers")
    root = os.fspath(checkpoint.absolute(root))
    sign, metric = options.metric or (1, None)

    def overrides_of(settings: dict) -> Overrides:
        return settings["overrides"] if space is None else _decoded(space, settings)

    def trainable(settings):
        """Trains one trial, in a process of Ray's."""
        overrides = overrides_of(settings)
        _follow(command(overrides), trials.folder_name(overrides), root, metric, tune.report)

    search, parameters, samples = None, {"overrides": tune.grid_search(list(given))}, 1
    if space is not None:
        search, known = _optuna(space, given, root, options)
        parameters, samples = {}, count - known
    asha = options.grace and schedulers.ASHAScheduler(
        time_attr="step", max_t=ENDLESS, grace_period=options.grace
    )
    with _started(ray, options), _watching(look):
        results = tune.Tuner(
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
                verbose=0,
            ),
        ).fit()
    for found in results:
        if found.error is None:
            name = trials.folder_name(overrides_of(found.config))
            _note_stop(epath.Path(root) / name, found.metrics)


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
    try:
        yield
    finally:
        ray.shutdown()


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


def _follow(words: list[str], name: str, root: str, metric: str | None, report: Callable) -> None:
    """Trains a trial by a command line; reports its evaluations as they come. Raises if it fails.

    When Ray ends this process early, the trial is told to end, and saves.
    """
    folder = epath.Path(root) / name
    process, output = launch.start(words, root, name)
    seen = reported = -1
    while True:
        ended = process.poll() is not None
        for line in log.tail(folder):
            if line["step"] > seen and (metric is None or metric in line):
                seen = line["step"]
                report({"step": seen} | ({metric: line[metric]} if metric else {}))
                reported = seen
        if ended:
            break
        time.sleep(SECONDS)
    reason = launch.failure(process.returncode, output)
    if reason:
        if not (folder / trials.FAILED).exists():
            trials.note_failure(folder, reason)
        raise RuntimeError((folder / trials.FAILED).read_text().strip())
    if reported < 0:
        raise RuntimeError(f"{name}: its log has no {metric}")


def _note_stop(folder: epath.Path, metrics: dict[str, Any]) -> None:
    if not (folder / "result.json").exists():
        log.replace_text(folder / trials.STOPPED, f"ended by ASHA at step {metrics.get('step')}\n")


# ------------------------------------------------------------------------------------------ Optuna


def chosen(space: sweep.Space, root) -> list[Overrides]:
    """The trials of a space that have begun in `root`, as their folders say."""
    found = []
    for folder in sorted(epath.Path(root).glob("*/config.json")):
        flat = config.flatten(workdir.read_config(folder.parent))
        overrides = {key: flat.get(key) for key in space}
        if trials.folder_name(overrides) == folder.parent.name:
            found.append(overrides)
    return found


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
        folder = epath.Path(root) / trials.folder_name(overrides)
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
