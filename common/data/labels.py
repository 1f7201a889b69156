"""Labels of one's own, as numbers: classes in sorted order, one or several an example, or numbers
as they are."""

import collections
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from common import inputs
from common.errors import brief, require
from common.task import Source, split_key

LEAST_CHANGES = 20  # of the class from row to row, to be expected of a slice that is judged
MOST_NAMED = 5  # labels of mixed spelling that a warning lists
MOST_CELLS = 1 << 32  # examples times classes, where examples have several labels
SEPARATORS = ";|"  # of labels in a cell
WHOLE = re.compile(r"[-+]?[0-9]{1,300}")


def numbered(
    values: Sequence,
    where: str,
    at: Callable[[int], str] | None = None,
    numbers: bool = True,
    separator: str = "",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers the labels of N examples.

    Labels that are all text, all whole numbers or all true and false are classes. Labels that are
    numbers, of which one at least has a decimal point, are numbers. Labels that are lists, even
    empty ones, are several an example; so are texts that a `separator` divides. Classes are in the
    order of `ordered`. Those whose names differ only in case or white space remain two, and a
    warning names them (`say_alike`).

    Args:
      values: N labels, as read from a table.
      where: the config key and file, which begins each message.
      at: the place of the i-th label, such as "line 3"; by default "label i", counted from 1.
      numbers: whether labels may be numbers, too, not classes alone.
      separator: divides each text into labels, from which white space around them is taken; None
        then has no labels.

    Returns:
      (i32[N], names of the classes in order), (u8[N, K] of 0 and 1, names) for lists, or (f32[N],
      ()) for numbers.

    Raises:
      BadInput: if a label is missing, is neither text nor a number, or is not finite; if they
        are of several kinds, or vectors of 0 and 1; or for a number with a decimal point without
        `numbers`.
    """
    at = at or (lambda i: f"label {i + 1}")
    if separator:
        parts = lambda text: [part.strip() for part in text.split(separator) if part.strip()]
        values = ["" if value is None else value for value in values]  # an empty cell of a .parquet
        values = [parts(value) if isinstance(value, str) else value for value in values]
    if any(isinstance(value, list) for value in values):
        return _several(values, where, at)
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
    if float in first:
        i = first[float]
        require(
            numbers,
            f"{where}, {at(i)}: the label {brief(values[i])} is a number with a decimal point, not "
            "a class; write classes as text, or as whole numbers (1, not 1.0)",
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
    classes = ordered(counts) if str in first else sorted(counts)
    if str in first:
        say_alike(counts, where)
        _say_divisible(classes, where)
    number = {value: i for i, value in enumerate(classes)}
    return np.array([number[value] for value in values], np.int32), tuple(map(str, classes))


def _several(
    values: Sequence, where: str, at: Callable[[int], str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """`numbered` of lists of labels."""
    listed = next(i for i, value in enumerate(values) if isinstance(value, list))
    for i, value in enumerate(values):
        kind = inputs.spelled_type(value)
        require(
            isinstance(value, list),
            f"{where}, {at(i)}: the label is {kind}, but a list in {at(listed)}; write a list of "
            "labels for each example, [] for none",
        )
    rows = np.repeat(np.arange(len(values)), [len(value) for value in values])
    require(len(rows) > 0, f"{where}: none of the {len(values):,} examples has a label")
    flat = [label for value in values for label in value]
    deep = next((i for i, label in enumerate(flat) if isinstance(label, list)), None)
    require(
        deep is None,
        f"{where}, {at(int(rows[deep or 0]))}: a label in the list is a list, not text or a number",
    )
    widths = {len(value) for value in values}
    require(
        len(widths) > 1 or widths == {1} or not all(label in (0, 1) for label in flat),
        f"{where}: labels such as {brief(values[0])} ({at(0)}) are vectors of 0 and 1; write the "
        "classes that are 1: [0, 2] for [1, 0, 1]",
    )
    labels, classes = numbered(flat, where, lambda i: at(int(rows[i])), numbers=False)
    needed = len(values) * len(classes)
    require(
        needed <= MOST_CELLS,
        f"{where}: {len(values):,} examples with labels of {len(classes):,} classes take "
        f"{needed:,} bytes, more than {MOST_CELLS:,}; leave out rare classes",
    )
    hot = multi_hot(labels, rows, (len(values), len(classes)))
    repeated = len(labels) - int(hot.sum(dtype=np.int64))
    if repeated:
        logging.warning("%s: labels repeated within an example count once: %d", where, repeated)
    return hot, classes


def multi_hot(labels: np.ndarray, rows: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """u8[N, K], the `shape`, with 1 for each label in its row."""
    hot = np.zeros(shape, np.uint8)
    hot[rows, labels] = 1
    return hot


def any_of(size: int, classes: int, several: bool) -> np.ndarray:
    """Labels as good as any, of every class, for sets without contents: i32[size], or, if examples
    have several, u8[size, classes]."""
    labels = np.arange(size, dtype=np.int32) % classes
    return multi_hot(labels, np.arange(size), (size, classes)) if several else labels


def _say_divisible(classes: Sequence[str], where: str) -> None:
    """Warns of classes that look like several: their parts stand in other classes, too."""
    for sign in SEPARATORS:
        parts = {name: [part.strip() for part in name.split(sign)] for name in classes}
        counts = collections.Counter(part for of in parts.values() for part in of)
        like = [n for n, of in parts.items() if len(of) > 1 and all(counts[p] > 1 for p in of)]
        if like:
            logging.warning(
                "%s: %s is read as the name of one class; if it is several labels, set "
                "config.data.label_separator=%r",
                *(where, brief(like[0]), sign),
            )


def say_absent(labels: np.ndarray, classes: Sequence[str], where: str, split: str) -> None:
    """Warns of classes without an example.

    Args:
      labels: whole numbers, below 0 for none, of any shape; or u8[N, K] of 0 and 1.
      classes: the names of the K classes.
      where, split: what the message begins with, and the split whose labels they are.
    """
    labels = np.flatnonzero(labels.any(axis=0)) if labels.dtype == np.uint8 else labels
    empty = np.setdiff1d(np.arange(len(classes)), labels).tolist()
    if empty:
        have = "has" if len(empty) == 1 else "have"
        logging.warning(
            "%s: %s of %s classes %s no example in %r, %s first",
            *(where, f"{len(empty):,}", f"{len(classes):,}", have, split, brief(classes[empty[0]])),
        )


def say_sorted(sources: Mapping[str, Source], splits: Mapping[str, str]) -> None:
    """Warns of slices of a set whose rows are sorted by class, as they have other classes than the
    rest of it.

    Args:
      sources: by name, with `labels` that are quick to read.
      splits: {name of the Source: split}.
    """
    labels = {key: source.labels() for key, source in sources.items() if source.labels is not None}
    labels = {k: each for k, each in labels.items() if each.ndim == 1 and each.dtype.kind in "iu"}
    counts = np.unique(np.concatenate([*labels.values(), []]), return_counts=True)[1]
    differ = 1 - np.square(counts / counts.sum()).sum()  # of two rows drawn at random
    for key, each in labels.items():
        expected, changes = differ * len(each), np.count_nonzero(np.diff(each))
        sliced = "[" in splits[key] and "fold" not in splits[key]
        if sliced and expected > LEAST_CHANGES and changes < expected / 5:
            logging.warning(
                "%s: %s is consecutive rows, and they are sorted by class: it has other classes "
                "than the rest; shuffle them, or write [fold 1/10] and [not fold 1/10], which are "
                "drawn at random",
                *(split_key(key), brief(splits[key])),
            )


def ordered(names: Iterable[str]) -> list[str]:
    """Names of classes in their order: by value if all are whole numbers, so that "2" comes before
    "10", else as text."""
    names = sorted(names)
    return sorted(names, key=int) if all(map(WHOLE.fullmatch, names)) else names


def say_alike(counts: Mapping[str, int], where: str) -> None:
    """Warns of classes whose names differ only in case, in white space, or in what cannot be seen:
    a zero-width space, an accent of its own. Also of names with white space around them.

    Args:
      counts: {name of a class: number of its examples, or 0 if that is not known}.
      where: the config key and file, which begins the message.
    """
    composed = lambda name: unicodedata.normalize("NFC", name)
    spelled = lambda name: brief(name) if name == composed(name) else ascii(name)
    shown = lambda name: spelled(name) + (f" ({counts[name]:,})" if counts[name] else "")
    alike = collections.defaultdict(list)
    for name in sorted(counts):
        seen = [sign for sign in composed(name.casefold()) if unicodedata.category(sign) != "Cf"]
        alike["".join("".join(seen).split())].append(name)
    mixed = [names for names in alike.values() if len(names) > 1]
    known = {name for names in mixed for name in names}
    spaced = [[name] for name in sorted(counts) if name != name.strip() and name not in known]
    for groups, what in (
        (
            mixed,
            "labels that differ only in case, space or invisible signs are classes of their own",
        ),
        (spaced, "labels with white space around them keep it"),
    ):
        if groups:
            more = f"; and {len(groups) - MOST_NAMED} more" if len(groups) > MOST_NAMED else ""
            named = "; ".join(" and ".join(map(shown, names)) for names in groups[:MOST_NAMED])
            logging.warning("%s: %s: %s%s", where, what, named, more)
