"""Parts of a set that a user brings: "train", "valid" and "test", by the names that the user gave
them, or by a hash of each item, and none of them empty.

A hash holds out the same items whatever else is in a set, but of a few items it may hold out none.
Then, and only then, some are moved.
"""

import collections
import re
from collections.abc import Iterable
from typing import TypeVar

PARTS = ("train", "valid", "test")
ALIASES = {part: part for part in PARTS} | {
    "training": "train", "validation": "valid", "val": "valid", "dev": "valid", "testing": "test",
}  # fmt: skip
Key = TypeVar("Key")
ORDER = ("test", "valid", "train")  # in which parts that are empty are filled


def named(name: str) -> str:
    """The part that a name tells by a word of `ALIASES` between signs, in upper or lower case:
    "train" for "wiki.train.raw.txt"; "" for none, as for "trains.txt", or for more than one."""
    words = re.split(r"[\W_]+", name.casefold())
    told = {ALIASES[word] for word in words if word in ALIASES}
    return told.pop() if len(told) == 1 else ""


def moves(items: Iterable[tuple[Key, str, bytes]]) -> dict[Key, str] | None:
    """The items to move so that no part is empty: {key: its part}; {} if no part is.

    A part that is empty is given one item of the largest part, the one with the lowest rank; first
    "test", then "valid", then "train". Three items are one each. Depends on the set of items alone,
    not on their order.

    Args:
      items: (key, part by its hash, rank: its hash). Items of one key are one. Reads no further
        than to the first item of the last part.

    Returns:
      The moves; None if there are fewer than three items.
    """
    held: dict[str, dict[Key, bytes]] = collections.defaultdict(dict)
    for key, part, rank in items:
        held[part][key] = rank
        if len(held) == len(ORDER):
            return {}
    if sum(map(len, held.values())) < len(ORDER):
        return None
    moved = {}
    for part in ORDER:
        if not held[part]:
            largest = max(reversed(ORDER), key=lambda name: len(held[name]))
            key = min(held[largest], key=lambda key: (held[largest][key], repr(key)))
            held[part][key] = held[largest].pop(key)
            moved[key] = part
    return moved
