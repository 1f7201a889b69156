"""A learning-rate range test (Smith 2017): the loss while the rate grows from step to step, and the
rate that it suggests. Writes nothing."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from common.config import changed
from common.devices import mesh, runtime
from common.errors import require
from common.sections import call
from common.training.loop import batches_from
from common.training.program import initial_state, prepare

DIVERGED = 4.0  # times the lowest loss: the test ends there, if that is above the first one


class Tested(NamedTuple):
    """The outcome of a range test.

    Attributes:
      rates: f64[n], each `exp` of equal steps above the one before.
      losses: f64[n], the objective of the step with that rate; the last may be infinite or NaN.
      smooth: f64[m], m <= n, finite: averages of neighbouring losses.
      suggested: the rate at which the loss fell fastest; None if it did not fall.
      lowest: the rate at which it was lowest.
      diverged: whether the test ended early: the loss was not finite, or large (`DIVERGED`).
    """

    rates: np.ndarray
    losses: np.ndarray
    smooth: np.ndarray
    suggested: float | None
    lowest: float
    diverged: bool


def range_test(
    config: dict,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    show: Callable[[int, float, float], None] = lambda step, rate, loss: None,
) -> Tested:
    """Trains a config afresh, with a rate that grows from `low` to `high`, until it diverges.

    Args:
      config: a completed config; its schedule, warmup and duration give way to the test.
      low, high: the first rate and the last.
      steps: how many steps there are between them.
      show: called after each step with (step, rate, loss).

    Raises:
      BadInput: for a value out of range, and as `prepare` does.
    """
    limits = np.finfo(np.float32)
    rises = limits.tiny <= low < high <= limits.max
    require(
        bool(rises),
        f"the rates {low:g} to {high:g} do not rise within {limits.tiny:.1e} to {limits.max:.1e}",
    )
    require(10 <= steps <= 100_000, f"{steps} steps: a range test has 10 to 100,000")
    constant = {"schedule": "constant", "warmup": "0 steps", "decay": None, "final": 0.0, "lr": low}
    length = {"train.duration": f"{steps} steps", "train.steps_per_call": 1}
    call(runtime.start, config["runtime"])
    program = prepare(changed(config, **{f"optim.{k}": v for k, v in constant.items()}, **length))
    rates, losses = np.geomspace(low, high, steps), []
    with jax.set_mesh(program.layout.mesh):
        state, batches = initial_state(program), batches_from(program, 0)
        for step, rate in enumerate(rates, 1):
            hypers = mesh.put_replicated(program.layout, {"optim.lr": np.float32(rate)})
            hypers = program.hypers | hypers
            state, terms, finite = program.step(hypers, state, next(batches), program.resident)
            loss, finite = jax.device_get((terms["loss"][0], finite))
            loss = float(loss)
            losses.append(loss if finite else math.nan)
            show(step, rate, loss)
            if _diverged(losses):
                break
    return tested(rates[: len(losses)], np.array(losses))


def tested(rates: np.ndarray, losses: np.ndarray) -> Tested:
    """The suggestion of these losses; see `Tested`."""
    finite = len(losses) - (not math.isfinite(losses[-1]))
    kept = losses[:finite]
    smooth = _smooth(kept, max(1.0, len(rates) / 40)) if finite else kept
    suggested, lowest = None, rates[0]
    if finite > 2:
        bottom = int(np.argmin(smooth))
        lowest = rates[bottom]
        falls = smooth[0] - smooth[bottom]
        # A fall within the noise of the batches is none.
        if bottom > 1 and falls > np.std(kept[: bottom + 1] - smooth[: bottom + 1]):
            slopes = np.gradient(smooth)[: bottom + 1]
            suggested = float(rates[int(np.argmin(slopes))])
    return Tested(rates, losses, smooth, suggested, float(lowest), _diverged(losses))


def _diverged(losses) -> bool:
    """Whether the last loss is not finite, or far above the lowest and above the first."""
    last = losses[-1]
    return not math.isfinite(last) or last > max(DIVERGED * min(losses), losses[0])


def _smooth(values: np.ndarray, width: float) -> np.ndarray:
    """Averages with neighbours, weighted by a Gaussian of this standard deviation."""
    at = np.arange(len(values))
    weights = np.exp(-0.5 * ((at[:, None] - at) / width) ** 2)
    return weights @ values / weights.sum(axis=1)
