"""Which of several finished runs is the best, and which of the others differ from it: pure
functions of the contents of their workdirs. scripts/report.py prints and draws them.

    runs, left_out = reading.find_runs(["runs/small-0", "runs/small-1", "runs/sweep"])
    summary = report.compare(runs, "eval/test/accuracy", left_out=left_out)
    print(summary.rows[0].name, summary.rows[0].values)  # the best: {seed: accuracy}

A row holds runs that differ only in the seed, in the fold of the training split that they hold out,
and in how they were laid out and logged.
"""

import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from common.errors import nearest, require
from common.reports.reading import FinishedRun, group, left_out_text, settings_of, varied
from common.reports.statistics import (
    Difference,
    Fold,
    Member,
    by_fold,
    paired,
    signs,
    spread,
    wanted,
)
from common.runs.history import number


class Row(NamedTuple):
    """Runs that differ only in the seed, or in seed and fold.

    Attributes:
      name: of all its runs.
      runs: by seed.
      values: {seed, or `Fold`: the last value of the metric}.
      selecting: the same of the key that rows are selected by.
      difference: to the best row; None for the best row itself.
    """

    name: str
    runs: list[FinishedRun]
    values: dict[Member, float]
    selecting: dict[Member, float]
    difference: Difference | None


class RunReport(NamedTuple):
    """Rows, best first.

    Attributes:
      metric: the reported key.
      select: the key that decides which row is the best.
      rows: sorted by the mean of `select`.
      varied: the config keys in which rows differ.
      left_out: {path: reason}.
      costs: {a row's name: {what: number}}, from `cost.of_runs`; empty if nobody asks for them.
    """

    metric: str
    select: str
    rows: list[Row]
    varied: list[str]
    left_out: dict[str, str]
    costs: dict[str, dict[str, float]]


def _name(runs: Sequence[FinishedRun]) -> str:
    """A row's name: that of its runs, or of the first one without its trailing number."""
    first = runs[0].name
    alike = all(run.name == first for run in runs)
    return first if alike else re.sub(r"[-_.]?\d+$", "", first) or first


def last(run: FinishedRun, key: str) -> float:
    """The last value of a log key; NaN if that is not a number. Raises `BadInput` if the log lacks
    it."""
    values = [line[key] for line in run.history if key in line]
    keys = {key for line in run.history for key in line if key.startswith(("eval/", "train/"))}
    require(bool(values), f"{run.path}: no {key!r} in its log; {nearest(key, keys)}")
    return float(number(values[-1]))


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
    known = signs(run.config.get("task", "") for run in runs)
    sign, key = wanted("--metric", metric, known)
    flag, by = "--metric", re.sub("^eval/[^/]+/", "eval/valid/", key)
    if select:
        flag = "--select"
        sign, by = wanted(flag, select, known)
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
    values = lambda members, key: {run.member: last(run, key) for run in members}
    rows = [Row(_name(m), m, values(m, key), values(m, by), None) for m in groups]
    rows.sort(key=lambda row: (-sign * average(row.selecting)[0], row.name))
    for a, b in itertools.pairwise(sorted(row.name for row in rows)):
        require(a != b, f"{a}: runs of two configs have this name")
    others = [row._replace(difference=paired(row.values, rows[0].values)) for row in rows[1:]]
    return RunReport(key, by, [rows[0], *others], varied(groups), left_out, {})


def columns(report: RunReport) -> dict[str, list]:
    """What predictions cost, and what runs differ in: {key: its value for each run, by row}."""
    runs = [(row, run) for row in report.rows for run in row.runs]
    keys = next(iter(report.costs.values()), {})
    costs = {key: [report.costs[row.name][key] for row, _ in runs] for key in keys}
    return costs | {key: [settings_of(run, [key])[key] for _, run in runs] for key in report.varied}


def average(values: dict[Member, float]) -> tuple[float, float | None]:
    """(mean, standard deviation) over seeds, or over folds; None for the latter with one."""
    return spread(by_fold(values).values())


def missing_folds(row: Row) -> list[int]:
    """The folds without a run; [] where there are no folds."""
    folds = [member for member in row.values if isinstance(member, Fold)]
    absent = set(range(1, folds[0].count + 1)) if folds else set()
    return sorted(absent - {fold.number for fold in folds})


def notes(report: RunReport) -> list[str]:
    """The lines below a table: the best row and how it was selected, what the intervals are, and
    which runs are left out."""
    lines = []
    if len(report.rows) > 1:
        one_set = report.select.split("/")[:2] == report.metric.split("/")[:2]
        same = " itself" if report.select == report.metric else ", of the same set"
        caution = f"{same}: not an estimate for new data" if one_set else ""
        lines.append(f"best: {report.rows[0].name}, by {report.select}{caution}")
    folded = [row for row in report.rows if isinstance(next(iter(row.values)), Fold)]
    if folded:
        lines.append("± is the standard deviation over folds, of their means over seeds")
    for row in folded:
        absent = missing_folds(row)
        if absent:
            lines.append(f"{row.name}: without fold {', '.join(map(str, absent))}")
    shown = [row.difference for row in report.rows[1:] if row.difference.low is not None]
    if shown:
        many = f"; {len(shown)} comparisons, not corrected for their number" if shown[1:] else ""
        by = "by fold, and wider as folds share training rows" if folded else "by seed"
        lines.append(f"in brackets: 95% interval by Student's t, paired {by}{many}")
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
