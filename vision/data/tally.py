"""What is learnt of a set of pictures while it is prepared: sums for mean and deviation, digests,
and what a reader should know of it.
"""

import collections
import hashlib
import math
from collections.abc import Iterator

from common import inputs
from vision.data import listed
from vision.data.decoding import Decoded
from vision.data.listed import PARTS, Listing, Picture

HELD_OUT = 5  # per cent, in valid and in test


class Tally:
    """What is learnt of a set while it is written."""

    def __init__(self, channels: int):
        self.full: dict[bytes, str] = {}  # {hash at full size: part by hash}
        # {hash as stored: (part, labels, path)}
        self.first: dict[bytes, tuple[str, tuple[int, ...], str]] = {}
        self.crossed: list[tuple[str, str]] = []  # pictures that another part has: "PATH in PART"
        self.torn: list[tuple] = []  # that another class has: two (path, labels)
        self.rows = {part: bytearray() for part in PARTS}  # the beginnings of hashes as stored
        self.labels = {part: [] for part in PARTS}  # of each row
        self.sizes: collections.Counter[str] = collections.Counter()
        self.trained: set[int] = set()
        self.deepest: tuple[int, str] | None = None  # the highest value of 16 bits, and its path
        self.digests = {part: hashlib.sha256() for part in PARTS}
        self.sum, self.squares, self.pixels = [0] * channels, [0] * channels, 0

    def add(self, picture: Picture, decoded: Decoded, part: str) -> None:
        self.full[decoded.full] = part_of(decoded.full)
        labels = listed.labels_of(picture)
        own = part, labels, picture.path
        first, before, path = self.first.setdefault(decoded.stored, own)
        if first != part:
            self.crossed.append((f"{path} in {first}", f"{picture.path} in {part}"))
        if labels != before:
            self.torn.append(((path, before), (picture.path, labels)))
        self.rows[part] += decoded.stored[:8]
        self.sizes[part] += 1
        if decoded.highest is not None:
            self.deepest = max(self.deepest or (0, ""), (decoded.highest, picture.path))
        self.labels[part].append(picture.label)
        self.digests[part].update(decoded.stored)
        for label in labels:
            self.digests[part].update(label.to_bytes(4, "big"))
        if part == "train":
            self.trained.update(labels)
            self.pixels += math.prod(decoded.image.shape[:2])
            for so_far, more in zip((self.sum, self.squares), decoded.sums, strict=True):
                so_far[:] = [a + int(b) for a, b in zip(so_far, more, strict=True)]


def part_of(digest: bytes) -> str:
    """The part of a picture by its hash."""
    number = int.from_bytes(digest[:8], "big") % 100
    return "test" if number < HELD_OUT else "valid" if number < 2 * HELD_OUT else "train"


def said(listing: Listing, tally: Tally, left_out: dict[str, str]) -> Iterator[str]:
    """What a reader should know of the set, a line each."""
    if left_out:
        path, why = next(iter(left_out.items()))
        more = "" if len(left_out) == 1 else f", {inputs.shown(path)} first"
        name = inputs.shown(path) if len(left_out) == 1 else f"{len(left_out):,} pictures"
        yield f"left out because broken: {name}{more} ({why})"
    if listing.passed:
        yield f"no pictures by their names{listed.said(listing.passed)}"
    if listing.deep:
        count = f"{len(listing.deep):,} pictures" if len(listing.deep) > 1 else "1 picture"
        name = {picture.path: picture.label for picture in listing.pictures}[listing.deep[0]]
        yield (
            f"folders below that of a class are not classes: {count} in them, such as "
            f"{inputs.shown(listing.deep[0])}, of the class {inputs.shown(listing.classes[name])}"
        )
    shown = lambda labels: " and ".join(listing.classes[k] for k in labels) or "no class"
    torn = [[f"{path} in {shown(labels)}" for path, labels in pair] for pair in tally.torn[:1]]
    for pairs, count, one, many in (
        (tally.crossed, len(tally.crossed), "stands in another part", "stand in another part"),
        (torn, len(tally.torn), "has another class", "have another class"),
    ):
        if pairs:
            first, second = map(inputs.shown, pairs[0])
            some = f"{count:,} pictures" if count > 1 else "1 picture"
            does, begun = (many, " first") if count > 1 else (one, "")
            yield f"{some}, by the pixels, {does} as well: {first} and {second}{begun}"
    lost = [inputs.shown(name) for k, name in enumerate(listing.classes) if k not in tally.trained]
    if lost:
        some = f"{len(lost)} classes have" if len(lost) > 1 else "1 class has"
        begun = " first" if len(lost) > 1 else ""
        yield f"{some} no picture to train on, {lost[0]}{begun}"
