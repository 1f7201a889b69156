"""Means over seeds or folds, their spread, and how much one row of runs exceeds another.

difference = statistics.paired({0: 0.9, 1: 0.8}, {0: 0.8, 1: 0.6})  # {seed: accuracy}
print(difference.mean, difference.low, difference.high)
"""

import contextlib
import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from scipy.special import stdtrit

from common import losses
from common.runs.history import parse_best
from common.training.program import task_module


class Fold(NamedTuple):
    """A run of cross-validation: its seed, and the fold, `number` of `count`, that it holds out of
    training."""

    seed: int
    number: int
    count: int


Member = int | Fold  # what tells the runs of a row apart: the seed, or seed and fold


class Difference(NamedTuple):
    """How much one row exceeds another in a metric, over the seeds, or folds, that both have.

    Attributes:
      seeds: those seeds, or folds.
      mean: of the differences; None without a seed.
      low, high: the interval of the mean; None without two seeds, or if all differences are the
        same, which leaves no spread to estimate it from.
      scale: the larger of the absolute means of the two rows.
    """

    seeds: list[int]
    mean: float | None
    low: float | None
    high: float | None
    scale: float = 0.0

    @property
    def distinguishable(self) -> bool:
        """Whether there is an interval and it excludes 0."""
        return self.low is not None and not self.low <= 0 <= self.high

    @property
    def vague(self) -> bool:
        """Whether the interval includes 0 and is as wide as the values are large: it says
        nothing."""
        wide = self.low is not None and self.high - self.low >= self.scale
        return wide and not self.distinguishable


def by_fold(values: dict[Member, float]) -> dict[int, float]:
    """{fold: the mean over its seeds}; values by seed are returned unchanged."""
    folds: dict[int, list[float]] = {}
    for member, value in values.items():
        folds.setdefault(member.number if isinstance(member, Fold) else member, []).append(value)
    return {key: statistics.fmean(of_seeds) for key, of_seeds in folds.items()}


def spread(values: Iterable[float]) -> tuple[float, float | None]:
    """(mean, standard deviation over n - 1); None for the latter with a single value."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired(values: dict[Member, float], others: dict[Member, float]) -> Difference:
    """values - others with the 95% interval of Student's t, paired by seed, or by fold: n common
    ones, n - 1 degrees of freedom (Student 1908).

    The folds of cross-validation share training rows: their variance is multiplied by 1 + n/(k - 1)
    (Nadeau & Bengio 2003). The interval is that of a single comparison: there is no correction for
    several.
    """
    common = sorted(values.keys() & others.keys())
    if not common:
        return Difference([], None, None, None)
    differences = by_fold({member: values[member] - others[member] for member in common})
    mean, deviation = spread(differences.values())
    means = [statistics.fmean(x[member] for member in common) for x in (values, others)]
    scale = max(map(abs, means))
    seeds, n = sorted(differences), len(differences)
    rounding = 1e-12 * max(abs(x[member]) for x in (values, others) for member in common)
    if deviation is None or deviation <= rounding:
        return Difference(seeds, mean, None, None, scale)
    shared = 1 / (common[0].count - 1) if isinstance(common[0], Fold) else 0.0
    half = float(stdtrit(n - 1, 0.975)) * deviation * math.sqrt(1 / n + shared)
    return Difference(seeds, mean, mean - half, mean + half, scale)


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


def signs(tasks: Iterable[str]) -> dict[str, int]:
    """Which metrics are better when higher (1) or lower (-1): those of `common.losses` and of these
    tasks."""
    known = dict(losses.SIGNS)
    for task in sorted(set(tasks)):
        with contextlib.suppress(Exception):  # the task cannot be imported: its logs can be read
            known |= getattr(task_module(task), "SIGNS", {})
    return known
