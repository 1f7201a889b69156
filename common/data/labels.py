"""Labels of one's own, as numbers: classes in sorted order, or numbers as they are."""

import collections
import logging
from collections.abc import Callable, Sequence

import numpy as np

from common import inputs
from common.errors import brief, require

MOST_NAMED = 5  # labels of mixed spelling that a warning lists


def numbered(
    values: Sequence, where: str, at: Callable[[int], str] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers the labels of N examples.

    Labels that are all text, all whole numbers or all true and false are classes. Labels that are
    numbers, of which one at least has a decimal point, are numbers. Classes whose names differ only
    in case or white space remain two, and a warning names them.

    Args:
      values: N labels, as read from a table.
      where: the config key and file, which begins each message.
      at: the place of the i-th label, such as "line 3"; by default "label i", counted from 1.

    Returns:
      (i32[N], names of the classes, sorted), or (f32[N], ()) for numbers.

    Raises:
      BadInput: if a label is missing, is neither text nor a number, or is not finite; or if they
        are of several kinds.
    """
    at = at or (lambda i: f"label {i + 1}")
    first: dict[type, int] = {}  # the first label of each kind
    for i, value in enumerate(values):
        kind = next((k for k in (str, bool, int, float) if isinstance(value, k)), type(value))
        if kind not in first:
            first[kind] = i
            known = kind in (str, bool, int, float)
            spelled = inputs.spelled_type(value)
            require(known, f"{where}, {at(i)}: the label is {spelled}, not text or a number")
        require(
            kind is not str or bool(value.strip()),
            f"{where}, {at(i)}: the label is empty; remove the example, or label it",
        )
    if float in first and first.keys() <= {float, int}:
        largest = float(np.finfo(np.float32).max)
        wrong = next((i for i, value in enumerate(values) if not abs(value) <= largest), None)
        require(
            wrong is None,
            f"{where}, {at(wrong or 0)}: a label is not finite, as a 32-bit float",
        )
        return np.array(values, np.float32), ()
    examples = ", ".join(f"{brief(values[i])} ({at(i)})" for i in first.values())
    require(
        len(first) <= 1,
        f"{where}: labels are of several kinds: {examples}; they must be all text, all whole "
        "numbers, or all numbers",
    )
    counts = collections.Counter(values)
    classes = sorted(counts)
    if str in first:
        _warn_of_spellings(counts, where)
    number = {value: i for i, value in enumerate(classes)}
    return np.array([number[value] for value in values], np.int32), tuple(map(str, classes))


def _warn_of_spellings(counts: collections.Counter, where: str) -> None:
    alike = collections.defaultdict(list)
    for name in sorted(counts):
        alike["".join(name.casefold().split())].append(f"{brief(name)} ({counts[name]:,})")
    mixed = [" and ".join(names) for names in alike.values() if len(names) > 1]
    if mixed:
        more = f"; and {len(mixed) - MOST_NAMED} more" if len(mixed) > MOST_NAMED else ""
        logging.warning(
            "%s: labels that differ only in case or white space are classes of their own: %s%s",
            where,
            "; ".join(mixed[:MOST_NAMED]),
            more,
        )
