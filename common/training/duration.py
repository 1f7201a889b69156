"""A config's durations in steps: '300 steps', '10 epochs', '1e6 examples', or '5%' of the run; and
the section `train`, which says how long a run is."""

import re
from typing import Literal

from common.data import order
from common.errors import BadInput, brief, require
from common.task import MOST_STEPS
from common.training.step import Plan


def steps(
    text: str, *, where: str, batch_size: int, size: int, total: int | None = None, low: int = 0
) -> int:
    """Steps in a duration: '300 steps', '10 epochs', '1e6 examples', or '5%' of `total`.

    Args:
      text: the duration.
      where: its key, for the error message.
      batch_size: examples a step.
      size: examples an epoch.
      total: steps of the whole run; without it a percentage is an error.
      low: the fewest steps allowed.

    Raises:
      BadInput: for any other text, fewer than `low` steps, or more than 2^31 - 1.
    """
    matched = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(steps?|epochs?|examples?|%)\s*", text)
    require(
        matched is not None,
        f"{where}: {brief(text)} is not a duration: '300 steps', '10 epochs', '5%' or "
        "'1e6 examples'",
    )
    number, unit = matched.groups()
    try:
        number = float(number)
    except ValueError:
        raise BadInput(
            f"{where}: {brief(text)} is not a duration: {brief(number)} is not a number"
        ) from None
    if unit == "%":
        require(total is not None, f"{where}: a percentage has no total to refer to here")
        count = number / 100 * total
    else:
        scale = {"step": 1, "epoch": size / batch_size, "example": 1 / batch_size}
        count = number * scale[unit.rstrip("s")]
    # Compared before it is rounded: it may be infinite.
    most = f"{brief(text)} is more than {MOST_STEPS:,} steps, the most that a run counts"
    require(count <= MOST_STEPS, f"{where}: {most}")
    count = max(round(count), 1 if number > 0 else 0)
    require(count >= low, f"{where}: {text!r} is {count} steps, but at least {low} is required")
    return count


def plan(
    size: int,
    *,
    batch_size: int = 128,
    duration: str = "1 epoch",
    accumulate: int = 1,
    average: float | None = None,
    log_every: str = "50 steps",
    steps_per_call: int = 1,
    sampling: Literal["uniform", "balanced"] = "uniform",
) -> Plan:
    """The section `train`: batches, duration and logging, checked and converted to steps.

    Args:
      size: examples in the training set.
      batch_size: global batch size: examples a step, over all devices.
      duration: length of the whole run: "300 steps", "10 epochs" or "1e6 examples".
      accumulate: microbatches that each batch is split into, to save memory; the result is the
        same.
      average: decay of an exponential moving average of the parameters, which evaluation then
        uses; None keeps none.
      log_every: interval between log lines: "50 steps", "1 epoch" or "1%" of the run. A line holds
        exact means over the steps since the one before, and the learning rate of its own step.
      steps_per_call: most steps in one call of the compiled program, which returns early if
        something is due; saves about 0.15 ms a step. Needs a resident training set; preemption
        waits for up to two calls. Not for convolutions on CPU, ten times slower in a loop.
      sampling: "uniform" uses each example once an epoch; "balanced" draws all classes equally
        often, each class's examples in turn. An epoch remains as many examples.

    Raises:
      BadInput: for a value out of range.
    """
    check_batch_size("config.train.batch_size", batch_size)
    require(accumulate > 0, f"config.train.accumulate: {accumulate} is not positive")
    in_range = 0 < steps_per_call <= MOST_STEPS
    require(in_range, f"config.train.steps_per_call: {steps_per_call} is not in 1 to {MOST_STEPS}")
    require(
        batch_size % accumulate == 0,
        f"config.train.accumulate: {accumulate} does not divide the batch of {batch_size}",
    )
    in_range = average is None or 0 < average < 1
    require(in_range, f"config.train.average: {average} is not between 0 and 1")
    total = steps(duration, where="config.train.duration", batch_size=batch_size, size=size, low=1)
    every = steps(
        log_every,
        where="config.train.log_every",
        batch_size=batch_size,
        size=size,
        total=total,
        low=1,
    )
    return Plan(batch_size, total, accumulate, average, every, steps_per_call, sampling)


def check_batch_size(where: str, batch_size: int) -> None:
    """Raises `BadInput`, naming the key, for a batch that has no examples, or too many."""
    require(
        0 < batch_size <= order.MOST_BATCH,
        f"{where}: {batch_size} is not a positive number of examples up to {order.MOST_BATCH:,}",
    )
