"""Results of finished runs, and which of them differ: pure functions of the contents of their
workdirs. scripts/report.py prints and draws them.

    runs, left_out = report.find_runs(["runs/small-0", "runs/small-1", "runs/sweep"])
    summary = report.compare(runs, "eval/test/accuracy", left_out=left_out)
    print(summary.rows[0].name, summary.rows[0].values)  # the best: {seed: accuracy}

A row holds runs that differ only in the seed, and in how they were laid out and logged.
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
from common.errors import BadInput, nearest, require
from common.reports.plots import label
from common.runs import log, workdir
from common.runs.files import absolute
from common.runs.history import last_values, number, parse_best
from common.sweeps.trials import FAILED, STOPPED, noted
from common.training.program import task_module
from common.training.saved import read_config

# Files of a run without its config, and the types that are read of its others.
LEFT = ("metrics.jsonl", "environment.json", "result.json")
OF_START = {"commit": str, "command": list, "device": str, "devices": int, "versions": dict}
OF_RESULT = {"steps": int, "eval": dict, "parameters": int, "wall_seconds": int | float}


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


class Difference(NamedTuple):
    """How much one row exceeds another in a metric, over the seeds that both have.

    Attributes:
      seeds: those seeds.
      mean: of the differences; None without a seed.
      low, high: the interval of the mean; None without two seeds, or if all differences are the
        same, which leaves no spread to estimate it from.
    """

    seeds: list[int]
    mean: float | None
    low: float | None
    high: float | None

    @property
    def distinguishable(self) -> bool:
        """Whether there is an interval and it excludes 0."""
        return self.low is not None and not self.low <= 0 <= self.high


class Row(NamedTuple):
    """Runs that differ only in the seed.

    Attributes:
      name: of all its runs.
      runs: by seed.
      values: {seed: the last value of the metric}.
      selecting: {seed: the last value of the key that rows are selected by}.
      difference: to the best row; None for the best row itself.
    """

    name: str
    runs: list[FinishedRun]
    values: dict[int, float]
    selecting: dict[int, float]
    difference: Difference | None


class RunReport(NamedTuple):
    """Rows, best first.

    Attributes:
      metric: the reported key.
      select: the key that decides which row is the best.
      rows: sorted by the mean of `select`.
      varied: the config keys in which rows differ.
      left_out: {path: reason}.
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
    return "not finished" if workdir.begun(folder) else "its config.json is missing"


def read_run(folder) -> FinishedRun:
    """A finished run, named after its folder. Raises `BadInput` if there is none, or one of its
    files is damaged."""
    folder = absolute(folder)
    config = flatten(read_config(folder))
    reason = _unfinished(folder)
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
    """What identifies a run, apart from its seed: its flat config without how it is laid out and
    logged."""
    return {
        k: v for k, v in run.config.items() if k != "seed" and not k.startswith(workdir.LAID_OUT)
    }


def settings_of(run: FinishedRun, keys: Sequence[str]) -> dict:
    """Some keys of a run's config; None for missing ones."""
    return {key: run.config.get(key) for key in keys}


def group(runs: Iterable[FinishedRun]) -> list[list[FinishedRun]]:
    """Groups runs with the same settings, sorted by seed. Raises `BadInput` if two share a seed."""
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


def _name(runs: Sequence[FinishedRun]) -> str:
    """A row's name: that of its runs, or of the first one without its trailing number."""
    first = runs[0].name
    alike = all(run.name == first for run in runs)
    return first if alike else re.sub(r"[-_.]?\d+$", "", first) or first


# -------------------------------------------------------------------------------------- statistics


def last(run: FinishedRun, key: str) -> float:
    """The last value of a log key; NaN if that is not a number. Raises `BadInput` if the log lacks
    it."""
    values = [line[key] for line in run.history if key in line]
    keys = sorted({key for line in run.history for key in line if key.startswith("eval/")})
    require(bool(values), f"{run.path}: no {key!r} in its log; {nearest(key, keys)}")
    return float(number(values[-1]))


def spread(values: Iterable[float]) -> tuple[float, float | None]:
    """(mean, standard deviation over n - 1); None for the latter with a single value."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired(values: dict[int, float], others: dict[int, float]) -> Difference:
    """values - others with the 95% interval of Student's t, paired by seed: n common seeds, n - 1
    degrees of freedom (Student 1908).

    The interval is that of a single comparison: there is no correction for several.
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
    its suffix, and is 0 if that is unknown.

    Args:
      where: for the error message.
      text: a log key, optionally after 'max ' or 'min '.
      signs: {metric: 1 if more is better, -1 if less is}.
    """
    if text.startswith(("max ", "min ")):
        return parse_best(where, text)
    return next((sign for metric, sign in signs.items() if text.endswith(metric)), 0), text


def _signs(runs: Iterable[FinishedRun]) -> dict[str, int]:
    """Which metrics are better when higher: those of `common.losses` and of the runs' tasks."""
    signs = dict(losses.SIGNS)
    for task in sorted({run.config.get("task", "") for run in runs}):
        with contextlib.suppress(Exception):  # the task cannot be imported: its logs can be read
            signs |= getattr(task_module(task), "SIGNS", {})
    return signs


def compare(
    runs: Sequence[FinishedRun],
    metric: str,
    select: str = "",
    left_out: dict[str, str] | None = None,
) -> RunReport:
    """Groups runs into rows, finds the best row, and compares the others with it.

    Args:
      runs: in any order; nothing depends on it.
      metric: a log key, optionally after 'max ' or 'min '.
      select: likewise; the best row has the best mean of it. "" is the metric of the same name from
        the evaluator `valid`, or the metric itself if some run lacks that.
      left_out: {path: reason} from `find_runs`. Runs whose last value is not finite are added.

    Raises:
      BadInput: if a run's log lacks the key, it is unknown which of two values is better, two rows
        have the same name, or no run is left.
    """
    signs = _signs(runs)
    sign, key = wanted("--metric", metric, signs)
    flag, by = "--metric", re.sub("^eval/[^/]+/", "eval/valid/", key)
    if select:
        flag = "--select"
        sign, by = wanted(flag, select, signs)
    elif not all(by in set().union(*run.history) for run in runs):
        by = key
    left_out, kept = dict(left_out or {}), []
    for run in runs:
        nonfinite = [k for k in (key, by) if not math.isfinite(last(run, k))]
        if nonfinite:
            left_out[run.path] = f"its last {nonfinite[0]} is not finite"
        else:
            kept.append(run)
    require(bool(kept), f"there is no run to report; {left_out_text(left_out)}")
    groups = group(kept)
    question = f"{flag}: is more or less of {by} better? Write 'max {by}' or 'min {by}'"
    require(sign != 0 or len(groups) == 1, question)
    values = lambda members, key: {run.seed: last(run, key) for run in members}
    rows = [Row(_name(m), m, values(m, key), values(m, by), None) for m in groups]
    rows.sort(key=lambda row: (-sign * spread(row.selecting.values())[0], row.name))
    for a, b in itertools.pairwise(sorted(row.name for row in rows)):
        require(a != b, f"{a}: runs of two configs have this name")
    others = [row._replace(difference=paired(row.values, rows[0].values)) for row in rows[1:]]
    return RunReport(key, by, [rows[0], *others], varied(groups), left_out)


def left_out_text(left_out: dict[str, str]) -> str:
    """'left out: lr-3 (not finished)'."""
    words = [f"{os.path.basename(path)} ({reason})" for path, reason in sorted(left_out.items())]
    return f"left out: {', '.join(words)}"


def notes(report: RunReport) -> list[str]:
    """The lines below a table: how the best row was selected, what the intervals are, and which
    runs are left out."""
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
    runs = [run for row in report.rows for run in row.runs if run.result.get("stopped")]
    if runs:
        names = [f"{run.name} at step {run.result['steps']}" for run in runs]
        more = [f"and {len(names) - 6} more"] if len(names) > 6 else []
        lines.append(f"stopped early: {', '.join(names[:6] + more)}")
    return lines + ([left_out_text(report.left_out)] if report.left_out else [])


def facts(runs: Sequence[FinishedRun]) -> dict:
    """Parameters, the seconds of each run, and the hardware and versions of their last starts;
    commits are those of all starts."""
    starts = [run.environment[-1] for run in runs if run.environment]
    commits = [start["commit"] for run in runs for start in run.environment]
    return {
        "parameters": runs[0].result["parameters"],
        "seconds": [run.result["wall_seconds"] for run in runs],
        "hardware": sorted(set(map(_hardware, starts))),
        "jax": sorted({start["versions"]["jax"] for start in starts}),
        "commit": sorted({commit[:7] + commit[40:] for commit in commits if commit}),
    }


def _hardware(start: dict) -> str:
    """'cpu x 2', and how many runs were trained there as one program, if more than one."""
    population = start.get("population", 1)
    shared = f" for {population} runs together" if population > 1 else ""
    return f"{start['device']} x {start['devices']}{shared}"
