"""The section `checkpoint`: when a run saves, and which checkpoints stay."""

from collections.abc import Callable
from typing import NamedTuple

from common.errors import require
from common.runs.history import parse_best


class Policy(NamedTuple):
    """The section `checkpoint`, checked.

    Attributes:
      every: steps between saves.
      keep_latest: how many of the newest to keep.
      keep_best: how many of the best to keep, by `best`.
      best: None, or (sign, key of the log): sign 1 maximises, -1 minimises.
    """

    every: int
    keep_latest: int
    keep_best: int
    best: tuple[int, str] | None


def policy(
    to_steps: Callable[[str, str], int],
    *,
    every: str = "1 epoch",
    keep_latest: int = 2,
    keep_best: int = 1,
    best: str = "",
) -> Policy:
    """The section `checkpoint`: when to save and what to keep.

    Args:
      to_steps: (duration, key for messages) -> steps.
      every: duration between checkpoints, such as "1 epoch"; the end is always saved.
      keep_latest: how many of the newest checkpoints to keep.
      keep_best: how many of the best checkpoints to keep as well, if `best` is set.
      best: metric of the best checkpoint: "max eval/valid/accuracy" or "min eval/valid/loss". Each
        evaluation that logs it is followed by a save; "" keeps only the newest.

    Raises:
      BadInput: for a value out of range.
    """
    require(keep_latest >= 1, f"config.checkpoint.keep_latest: at least 1, got {keep_latest}")
    require(keep_best >= 1, f"config.checkpoint.keep_best: at least 1, got {keep_best}")
    every_steps = to_steps(every, "config.checkpoint.every")
    require(every_steps > 0, "config.checkpoint.every: more than 0 steps")
    return Policy(every_steps, keep_latest, keep_best, parse_best("config.checkpoint.best", best))
