"""Sweeps: the overrides of a config that make up its trials.

A sweep is an iterable of dicts like {"optim.lr": 1e-3, "seed": 0}. A config file defines one as
`sweep()`, composed from these functions; they are pure, so trial k is the same everywhere.

    def sweep():
        return product(over("optim.lr", (1e-3, 3e-3)), over("seed", range(3)))

A function that returns a space, {"optim.lr": LogUniform(1e-4, 1e-1)}, stands for any number of
samples from it.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from common.errors import brief, require
from common.values import python

Overrides = dict[str, Any]


class LogUniform(NamedTuple):
    """A float from low to high, log-uniform, rounded to six digits."""

    low: float
    high: float

    def __call__(self, u: float) -> float:
        """The value at `u` in [0, 1)."""
        return _six_digits(self.low * (self.high / self.low) ** u)


class Integers(NamedTuple):
    """An integer from low to high, inclusive."""

    low: int
    high: int

    def __call__(self, u: float) -> int:
        """The value at `u` in [0, 1)."""
        return self.low + math.floor(u * (self.high - self.low + 1))


class Choice(NamedTuple):
    """One of several options."""

    options: tuple

    def __call__(self, u: float) -> Any:
        """The value at `u` in [0, 1)."""
        return self.options[math.floor(u * len(self.options))]


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def rounded(overrides: Overrides) -> Overrides:
    """Rounds floats to six digits, as `LogUniform` does: folder names stay short."""
    plain = {key: python(key, value) for key, value in overrides.items()}
    return {k: _six_digits(v) if isinstance(v, float) else v for k, v in plain.items()}


Space = dict[str, LogUniform | Integers | Choice]


def plain_space(space: Space) -> Space:
    """A space with the numbers of numpy or jax that it is written with as Python's. Raises
    `BadInput` for what is no part of a space, or contains no value."""
    kinds = LogUniform, Integers, Choice
    for key, spec in space.items():
        known = isinstance(spec, kinds)
        require(
            known,
            f"{key}: {brief(spec)} is no part of a space; write LogUniform, Integers or Choice",
        )
    plain = {key: type(spec)(*python(key, tuple(spec))) for key, spec in space.items()}
    for key, spec in plain.items():
        _check(key, spec)
    return plain


def over(key: str, values: Iterable) -> Iterator[Overrides]:
    """One trial for each value of a key."""
    return ({key: value} for value in values)


def product(*sweeps: Iterable[Overrides]) -> Iterator[Overrides]:
    """The Cartesian product of sweeps; the last one varies fastest.

    Raises:
      BadInput: if two of them set the same key.
    """
    return map(_merged, itertools.product(*sweeps))


def zipit(*sweeps: Iterable[Overrides]) -> Iterator[Overrides]:
    """Merges sweeps trial by trial: the first trials of all, then the second ones, and so on.

    Raises:
      BadInput: if their lengths differ, or two of them set the same key.
    """
    sweeps = tuple(map(tuple, sweeps))
    lengths = [len(trials) for trials in sweeps]
    require(len(set(lengths)) <= 1, f"zipit: sweeps of different lengths: {lengths}")
    return map(_merged, zip(*sweeps, strict=True))


def chain(*sweeps: Iterable[Overrides]) -> Iterator[Overrides]:
    """The trials of the first, then those of the second, and so on."""
    return itertools.chain(*sweeps)


def folds(count: int, train: str = "train", evaluator: str = "test") -> Iterator[Overrides]:
    """Cross-validation: trial i trains on all but the i-th of `count` folds, and evaluates that.

    Where examples have labels, folds are drawn at random, the same ones for every seed and trial;
    elsewhere they are consecutive blocks, so that neighbours in a text stay together
    (`common.data.splits.ranges`). A product with other overrides repeats each of them on every
    fold, and a report averages them.

    Args:
      count: how many folds.
      train: the split that is divided, such as "train[:90%]+extra", each part of it likewise.
      evaluator: the name of the evaluator whose split becomes the fold.

    Raises:
      BadInput: for fewer than two folds, or a split that holds folds already.
    """
    require(count > 1, f"folds: {count} is fewer than 2")
    require("fold " not in train, f"folds: {brief(train)} is of folds already")
    of = lambda text: "+".join(f"{part}[{text}]" for part in train.split("+"))
    return (
        {
            "data.train": of(f"not fold {i}/{count}"),
            f"evals.{evaluator}.split": of(f"fold {i}/{count}"),
        }
        for i in range(1, count + 1)
    )


def _merged(parts: Iterable[Overrides]) -> Overrides:
    merged: Overrides = {}
    for part in parts:
        twice = sorted(merged.keys() & part.keys())
        require(not twice, f"a sweep sets {', '.join(twice)} twice")
        merged |= part
    return merged


def sample(trials: int, space: Space, seed: int = 0) -> Iterator[Overrides]:
    """Random trials. Trial k depends on (seed, k), and each key's value on that key alone: a longer
    sweep extends a shorter one, and another key changes no value of the others.

    Args:
      trials: how many.
      space: {key: LogUniform, Integers or Choice}.
      seed: of the sampling, not of the trials.

    Raises:
      BadInput: for a space that contains no value.
    """
    for key, spec in space.items():
        _check(key, spec)
    return (
        {key: spec(_uniform(seed, k, key)) for key, spec in space.items()} for k in range(trials)
    )


def _check(key: str, spec) -> None:
    if isinstance(spec, Choice):
        require(len(spec.options) > 0, f"{key}: a choice without options")
        return
    low, high = python(key, tuple(spec))
    if isinstance(spec, Integers):
        whole = all(isinstance(end, int) for end in (low, high))
        require(
            whole, f"{key}: {brief(low)} to {brief(high)} are not integers; write Integers(0, 3)"
        )
    positive = low > 0 or isinstance(spec, Integers)
    require(low <= high and positive, f"{key}: {type(spec).__name__} from {low} to {high}")


def _uniform(seed: int, trial: int, key: str) -> float:
    """A number in [0, 1), independent of library versions."""
    digest = hashlib.sha256(f"{seed} {trial} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * (1 - 2**-53)
