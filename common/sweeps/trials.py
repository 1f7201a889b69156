"""The trials of a sweep: ordinary runs, each in its own folder, named by its overrides.

    for trial in trials.of("configs/vision/digits.py:mlp"):
        print(trial.name, trials.standing(trial, "runs/sweep").state)

Everything known about a trial is in its folder, so that any process can tell where a sweep stands:
its log, its result, and in `failed.txt` why the last attempt failed, or in `stopped.txt` what
stopped it early.
"""

import collections
import itertools
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from etils import epath

from common import config, imports, inputs, values
from common.errors import BadInput, brief, nearest, require
from common.runs import history, lines, located, log, place, saves, workdir
from common.runs.files import replace_text
from common.sections import call
from common.sweeps import sweep
from common.training import duration, optim, program
from common.training.saved import read_config

FAILED, STOPPED = "failed.txt", "stopped.txt"
MOST = 10_000  # trials, unless --trials says how many
FOLD = re.compile(
    r"\bdata\.train=train\[not fold (\d+)/(\d+)\],evals\.test\.split=train\[fold \1/\2\]"
)
LONGEST = 150  # bytes of a folder's name, before the checksum


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
      index: its position in the sweep, from 0.
      name: of its folder.
      overrides: {'optim.lr': 0.1, …}.
      words: all overrides as command-line arguments, including those not from the sweep.
      config: completed, as nested dicts; None if it is invalid.
      refused: why it is invalid; "" if it is not.
    """

    index: int
    name: str
    overrides: sweep.Overrides
    words: tuple[str, ...]
    config: dict | None
    refused: str


def of(
    path: str,
    words: Sequence[str] = (),
    name: str | None = "sweep",
    count: int | None = None,
    folds: tuple[int, str] | None = None,
) -> list[Trial]:
    """The trials of a config's sweep, as a list of `Trial`.

    Args:
      path: FILE.py or FILE.py:ARG.
      words: overrides for all trials, as on a command line.
      name: the function of the file that yields the trials' overrides, or returns a space of them;
        None is the config itself, as one trial.
      count: how many; None is all. Required for a space.
      folds: (k, evaluator): repeats every trial on each of k folds of `data.train`, which that
        evaluator evaluates ("": `test`, or the only one).

    Raises:
      BadInput: if there is no such sweep, it is empty, or a trial occurs twice. An error of one
        trial is in its `Trial.refused` instead.
    """
    module, arg = config.experiment(path)
    file = path.partition(":")[0]
    require(count is None or count > 0, f"--trials: {count} is not a positive number")
    definition = [{}] if name is None else _definition(module, file, name, count)
    if isinstance(definition, dict):
        require(count is not None, f"--trials: required, as {name}() of {file} is a space")
        with imports.explained("--sweep", file):
            definition = list(sweep.sample(count, definition))
    # An error that all trials share is raised here, once.
    base = ml_collections.ConfigDict(module.get_config(arg))
    base = config.plain(config.overridden(base, words, program.sections))
    if folds:
        most = MOST // max(1, len(definition))
        require(
            folds[0] <= most,
            f"--folds: {len(definition)} x {folds[0]} trials are more than {MOST:,}",
        )
        definition = sweep.product(definition, _folds(base, *folds))
    trials = [
        one(module.get_config, arg, k, overrides, words) for k, overrides in enumerate(definition)
    ]
    require(len(trials) > 0, f"{name}() of {file} yields no trial")
    names = [trial.name for trial in trials]
    twice = sorted(name for name, times in collections.Counter(names).items() if times > 1)
    require(not twice, f"{name}() of {file} yields a trial twice: {', '.join(twice[:4])}")
    first: dict[str, str] = {}
    for trial in trials:
        key = json.dumps(trial.config, sort_keys=True) if trial.config else trial.name
        twin = first.setdefault(key, trial.name)
        require(
            twin == trial.name,
            f"{name}() of {file} yields a trial twice: {twin} and {trial.name} are the same config",
        )
    return trials


def _folds(base: dict, count: int, evaluator: str) -> Iterable[sweep.Overrides]:
    """The folds of a completed config's training split."""
    evals = base["evals"]
    known = evaluator or ("test" if "test" in evals else next(iter(evals), ""))
    require(
        bool(evaluator) or "test" in evals or len(evals) == 1,
        f"--folds: which evaluator reads the fold? write --folds {count}:NAME with one of "
        f"{', '.join(sorted(evals)) or '(the config has none)'}",
    )
    require(known in evals, f"--folds: unknown evaluator {brief(known)}; {nearest(known, evals)}")
    return sweep.folds(count, base["data"]["train"], known)


def check(trials: Iterable[Trial]) -> None:
    """Raises `BadInput` for the first trial whose config is refused, by its keys, its types, or
    its ranges as far as they need no data."""
    reasons = [(trial, trial.refused or _out_of_range(trial.config)) for trial in trials]
    bad = [(trial, reason) for trial, reason in reasons if reason]
    if bad:
        trial, reason = bad[0]
        more = f"; {len(bad) - 1} more of {len(reasons)} trials are refused" if bad[1:] else ""
        raise BadInput(f"trial {trial.index}, {trial.name}: {reason}{more}")


def _out_of_range(made: dict) -> str:
    """What `train.run` would refuse of a completed config without reading data; "" for nothing.
    Of durations, which may count epochs, only the form is looked at."""
    optimizer, train = made["optim"], made["train"]
    one_step = {"duration": "1 step", "log_every": "1 step"}
    schedule = optimizer["schedule"]
    timeless = {
        "schedule": schedule if schedule in ("constant", "linear", "cosine") else "linear",
        "warmup": "0 steps",
        "decay": None,
        "lookahead": None,
    }
    durations = {
        "train.duration": train["duration"],
        "train.log_every": train["log_every"],
        "checkpoint.every": made["checkpoint"]["every"],
        **{f"optim.{key}": optimizer[key] for key in ("warmup", "decay", "lookahead")},
        **{f"evals.{name}.every": section["every"] for name, section in made["evals"].items()},
    }
    try:
        call(program.plan, train | one_step, 1)
        for key, text in durations.items():
            if text is not None:
                total = None if key == "train.duration" else 1
                size = {"batch_size": train["batch_size"], "size": 1}
                duration.steps(text, where=f"config.{key}", total=total, **size)
        call(saves.policy, made["checkpoint"], lambda *_: 1)
        for where, key in history.metric_keys(made).items():
            check_metric(where, key, [made])
        call(history.why_stop, train["stop"], [])
        optim.check_patterns(optimizer)
        section = optimizer | timeless
        call(optim.make_optimizer, section, 1, lambda *_: 0, section["direction"])
    except BadInput as error:
        return str(error)
    return ""


def check_metric(where: str, key: str, configs: Sequence[dict]) -> None:
    """Raises `BadInput` unless a trial can log `key`, as far as that shows before one has run.

    Args:
      where: for the error message.
      key: of the log: "eval/EVALUATOR/METRIC", "train/TERM" or "time/seconds".
      configs: of the trials that are not refused.
    """
    kind, *names = key.split("/")
    form = f"{where}: {key!r}; write 'eval/NAME/METRIC', or 'train/loss'"
    require(kind in ("eval", "train", "time") and bool(names) and all(names), form)
    require(len(names) > 1 if kind == "eval" else len(names) == 1, form)
    if kind == "eval" and configs:
        valid = sorted({name for config in configs for name in config["evals"]})
        require(names[0] in valid, f"{where}: unknown {key!r}; {_nearest_keys(names, valid)}")


def _nearest_keys(names: list[str], valid: list[str]) -> str:
    metric = "/".join(names[1:])
    return nearest(f"eval/{'/'.join(names)}", [f"eval/{name}/{metric}" for name in valid])


def space(path: str, name: str) -> sweep.Space:
    """The space that a function of a config file returns. Raises `BadInput` if it returns none."""
    module, _ = config.experiment(path)
    definition = _definition(module, path.partition(":")[0], name)
    require(
        isinstance(definition, dict), f"--sweep: {name}() yields trials; a space is needed here"
    )
    return definition


def _definition(module, file: str, name: str, count: int | None = None):
    """What a config file's `name()` returns: a dict, a space, or the list of its first trials'
    overrides."""
    require(callable(getattr(module, name, None)), f"--sweep: {file} defines no {name}()")
    with imports.explained("--sweep", file):
        definition = getattr(module, name)()
        if isinstance(definition, dict):
            return sweep.plain_space(definition)
        listed = list(itertools.islice(definition, MOST + 1 if count is None else count))
    require(
        count is not None or len(listed) <= MOST,
        f"--sweep: {name}() of {file} yields more than {MOST:,} trials; say how many: --trials N",
    )
    for overrides in listed:
        valid = isinstance(overrides, dict) and all(isinstance(key, str) for key in overrides)
        require(
            valid,
            f"--sweep: {name}() of {file} yields {brief(overrides)}; a trial is a dict such as "
            '{"optim.lr": 1e-3, "seed": 0}',
        )
    return listed


def one(get_config, arg: str, index: int, overrides: sweep.Overrides, words: Sequence[str]):
    """The `Trial` with these overrides; `words` are the overrides of all trials."""
    completed, refused = None, ""
    try:
        for key, value in overrides.items():
            section = isinstance(value, ml_collections.ConfigDict | Mapping)
            form = f"{key}: {brief(value)} is a section; write its keys, such as {key}.KEY"
            require(not section, form)
        overrides = {key: values.python(key, value) for key, value in overrides.items()}
    except BadInput as error:
        return Trial(index, folder_name(overrides), overrides, tuple(words), None, str(error))
    words = (*words, *(f"--config.{key}={value}" for key, value in overrides.items()))
    try:
        base = ml_collections.ConfigDict(get_config(arg))
        completed = config.plain(config.overridden(base, words, program.sections))
    except BadInput as error:
        refused = str(error)
    return Trial(index, folder_name(overrides), overrides, words, completed, refused)


def folder_name(overrides: sweep.Overrides) -> str:
    """'optim.lr=0.001,seed=0', or 'fold=1of5' for a fold of `train`. Characters unfit for a folder
    name are replaced, and a checksum of the full name appended."""
    full_name = ",".join(f"{key}={value}" for key, value in overrides.items()) or "base"
    full_name = FOLD.sub(r"fold=\1of\2", full_name)
    return place.fitting(full_name, r"[^\w.,=+()-]+", LONGEST)


# ----------------------------------------------------------------------------------------- standing


class Standing(NamedTuple):
    """The progress of a trial.

    Attributes:
      state: "finished", "stopped" (early, by the launcher), "failed", "begun" or "new".
      step, steps: steps done, and of the full run; 0 if unknown.
      metric: the latest value of the sweep's metric, or None.
      seconds: training time so far.
      reason: why it failed or was stopped; "" if it was not.
    """

    state: str
    step: int = 0
    steps: int = 0
    metric: Any = None
    seconds: float = 0.0
    reason: str = ""


def standing(trial: Trial, root, metric: str = "") -> Standing:
    """The standing of a trial, read from its folder in `root`.

    Args:
      metric: a key of the log; "" is none.
    """
    folder = epath.Path(root) / trial.name
    reason = trial.refused or noted(folder / FAILED)
    if folder.exists() and not folder.is_dir():
        reason = reason or f"{folder} is not a folder"
    if trial.config is None or not workdir.begun(folder):
        return Standing("failed", reason=reason) if reason else Standing("new")
    try:
        _check_files(folder)
        return _standing(trial, folder, metric, reason)
    except (BadInput, OSError) as damage:  # of one trial: the others go on
        return Standing("failed", reason=str(damage))


def _check_files(folder: epath.Path) -> None:
    """Raises `BadInput` if a file of a trial is damaged, as far as a glance shows."""
    read_config(folder)
    if (folder / "environment.json").exists():
        workdir.read_starts(folder)
    if (folder / "result.json").exists():
        whole = workdir.load_result(folder) is not None
        require(whole, f"{folder / 'result.json'} is damaged; run the trial again")
        require(bool(log.tail(folder)), f"{folder / lines.NAME}: no line of it can be read")


def _standing(trial: Trial, folder: epath.Path, metric: str, reason: str) -> Standing:
    """`standing` of a trial that has begun."""
    tail = log.tail(folder)
    last = lambda key, missing: next((x[key] for x in reversed(tail) if key in x), missing)
    known = {
        "step": last("step", 0),
        "steps": _steps(folder),
        "metric": last(metric, None),
        "seconds": last("time/seconds", 0.0) or 0.0,
        "reason": reason,
    }
    if finished(trial, folder):
        return Standing("finished", **known | {"reason": ""})
    stopped = noted(folder / STOPPED)
    if stopped:
        return Standing("stopped", **known | {"reason": stopped})
    return Standing("failed" if reason else "begun", **known)


def finished(trial: Trial, folder) -> bool:
    """Whether the run in `folder` is this trial and has finished. A run whose config now asks for
    more has not, nor has one whose files are damaged."""
    try:
        if workdir.load_result(epath.Path(folder)) is None:
            return False
        differ = located.disagreeing(read_config(folder), trial.config)
    except BadInput:
        return False
    return all(key.startswith(workdir.LAID_OUT) for key in differ)


def _steps(folder: epath.Path) -> int:
    """Total steps of the run, as recorded by its last start; 0 if that cannot be read."""
    try:
        steps = workdir.load_json(folder / "environment.json")[-1]["steps"]
    except (BadInput, LookupError, TypeError):
        return 0
    return steps if type(steps) is int else 0


def noted(note: epath.Path) -> str:
    """The text of a note in a trial's folder; "" if there is none."""
    try:
        return inputs.contents("", note).decode(errors="replace").strip()
    except BadInput:
        return ""


def note_failure(folder, reason: str) -> None:
    """Records in a trial's folder why it failed; "" clears its earlier notes. Where that cannot be
    written, it is a warning: the other trials go on."""
    folder = epath.Path(folder)
    try:
        if reason:
            folder.mkdir(parents=True, exist_ok=True)
            replace_text(folder / FAILED, " ".join(reason.split()) + "\n")
            return
        for note in (folder / FAILED, folder / STOPPED):
            note.unlink(missing_ok=True)
    except OSError as error:
        logging.warning("%s: cannot be written: %s", folder, error.strerror or error)


def groups(trials: Iterable[Trial], most: int | None = None) -> list[list[Trial]]:
    """Trials grouped by shared program, at most `most` per group, in the order of the sweep."""
    shared: dict[str, list[Trial]] = {}
    for trial in trials:
        key = json.dumps(config.untraced(trial.config), sort_keys=True)
        shared.setdefault(key, []).append(trial)
    return [
        members[start : start + (most or len(members))]
        for members in shared.values()
        for start in range(0, len(members), most or len(members))
    ]
