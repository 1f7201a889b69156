"""A config's durations in steps: '300 steps', '10 epochs', '1e6 examples', or '5%' of the run."""

import re

from common.errors import BadInput, brief, require
from common.task import MOST_STEPS


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
