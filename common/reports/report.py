"""What finished runs reached, and which of them differ: pure functions over what their workdirs
hold. scripts/report.py prints and draws it.

    runs, left_out = report.find(["runs/small-0", "runs/small-1", "runs/sweep"])
    found = report.compare(runs, "eval/test/accuracy", left_out=left_out)
    print(found.rows[0].name, found.rows[0].values)  # the best: {seed: accuracy}

A row is the runs that differ in nothing but the seed, and in how they were laid out and watched.
"""

import contextlib
import itertools
import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etils import epath
from scipy.special import stdtrit

from common import losses
from common.config import flatten
from common.errors import BadInput, require
from common.reports.plots import label
from common.runs import workdir
from common.runs.files import absolute
from common.runs.history import number, parse_best
from common.sweeps.trials import FAILED, STOPPED
from common.training.program import task_module
from common.training.saved import read_config


class FinishedRun(NamedTuple):
    """A finished run.

    Attributes:
      path: its workdir.
      name: what it is called.
      config: flat.
      seed: config["seed"].
      history: the lines of its log.
      result: of result.json.
      environment: of each start, as in environment.json; [] if that is gone.
    """

    path: str
    name: str
    config: dict
    seed: int
    history: list[dict]
    result: dict
    environment: list[dict]


class Difference(NamedTuple):
    """How much more one row has of a metric than another, by the seeds that both have.

    Attributes:
      seeds: those.
      mean: of the differences; None without a seed.
      low, high: the interval of the mean; None without two seeds, or where all differences are the
        same, so that there is no spread to judge by.
    """

    seeds: list[int]
    mean: float | None
    low: float | None
    high: float | None

    @property
    def distinguishable(self) -> bool:
        """Whether there is an interval that does not hold 0."""
        return self.low is not None and not self.low <= 0 <= self.high


class Row(NamedTuple):
    """Runs that differ in nothing but the seed.

    Attributes:
      name: of all of them.
      runs: by seed.
      values: {seed: the last value of the metric}.
      selecting: {seed: the last value of what rows are selected by}.
      difference: to the best row; None for that row itself.
    """

    name: str
    runs: list[FinishedRun]
    values: dict[int, float]
    selecting: dict[int, float]
    difference: Difference | None


class RunReport(NamedTuple):
    """Rows, the best one first.

    Attributes:
      metric: the key that is reported.
      select: the key that says which row is the best.
      rows: by the mean of `select`.
      varied: the keys of the config in which rows differ.
      left_out: {path: why}.
    """

    metric: str
    select: str
    rows: list[Row]
    varied: list[str]
    left_out: dict[str, str]


# ----------------------------------------------------------------------------------------- reading


def find_runs(places: Sequence[str]) -> tuple[list[FinishedRun], dict[str, str]]:
    """Reads runs.

    Args:
      places: workdirs, or folders whose direct subfolders are workdirs, such as that of a sweep.

    Returns:
      The runs, each once, and {path: why} for those of folders that are not finished. Those of a
      folder are called as `named` says.

    Raises:
      BadInput: for a place without a run, a run given by name that is not finished, a file that is
        damaged, or if no run is left.
    """
    runs: dict[str, FinishedRun] = {}
    left_out: dict[str, str] = {}
    for place in places:
        folder = absolute(place)
        trials = _trials(folder)
        if not trials:
            runs.setdefault(str(folder), read_run(folder))
            continue
        why = {trial: _unfinished(trial) for trial in trials}
        left_out |= {str(trial): text for trial, text in why.items() if text}
        finished = [read_run(trial) for trial in trials if not why[trial]]
        for run in named(finished, folder.name, alone=len(places) == 1):
            runs.setdefault(run.path, run)
    require(bool(runs), f"there is no finished run; {left_out_text(left_out)}")
    return list(runs.values()), left_out


def _trials(folder: epath.Path) -> list[epath.Path]:
    """The runs in a folder that is none itself."""
    if workdir.begun(folder) or not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if workdir.begun(p) or (p / FAILED).exists())


def _unfinished(folder: epath.Path) -> str:
    """Why a run is not finished; "" if it is."""
    if workdir.begun(folder) and workdir.read_result(folder) is not None:
        return ""
    for file, words in ((folder / FAILED, "failed: "), (folder / STOPPED, "")):
        if file.exists():
            return words + " ".join(file.read_text().split())
    return "not finished"


def read_run(folder) -> FinishedRun:
    """A finished run, called as its folder. Raises `BadInput` if there is none."""
    folder = absolute(folder)
    config = flatten(read_config(folder))
    why = _unfinished(folder)
    require(not why, f"{folder}: {why}; run its command again")
    starts = workdir.read_starts(folder)
    history, result = workdir.read_log(folder), workdir.read_result(folder)
    return FinishedRun(str(folder), folder.name, config, config["seed"], history, result, starts)


# ---------------------------------------------------------------------------------------- grouping


def settings(run: FinishedRun) -> dict:
    """What makes a run another one, but for its seed: its flat config without how it is laid out
    and watched."""
    return {
        k: v for k, v in run.config.items() if k != "seed" and not k.startswith(workdir.LAID_OUT)
    }


def settings_of(run: FinishedRun, keys: Sequence[str]) -> dict:
    """Some keys of a run's config; None for one that it lacks."""
    return {key: run.config.get(key) for key in keys}


def group(runs: Iterable[FinishedRun]) -> list[list[FinishedRun]]:
    """Runs of the same settings together, by seed. Raises `BadInput` if two have the same seed."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(settings(run), sort_keys=True), []).append(run)
    for members in groups.values():
        members.sort(key=lambda run: run.seed)
        for a, b in itertools.pairwise(members):
            same = f"{a.path} and {b.path} are the same run, seed {a.seed}; give one of them"
            require(a.seed != b.seed, same)
    return list(groups.values())


def varied(groups: Sequence[Sequence[FinishedRun]]) -> list[str]:
    """The keys in which groups of runs differ."""
    flat = [settings(members[0]) for members in groups]
    said = lambda values, key: json.dumps(values[key]) if key in values else ""
    keys = sorted(set().union(*flat))
    return [key for key in keys if len({said(values, key) for values in flat}) > 1]


def named(runs: Sequence[FinishedRun], folder: str, alone: bool = True) -> list[FinishedRun]:
    """The runs of one folder, called by the keys in which they differ from others there:
    'optim.lr=0.001 optim.weight_decay=0.1'.

    Args:
      runs: of one folder.
      folder: its name: what they are called if nothing differs, or before the keys if there are
        other places (not `alone`).
    """
    groups = group(runs)
    keys = varied(groups)

    def name(run: FinishedRun, exact: bool) -> str:
        pairs = [f"{k}={label(run.config[k], exact)}" for k in keys if k in run.config]
        return " ".join([*([] if alone and pairs else [folder]), *pairs])

    short = {name(members[0], False) for members in groups}
    exact = len(short) < len(groups)
    return [run._replace(name=name(run, exact)) for run in runs]


def _name(runs: Sequence[FinishedRun]) -> str:
    """What a row is called: as its runs, or as the first one without the number at its end."""
    first = runs[0].name
    alike = all(run.name == first for run in runs)
    return first if alike else re.sub(r"[-_.]?\d+$", "", first) or first


# -------------------------------------------------------------------------------------- statistics


def last(run: FinishedRun, key: str) -> float:
    """The last value of a key of the log; NaN if that is no number. Raises `BadInput` if there is
    none."""
    found = [line[key] for line in run.history if key in line]
    keys = sorted({key for line in run.history for key in line if key.startswith("eval/")})
    require(bool(found), f"{run.path}: no {key!r} in its log; there are: {', '.join(keys)}")
    return float(number(found[-1]))


def spread(values: Iterable[float]) -> tuple[float, float | None]:
    """(mean, standard deviation over n - 1); None for the latter if there is one value."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired(values: dict[int, float], others: dict[int, float]) -> Difference:
    """values - others with the 95% interval of Student's t, paired by seed: n seeds that both have,
    n - 1 degrees of freedom (Student 1908).

    The interval is that of one comparison: nothing corrects for how many are made.
    """
    seeds = sorted(values.keys() & others.keys())
    if not seeds:
        return Difference(seeds, None, None, None)
    differences = [values[seed] - others[seed] for seed in seeds]
    mean, deviation = spread(differences)
    rounding = 1e-12 * max(abs(x[seed]) for x in (values, others) for seed in seeds)
    if deviation is None or deviation <= rounding:
        return Difference(seeds, mean, None, None)
    n = len(seeds)
    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return Difference(seeds, mean, mean - half, mean + half)


def wanted(where: str, text: str, signs: dict[str, int] = losses.SIGNS) -> tuple[int, str]:
    """(sign, key): 'max KEY' is (1, KEY), 'min KEY' (-1, KEY). The sign of a bare key follows from
    its last part, and is 0 if that is unknown.

    Args:
      where: for the error message.
      text: a key of the log, perhaps with 'max ' or 'min ' before it.
      signs: {metric: 1 if more is better, -1 if less is}.
    """
    if text.startswith(("max ", "min ")):
        return parse_best(where, text)
    return next((sign for metric, sign in signs.items() if text.endswith(metric)), 0), text


def _signs(runs: Iterable[FinishedRun]) -> dict[str, int]:
    """Which metrics are better when higher: those of `common.losses` and of the runs' tasks."""
    signs = dict(losses.SIGNS)
    for task in sorted({run.config.get("task", "") for run in runs}):
        with contextlib.suppress(BadInput):  # a task that is not here: its logs can still be read
            signs |= getattr(task_module(task), "SIGNS", {})
    return signs


def compare(
    runs: Sequence[FinishedRun],
    metric: str,
    select: str = "",
    left_out: dict[str, str] | None = None,
) -> RunReport:
    """Makes rows of runs, finds the best one, and compares the others with it.

    Args:
      runs: in any order, on which nothing depends.
      metric: a key of the log, perhaps behind 'max ' or 'min '.
      select: the same, of which the best row has the best mean; "" is the metric of the same name
        of the evaluator `valid`, or the metric itself where a run has none.
      left_out: {path: why} of `find_runs`. Runs whose last value is no finite number are added.

    Raises:
      BadInput: if a run's log has no such key, it is not known which of two values is better, two
        rows have the same name, or no run is left.
    """
    signs = _signs(runs)
    sign, key = wanted("--metric", metric, signs)
    where, by = "--metric", re.sub("^eval/[^/]+/", "eval/valid/", key)
    if select:
        where = "--select"
        sign, by = wanted(where, select, signs)
    elif not all(by in set().union(*run.history) for run in runs):
        by = key
    left_out, kept = dict(left_out or {}), []
    for run in runs:
        odd = [k for k in (key, by) if not math.isfinite(last(run, k))]
        if odd:
            left_out[run.path] = f"its last {odd[0]} is no finite number"
        else:
            kept.append(run)
    require(bool(kept), f"there is no run to report; {left_out_text(left_out)}")
    groups = group(kept)
    better = f"{where}: is more or less of {by} better? Write 'max {by}' or 'min {by}'"
    require(sign != 0 or len(groups) == 1, better)
    of = lambda members, key: {run.seed: last(run, key) for run in members}
    rows = [Row(_name(m), m, of(m, key), of(m, by), None) for m in groups]
    rows.sort(key=lambda row: (-sign * spread(row.selecting.values())[0], row.name))
    for a, b in itertools.pairwise(sorted(row.name for row in rows)):
        require(a != b, f"{a}: runs of two configs have this name")
    rest = [row._replace(difference=paired(row.values, rows[0].values)) for row in rows[1:]]
    return RunReport(key, by, [rows[0], *rest], varied(groups), left_out)


def left_out_text(left_out: dict[str, str]) -> str:
    """'left out: lr-3 (not finished)'."""
    words = [f"{os.path.basename(path)} ({why})" for path, why in sorted(left_out.items())]
    return f"left out: {', '.join(words)}"


def notes(report: RunReport) -> list[str]:
    """The lines below a table: by what the best row is the best, what the intervals are, and who is
    left out."""
    lines = []
    if len(report.rows) > 1:
        one_set = report.select.split("/")[:2] == report.metric.split("/")[:2]
        same = " itself" if report.select == report.metric else ", of the same set"
        caution = f"{same}: not an estimate for new data" if one_set else ""
        lines.append(f"best by {report.select}{caution}")
    tests = sum(row.difference.low is not None for row in report.rows[1:])
    if tests:
        many = f"; {tests} comparisons, not corrected for their number" if tests > 1 else ""
        lines.append(f"in brackets: 95% interval by Student's t, paired by seed{many}")
    return lines + ([left_out_text(report.left_out)] if report.left_out else [])


def facts(runs: Sequence[FinishedRun]) -> dict:
    """Parameters, the seconds of each run, and what they ran on in their last starts; the commits
    are those of all starts."""
    starts = [run.environment[-1] for run in runs if run.environment]
    every = [start["commit"] for run in runs for start in run.environment]
    return {
        "parameters": runs[0].result["parameters"],
        "seconds": [run.result["wall_seconds"] for run in runs],
        "hardware": sorted(set(map(_hardware, starts))),
        "jax": sorted({start["versions"]["jax"] for start in starts}),
        "commit": sorted({commit[:7] + commit[40:] for commit in every if commit}),
    }


def _hardware(start: dict) -> str:
    """'cpu x 2', and how many runs were trained there as one program, if several were."""
    together = start.get("population", 1)
    shared = f" for {together} runs together" if together > 1 else ""
    return f"{start['device']} x {start['devices']}{shared}"
