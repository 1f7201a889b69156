"""Sweeps: which overrides of a config its trials have.

A sweep is an iterable of dicts like {"optim.lr": 1e-3, "seed": 0}. A config file has one as
`sweep()`, put together from these functions; they are pure, so that trial k is the same everywhere.

    def sweep():
        return product(over("optim.lr", (1e-3, 3e-3)), over("seed", range(3)))

A function that returns a space, {"optim.lr": LogUniform(1e-4, 1e-1)}, stands for as many samples of
it as one asks for.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from common.errors import require

Overrides = dict[str, Any]


class LogUniform(NamedTuple):
    """A float from low to high, its logarithm uniform; of six digits."""

    low: float
    high: float

    def __call__(self, u: float) -> float:
        """The value at `u` in [0, 1)."""
        return _six_digits(self.low * (self.high / self.low) ** u)


class Integers(NamedTuple):
    """An integer from low to high, both included."""

    low: int
    high: int

    def __call__(self, u: float) -> int:
        """The value at `u` in [0, 1)."""
        return self.low + math.floor(u * (self.high - self.low + 1))


class Choice(NamedTuple):
    """One of some options."""

    options: tuple

    def __call__(self, u: float) -> Any:
        """The value at `u` in [0, 1)."""
        return self.options[math.floor(u * len(self.options))]


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def rounded(overrides: Overrides) -> Overrides:
    """With floats of six digits, as `LogUniform` has them: their folders' names stay short."""
    return {k: _six_digits(v) if isinstance(v, float) else v for k, v in overrides.items()}


Space = dict[str, LogUniform | Integers | Choice]


def over(key: str, values: Iterable) -> Iterator[Overrides]:
    """A trial for each value of one key."""
    return ({key: value} for value in values)


def product(*sweeps: Iterable[Overrides]) -> Iterator[Overrides]:
    """Every trial of each with every one of the others; the last changes fastest.

    Raises:
      BadInput: if two of them set the same key.
    """
    return map(_merged, itertools.product(*sweeps))


def zipit(*sweeps: Iterable[Overrides]) -> Iterator[Overrides]:
    """The first trials of all as one, then the second ones, and so on.

    Raises:
      BadInput: if they are not of one length, or two of them set the same key.
    """
    sweeps = tuple(map(tuple, sweeps))
    lengths = [len(trials) for trials in sweeps]
    require(len(set(lengths)) <= 1, f"zipit: sweeps of different lengths: {lengths}")
    return map(_merged, zip(*sweeps, strict=True))


def chain(*sweeps: Iterable[Overrides]) -> Iterator[Overrides]:
    """The trials of the first, then those of the second, and so on."""
    return itertools.chain(*sweeps)


def _merged(parts: Iterable[Overrides]) -> Overrides:
    merged: Overrides = {}
    for part in parts:
        twice = sorted(merged.keys() & part.keys())
        require(not twice, f"a sweep sets {', '.join(twice)} twice")
        merged |= part
    return merged


def sample(trials: int, space: Space, seed: int = 0) -> Iterator[Overrides]:
    """Trials at random. Trial k is a function of (seed, k) and of each key by itself: a longer
    sweep begins with the shorter one, and another key changes no value of the others.

    Args:
      trials: how many.
      space: {key: LogUniform, Integers or Choice}.
      seed: of the sampling, not of the trials.

    Raises:
      BadInput: for a space with nothing in it.
    """
    for key, one in space.items():
        _check(key, one)
    return ({key: one(_uniform(seed, k, key)) for key, one in space.items()} for k in range(trials))


def _check(key: str, one) -> None:
    if isinstance(one, Choice):
        require(len(one.options) > 0, f"{key}: a choice among nothing")
        return
    low, high = one
    positive = low > 0 or isinstance(one, Integers)
    require(low <= high and positive, f"{key}: {type(one).__name__} from {low} to {high}")


def _uniform(seed: int, trial: int, key: str) -> float:
    """A number in [0, 1), the same with any version of any library."""
    digest = hashlib.sha256(f"{seed} {trial} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * (1 - 2**-53)
