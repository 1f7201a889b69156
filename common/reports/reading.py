"""Reads finished runs from their workdirs, and says why others are left out.

runs, left_out = reading.find_runs(["runs/small-0", "runs/small-1", "runs/sweep"])
"""

import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etils import epath

from common.config import flatten
from common.errors import BadInput, require
from common.reports.plots import label
from common.reports.statistics import Fold, Member
from common.runs import log, workdir
from common.runs.files import absolute
from common.runs.history import last_values
from common.sweeps.trials import FAILED, STOPPED, noted
from common.training.saved import read_config

# Files of a run without its config, and the types that are read of its others.
LEFT = ("metrics.jsonl", "environment.json", "result.json")
OF_START = {"commit": str, "command": list, "device": str, "devices": int, "versions": dict}
OF_RESULT = {"steps": int, "eval": dict, "parameters": int, "wall_seconds": int | float}
RUNNING = "still running"
FOLD = re.compile(r"\[(not )?fold (\d+)/(\d+)\]", re.A)


class FinishedRun(NamedTuple):
    """A finished run.

    Attributes:
      path: its workdir.
      name: its display name.
      config: flat.
      seed: config["seed"].
      history: the lines of its log.
      result: the contents of result.json.
      environment: of each start, from environment.json; [] if that is missing.
    """

    path: str
    name: str
    config: dict
    seed: int
    history: list[dict]
    result: dict
    environment: list[dict]

    @property
    def member(self) -> Member:
        """What tells this run from the others of its row: its seed, and the fold that it holds out
        of training."""
        matched = FOLD.search(str(self.config.get("data.train", "")))
        if not (matched and matched[1]):
            return self.seed
        return Fold(self.seed, int(matched[2]), int(matched[3]))


def find_runs(places: Sequence[str]) -> tuple[list[FinishedRun], dict[str, str]]:
    """Reads runs.

    Args:
      places: workdirs, or folders whose direct subfolders are workdirs, such as a sweep's.

    Returns:
      The runs, each once, and {path: reason} for unfinished and damaged runs in folders. Runs found
      in a folder are named by `named`.

    Raises:
      BadInput: for a place without a run, an unfinished run given by name, a damaged file, or if no
        run is left.
    """
    runs: dict[str, FinishedRun] = {}
    left_out: dict[str, str] = {}
    for place in places:
        folder = absolute(place)
        trials = _trials(folder)
        if not trials:
            runs.setdefault(str(folder), read_run(folder))
            continue
        reasons = {trial: _unfinished(trial) for trial in trials}
        left_out |= {str(trial): reason for trial, reason in reasons.items() if reason}
        finished = []
        for trial in (trial for trial in trials if not reasons[trial]):
            try:
                finished.append(read_run(trial))
            except BadInput as damage:
                left_out[str(trial)] = str(damage)
        for run in named(finished, folder.name, alone=len(places) == 1):
            runs.setdefault(run.path, run)
    require(bool(runs), f"there is no finished run; {left_out_text(left_out)}")
    return list(runs.values()), left_out


def left_out_text(left_out: dict[str, str]) -> str:
    """'left out: lr-3 (not finished)': of each reason what comes before its first semicolon."""
    reasons = {path: reason.partition("; ")[0] for path, reason in sorted(left_out.items())}
    words = [f"{os.path.basename(path)} ({reason})" for path, reason in reasons.items()]
    return f"left out: {', '.join(words)}"


def _trials(folder: epath.Path) -> list[epath.Path]:
    """The runs in a folder that is not itself a run."""
    if workdir.begun(folder) or not folder.is_dir():
        return []
    signs = ("config.json", FAILED, *LEFT)
    return sorted(p for p in folder.iterdir() if any((p / name).exists() for name in signs))


def _unfinished(folder: epath.Path) -> str:
    """Why a run is unfinished; "" if it is finished."""
    if workdir.begun(folder):
        try:
            if workdir.load_result(folder) is not None:
                return ""
        except BadInput as error:
            return str(error)
    for file, prefix in ((folder / FAILED, "failed: "), (folder / STOPPED, "")):
        if file.exists():
            return prefix + " ".join(noted(file).split())
    if (folder / "result.json").exists() and workdir.begun(folder):
        return f"{folder / 'result.json'} is damaged"
    if workdir.in_use(folder):
        return RUNNING
    return "not finished" if workdir.begun(folder) else "its config.json is missing"


def read_run(folder) -> FinishedRun:
    """A finished run, named after its folder. Raises `BadInput` if there is none, or one of its
    files is damaged."""
    folder = absolute(folder)
    config = flatten(read_config(folder))
    reason = _unfinished(folder)
    require(reason != RUNNING, f"{folder}: {RUNNING}")
    require(not reason, f"{folder}: {reason}; run its command again")
    starts = workdir.read_starts(folder)
    history, result = log.read_lines(folder), workdir.load_result(folder)
    _check_kinds(folder / "config.json", config, {"seed": int, "task": str})
    for start in starts:
        _check_kinds(folder / "environment.json", start, OF_START)
        _check_kinds(folder / "environment.json", start["versions"], {"jax": str})
    _check_kinds(folder / "result.json", result, OF_RESULT)
    _check_end(folder, history, result)
    return FinishedRun(str(folder), folder.name, config, config["seed"], history, result, starts)


def history_of(folder) -> list[dict]:
    """The lines of the log of a run that is not finished, or is damaged; [] if they cannot be
    read."""
    try:
        return log.read_lines(folder)
    except (BadInput, OSError):
        return []


def _check_kinds(path: epath.Path, values: dict, kinds: dict) -> None:
    """Raises `BadInput` unless these keys of a file have values of these types."""
    for key, kind in kinds.items():
        value = values.get(key)
        require(
            isinstance(value, kind) and type(value) is not bool,
            f"{path} is damaged: {key!r} is {'missing' if key not in values else repr(value)[:40]}",
        )


def _check_end(folder: epath.Path, history: list[dict], result: dict) -> None:
    """Raises `BadInput` unless log and result end alike."""
    ends = history[-1]["step"] if history else 0
    unlike = f"{folder}: metrics.jsonl ends at step {ends}, result.json is of {result['steps']}"
    require(ends == result["steps"], f"{unlike}; run its command again")
    alike = last_values(history, ends) == result["eval"]
    require(alike, f"{folder}: the last evaluation in metrics.jsonl is not that of result.json")


# ---------------------------------------------------------------------------------------- grouping


def settings(run: FinishedRun) -> dict:
    """What identifies a run, apart from its seed and its fold: its flat config without how it is
    laid out and logged."""

    def without_fold(key: str, value):
        is_split = key == "data.train" or (key.startswith("evals.") and key.endswith(".split"))
        any_fold = is_split and isinstance(value, str) and isinstance(run.member, Fold)
        return FOLD.sub(r"[\1fold */\3]", value) if any_fold else value

    return {
        k: without_fold(k, v)
        for k, v in run.config.items()
        if k != "seed" and not k.startswith(workdir.LAID_OUT)
    }


def settings_of(run: FinishedRun, keys: Sequence[str]) -> dict:
    """Some keys of a run's config; None for missing ones."""
    return {key: run.config.get(key) for key in keys}


def group(runs: Iterable[FinishedRun]) -> list[list[FinishedRun]]:
    """Groups runs with the same settings, sorted by seed and fold. Raises `BadInput` if two share
    both."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(settings(run), sort_keys=True), []).append(run)
    for members in groups.values():
        members.sort(key=lambda run: run.member)
        for a, b in itertools.pairwise(members):
            same = f"{a.path} and {b.path} are the same run, seed {a.seed}; give one of them"
            require(a.member != b.member, same)
    return list(groups.values())


def varied(groups: Sequence[Sequence[FinishedRun]]) -> list[str]:
    """The config keys in which groups of runs differ."""
    flat = [settings(members[0]) for members in groups]
    encoded = lambda values, key: json.dumps(values[key]) if key in values else ""
    keys = sorted(set().union(*flat))
    return [key for key in keys if len({encoded(values, key) for values in flat}) > 1]


def named(runs: Sequence[FinishedRun], folder: str, alone: bool = True) -> list[FinishedRun]:
    """The runs of one folder, named by the keys in which they differ:
    'optim.lr=0.001 optim.weight_decay=0.1'.

    Args:
      runs: of one folder.
      folder: its name, which is theirs if nothing differs, and a prefix if there are other places
        (not `alone`).
    """
    groups = group(runs)
    keys = varied(groups)

    def name(run: FinishedRun, exact: bool) -> str:
        pairs = [f"{k}={label(run.config[k], exact)}" for k in keys if k in run.config]
        return " ".join([*([] if alone and pairs else [folder]), *pairs])

    short = {name(members[0], False) for members in groups}
    exact = len(short) < len(groups)
    return [run._replace(name=name(run, exact)) for run in runs]
