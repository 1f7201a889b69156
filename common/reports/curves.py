"""Curves of logged numbers, made ready to be drawn: their points, what of them an axis shows, and
their mean over runs. Pure functions of logs; `plots` and `page` draw them.

    curve = curves.of(log.read_lines("runs/small-0"), "eval/test/accuracy")
    low, high = curves.window([curve.values], sign=1)
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common.runs.history import number

MOST_POINTS = 400  # of a curve that is thinned
FAR = 4.0  # times the height of an ordinary curve: farther away is off the axis
X = ("steps", "epochs", "minutes")


class Curve(NamedTuple):
    """A log key over time.

    Attributes:
      steps: f64[n].
      minutes: f64[n], of training; NaN if the log holds no clock.
      values: f64[n]; NaN where the log holds no number.
    """

    steps: np.ndarray
    minutes: np.ndarray
    values: np.ndarray


def keys(histories: Sequence[Sequence[dict]], first: Sequence[str]) -> list[str]:
    """The keys of training and evaluation that hold numbers: those of `first`, then training and
    the evaluators of `first`, then the others; of each losses first."""
    known = {
        key
        for history in histories
        for line in history
        for key, value in line.items()
        if key.startswith(("train/", "eval/")) and np.isfinite(number(value))
    }
    near = ("train/", *(key.rpartition("/")[0] + "/" for key in first))

    def rank(key: str) -> tuple:
        at = first.index(key) if key in first else len(first)
        return at, not key.startswith(near), not key.endswith("loss"), key

    return sorted(known, key=rank)


def of(history: Sequence[dict], key: str) -> Curve:
    """The curve of a log key; minutes are interpolated from neighbouring lines."""
    clock = [(line["step"], line["time/seconds"]) for line in history if "time/seconds" in line]
    points = [(line["step"], number(line[key])) for line in history if key in line]
    steps, values = np.array(points, float).reshape(-1, 2).T
    minutes = np.full(len(steps), np.nan)
    if clock:
        at, seconds = np.array(clock, float).T
        minutes = np.interp(steps, at, seconds) / 60
    return Curve(steps, minutes, np.where(np.isfinite(values), values, np.nan))


def along(curve: Curve, x: str, epoch_steps: float | None = None) -> np.ndarray:
    """f64[n]: the positions of a curve's points on the axis `x`, one of `X`; `epoch_steps` is the
    number of steps of an epoch."""
    if x == "epochs":
        return curve.steps / (epoch_steps or np.nan)
    return curve.minutes if x == "minutes" else curve.steps


def epoch_steps(config: dict, steps: int) -> float | None:
    """Steps of an epoch, of a flat config whose duration counts epochs and that took so many
    steps; None of any other."""
    count, _, unit = str(config.get("train.duration", "")).strip().partition(" ")
    try:
        epochs = float(count) if unit.strip().startswith("epoch") else 0.0
    except ValueError:
        return None
    return steps / epochs if epochs > 0 and steps > 0 else None


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """A curve of at most so many points that looks the same: the lowest and the highest of each of
    equal stretches, and the first and the last."""
    count = len(curve.steps)
    if count <= most:
        return curve
    kept = {0, count - 1}
    for part in np.array_split(np.arange(count), (most - 2) // 2):
        values = curve.values[part]
        if np.isfinite(values).any():
            kept |= {int(part[np.nanargmin(values)]), int(part[np.nanargmax(values)])}
        else:
            kept.add(int(part[0]))
    rows = sorted(kept)
    return Curve(*(column[rows] for column in curve))


class Band(NamedTuple):
    """The mean of several curves, and their standard deviation.

    Attributes:
      curve: the mean, over the steps that all of them log.
      low, high: f64[n]: one standard deviation below and above.
    """

    curve: Curve
    low: np.ndarray
    high: np.ndarray


def band(of_runs: Sequence[Curve]) -> Band | None:
    """The mean of curves over the steps that all of them share; None of fewer than two, or without
    such steps."""
    of_runs = [curve for curve in of_runs if len(curve.steps)]
    if len(of_runs) < 2:
        return None
    shared = sorted(set.intersection(*(set(curve.steps) for curve in of_runs)))
    if not shared:
        return None
    # Where a step has two lines, the last counts.
    rows = [{step: i for i, step in enumerate(curve.steps)} for curve in of_runs]
    pick = lambda column: np.array(
        [getattr(c, column)[[at[s] for s in shared]] for c, at in zip(of_runs, rows, strict=True)]
    )
    values, minutes = pick("values"), pick("minutes")
    mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1)
    curve = Curve(np.array(shared), minutes.mean(axis=0), mean)
    return Band(curve, mean - deviation, mean + deviation)


# -------------------------------------------------------------------------------------------- axes


def _settled(values: np.ndarray) -> tuple[float, float]:
    """(low, high) of a curve without its first eighth, where it falls or rises steeply, and without
    the outermost 2% of the rest."""
    late = values[-(-len(values) // 8) if len(values) > 2 else 0 :]
    late = late[np.isfinite(late)]
    return tuple(np.quantile(late, (0.02, 0.98))) if len(late) else (np.nan, np.nan)


def off_axis(of_runs: Sequence[np.ndarray], sign: int = 0) -> list[bool]:
    """For each curve whether it has diverged: it ends in no finite number, or farther from an
    ordinary curve than `FAR` times that one's height, so that it would flatten all the others.

    The ordinary curve is the one in the middle by its last value; of two, the better.

    Args:
      of_runs: the values f64[n] of each curve.
      sign: 1 if more is better, -1 if less is, 0 if that is unknown.
    """
    ends = [values[-1] if len(values) else np.nan for values in of_runs]
    finite = [end for end in ends if np.isfinite(end)]
    if not finite:
        return [True] * len(ends)
    middle = (statistics.median_high if sign > 0 else statistics.median_low)(finite)
    ordinary = of_runs[ends.index(middle)]
    ordinary = ordinary[np.isfinite(ordinary)]
    low, high = np.quantile(ordinary, (0.0, 0.98))
    # A single value shows no height: it is compared by its size.
    height = max(high - low, abs(middle) * (1 if len(ordinary) > 2 else 10)) or 1.0
    return [not abs(end - middle) <= (1 + FAR) * height for end in ends]


def window(of_runs: Sequence[np.ndarray], sign: int = 0) -> tuple[float, float]:
    """(low, high) of an axis on which curves can be told apart: their values after the first steps,
    which would compress the rest and may lie outside, without those of diverged ones (`off_axis`).

    Args: as in `off_axis`.
    """
    away = off_axis(of_runs, sign)
    spans = [_settled(values) for values, far in zip(of_runs, away, strict=True) if not far]
    ends = [values[-1] for values, far in zip(of_runs, away, strict=True) if not far]
    seen = [value for value in (*sum(spans, ()), *ends) if np.isfinite(value)]
    if not seen:
        return 0.0, 1.0
    low, high = float(min(seen)), float(max(seen))
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room
