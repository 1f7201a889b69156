"""Pictures of your own: `images:DIR`, a folder for each class, and `images:TABLE`, a row for each.

The first time, every picture is decoded, by threads, and its pixels are written next to the sets
that TFDS prepared (`packed`), in a folder that is named after all that it was made from: where
the files are, their names, sizes and times, and the settings. From then on it is read as such a
set. Another listing makes another folder; nobody removes the old one.

Without parts of the user's own, a hash of a picture's pixels decides between train (90%), valid and
test, so that copies of a picture are always on one side, under whatever name.
"""

import collections
import concurrent.futures
import hashlib
import itertools
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from common import inputs
from common.data import made, splits
from common.data.parts import moves
from common.devices import terminal
from common.errors import require
from common.task import Source
from vision.data import listed, packed, photographs, pictures, prepared, sets
from vision.data.listed import PARTS, PREFIX, WHERE, Listing, Picture
from vision.data.pixels import FULL

VERSION = 2  # of what is made: another number makes all of it anew
HELD_OUT = 5  # per cent, in valid and in test
INDEX = "images.json"
SQUARES = np.arange(256, dtype=np.uint32) ** 2
Broken = Literal["refuse", "skip"]


class Kept(NamedTuple):
    """What stands beside the pixels in images.json.

    Attributes:
      classes: names, in the order of the labels.
      mean, std: of the pixels to train on divided by 255, per channel.
      sizes: {part: pictures}.
      digest: of all pixels and labels in their order, and the classes.
      warnings: what a reader should know of the set, a line each.
      files: {file: bytes} of the prepared set.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: dict[str, int]
    digest: str
    warnings: tuple[str, ...]
    files: dict[str, int]


def load_sources(
    splits: dict[str, str],
    name: str,
    folder: str,
    image_size: int | None,
    resident: bool | None,
    broken: Broken,
    columns: tuple[str, str],
) -> dict[str, Source]:
    """Sources of a set `images:…`, prepared if it is not; the arguments are those of
    `datasets.load_sources`."""
    listing = listed.listing(name, columns)
    path, title = _place(listing, name, folder, image_size, broken)
    build = lambda into: _build(into, title, listing, image_size, broken)
    kept = made.folder(path, _open, build, f"the pixels of {name}")
    for text in kept.warnings:
        logging.warning("%s: %s", name, text)
    # What two parts share stands in the warnings already, with names.
    sources = prepared.from_tfds(splits, title, folder, None, resident, compare=False)
    return {key: _content(source, splits[key], kept) for key, source in sources.items()}


def _content(source: Source, split: str, kept: Kept) -> Source:
    """A prepared set with its own facts, and a fingerprint that tells pixels, not file names."""
    facts = sets.ImageFacts(kept.classes, kept.mean, kept.std)
    own = source.fingerprint if source.resident is not None else split
    return source._replace(facts=facts, fingerprint=f"{kept.digest}:{own}")


def _place(
    listing: Listing, name: str, folder: str, image_size: int | None, broken: Broken
) -> tuple[pathlib.Path, str]:
    """(the folder of the prepared set, its name for TFDS)."""
    root = splits.data_dir(folder)
    require("://" not in root, f"config.data.folder: {root}: pictures are prepared on a local disk")
    given = os.path.abspath(os.path.expanduser(name.removeprefix(PREFIX)))
    stem = re.sub(r"[^a-z0-9]+", "_", os.path.basename(given).lower()).strip("_")[-40:]
    title = f"images_{stem}_{listed.stamp(listing, VERSION, image_size, broken)}"
    return pathlib.Path(root, title), title


def _open(path: pathlib.Path) -> Kept | None:
    """What is kept at `path`; None if nothing is, or a file has another size than it had."""
    try:
        index = json.loads((path / INDEX).read_text())
        kept = Kept(**{k: tuple(v) if isinstance(v, list) else v for k, v in index.items()})
        sound = all(os.path.getsize(path / file) == size for file, size in kept.files.items())
        return kept if sound and kept.files and kept.sizes else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


# -------------------------------------------------------------------------------------- outlines


def unprepared(section: dict) -> str | None:
    """What has to be prepared first, for a message; None if nothing has."""
    listing = listed.listing(section["name"], section["columns"])
    keys = "name", "folder", "image_size", "broken"
    path, _ = _place(listing, *(section[key] for key in keys))
    if _open(path) is not None:
        return None
    return f"{section['name']}: {len(listing.pictures):,} pictures, which training prepares first"


def outline(section: dict) -> tuple[tuple[int, int, int], tuple[str, ...], dict[str, int]]:
    """(shape, classes, {part: pictures}) of a set that is not prepared: from its listing and its
    first picture that can be read. Where a hash decides, the sizes are those it is expected to
    give."""
    listing = listed.listing(section["name"], section["columns"])
    counts = collections.Counter(picture.part for picture in listing.pictures)
    if not listing.parts:
        total = counts.pop("")
        _require_three(total, listing)
        held_out = max(1, round(total * HELD_OUT / 100))
        counts.update(train=total - 2 * held_out, valid=held_out, test=held_out)
    heads = (_attempt(pictures.header, listing.root / p.path) for p in listing.pictures)
    first = next((head for head in heads if not isinstance(head, str)), None)
    require(first is not None, f"{WHERE}: none of the pictures of {listing.root} can be read")
    side = section["image_size"]
    shape = (first.height, first.width) if side is None else (side, side)
    return (*shape, 1 if first.grey else 3), listing.classes, dict(counts)


# ------------------------------------------------------------------------------------- preparing


class _Decoded(NamedTuple):
    """A picture as it is stored, its highest value of 16 bits if it has them, hashes of its pixels
    at full size and as stored, and the sums of its values and of their squares, per channel."""

    image: np.ndarray
    highest: int | None
    full: bytes
    stored: bytes
    sums: tuple[np.ndarray, np.ndarray]


class _Tally:
    """What is learnt of a set while it is written."""

    def __init__(self, channels: int):
        self.full: dict[bytes, str] = {}  # {hash at full size: part by hash}
        self.first: dict[bytes, tuple[str, str]] = {}  # {hash as stored: (part, path)}
        self.crossed: list[tuple[str, str]] = []  # pictures that another part has: "PATH in PART"
        self.sizes: collections.Counter[str] = collections.Counter()
        self.trained: set[int] = set()
        self.deepest: tuple[int, str] | None = None  # the highest value of 16 bits, and its path
        self.digests = {part: hashlib.sha256() for part in PARTS}
        self.sum, self.squares, self.pixels = [0] * channels, [0] * channels, 0

    def add(self, picture: Picture, decoded: _Decoded, part: str) -> None:
        self.full[decoded.full] = _part(decoded.full)
        first, path = self.first.setdefault(decoded.stored, (part, picture.path))
        if first != part:
            self.crossed.append((f"{path} in {first}", f"{picture.path} in {part}"))
        self.sizes[part] += 1
        if decoded.highest is not None:
            self.deepest = max(self.deepest or (0, ""), (decoded.highest, picture.path))
        self.digests[part].update(decoded.stored + picture.label.to_bytes(4, "big"))
        if part == "train":
            self.trained.add(picture.label)
            self.pixels += math.prod(decoded.image.shape[:2])
            for so_far, more in zip((self.sum, self.squares), decoded.sums, strict=True):
                so_far[:] = [a + int(b) for a, b in zip(so_far, more, strict=True)]


def _build(
    into: pathlib.Path, title: str, listing: Listing, image_size: int | None, broken: Broken
) -> None:
    """Writes the set, and images.json last."""
    left_out: dict[str, str] = {}  # {path: why}
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    with warnings.catch_warnings(), pool:
        # Of pictures that are large, or have notes that are damaged; threads cannot set this.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        heads = _headers(pool, listing, broken, left_out)
        shape = _shape(listing, heads, image_size)
        kept = [picture for picture in listing.pictures if picture.path in heads]
        _check_space(into, len(kept), shape)

        def write(moved: dict[bytes, str]) -> _Tally:
            tally = _Tally(shape[-1])
            decode = lambda p: _attempt(_decode, listing.root / p.path, shape, image_size)
            with packed.writing(into, title, shape, listing.classes) as add:
                for picture, decoded in _told(_ahead(pool, decode, kept), len(kept), "preparing"):
                    if isinstance(decoded, str):
                        _leave_out(listing, picture, decoded, broken, left_out)
                        continue
                    part = picture.part or moved.get(decoded.full) or _part(decoded.full)
                    add(part, decoded.image, picture.label)
                    tally.add(picture, decoded, part)
            return tally

        tally = write({})
        if not listing.parts:
            moved = moves((full, part, full) for full, part in tally.full.items())
            _require_three(len(tally.full), listing)
            if moved:
                shutil.rmtree(into / packed.NUMBER)
                tally = write(moved)
    _finish(into, listing, shape, tally, left_out)


def _finish(into: pathlib.Path, listing: Listing, shape, tally: _Tally, left_out: dict) -> None:
    for part in listing.parts:
        text = f"{WHERE}: {listing.root}: no picture of {part} can be read"
        require(tally.sizes[part] > 0, text)
    if tally.deepest is not None:
        highest, path = tally.deepest
        require(
            highest >= FULL,
            f"{WHERE}: {inputs.shown(listing.root / path)}: its 16 bits never exceed {highest:,} "
            "of 65,535, nor do those of the others, so they are likely 8, 10, 12 or 14: save them "
            "with 8 bits, divided by their maximum",
        )
    made_from = [listing.classes, shape, [d.hexdigest() for d in tally.digests.values()]]
    names = sorted(file.name for file in (into / packed.NUMBER).iterdir())
    deviation = lambda s, q: math.sqrt(tally.pixels * q - s * s) / (255 * tally.pixels)
    kept = Kept(
        classes=listing.classes,
        mean=tuple(total / (255 * tally.pixels) for total in tally.sum),
        std=tuple(deviation(*of) or 1.0 for of in zip(tally.sum, tally.squares, strict=True)),
        sizes={part: tally.sizes[part] for part in PARTS if tally.sizes[part]},
        digest=hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16],
        warnings=tuple(_warnings(listing, tally, left_out)),
        files={
            f"{packed.NUMBER}/{name}": os.path.getsize(into / packed.NUMBER / name)
            for name in names
        },
    )
    with packed.refused(into):
        (into / INDEX).write_text(json.dumps(kept._asdict(), indent=1))
    sizes = ", ".join(f"{part} {size:,}" for part, size in kept.sizes.items())
    spelled = " x ".join(map(str, shape))
    terminal.say(f"{inputs.shown(listing.root)}: prepared {sizes} pictures of {spelled}")


def _warnings(listing: Listing, tally: _Tally, left_out: dict[str, str]) -> Iterator[str]:
    if left_out:
        path, why = next(iter(left_out.items()))
        more = "" if len(left_out) == 1 else f", {inputs.shown(path)} first"
        name = inputs.shown(path) if len(left_out) == 1 else f"{len(left_out):,} pictures"
        yield f"left out because broken: {name}{more} ({why})"
    if listing.passed:
        yield f"no pictures by their names{listed.said(listing.passed)}"
    if tally.crossed:
        first, second = map(inputs.shown, tally.crossed[0])
        yield (
            f"{len(tally.crossed):,} pictures, by their pixels, stand in another part as well: "
            f"{first} and {second} first"
        )
    lost = [name for k, name in enumerate(listing.classes) if k not in tally.trained]
    if lost:
        yield f"{len(lost)} classes have no picture to train on, {inputs.shown(lost[0])} first"


def _require_three(distinct: int, listing: Listing) -> None:
    require(
        distinct >= len(PARTS),
        f"{WHERE}: {inputs.shown(listing.root)} has {distinct} different pictures, too few for "
        "train, valid and test; add more, or make these parts yourself: DIR/train/CLASS, "
        "DIR/test/CLASS",
    )


def _part(digest: bytes) -> str:
    """The part of a picture by its hash."""
    number = int.from_bytes(digest[:8], "big") % 100
    return "test" if number < HELD_OUT else "valid" if number < 2 * HELD_OUT else "train"


def _attempt(function: Callable, *arguments) -> Any:
    """What a function of a file returns, or why the file is broken."""
    try:
        return function(*arguments)
    except pictures.Broken as error:
        return str(error)


def _leave_out(listing: Listing, picture: Picture, why: str, broken: Broken, left_out) -> None:
    path = inputs.shown(listing.root / picture.path)
    text = f"{WHERE}: {path}: {why}; mend or remove it, or config.data.broken=skip leaves it out"
    require(broken == "skip", text)
    left_out[picture.path] = why


def _headers(pool, listing: Listing, broken: Broken, left_out) -> dict[str, pictures.Header]:
    """{path: header} of the pictures that can be read."""
    heads = {}
    look = lambda picture: _attempt(pictures.header, listing.root / picture.path)
    looked = _ahead(pool, look, listing.pictures)
    for picture, head in _told(looked, len(listing.pictures), "looking at"):
        if isinstance(head, str):
            _leave_out(listing, picture, head, broken, left_out)
        else:
            heads[picture.path] = head
    require(bool(heads), f"{WHERE}: none of the pictures of {listing.root} can be read")
    return heads


def _shape(listing: Listing, heads: dict, image_size: int | None) -> tuple[int, int, int]:
    """The shape (H, W, C) of all images."""
    channels = 1 if all(head.grey for head in heads.values()) else 3
    if image_size is not None:
        return image_size, image_size, channels
    size = lambda path: f"{path} has {heads[path].height} x {heads[path].width} pixels"
    (first, *rest) = heads
    sides = heads[first][:2]
    other = next((path for path in rest if heads[path][:2] != sides), None)
    require(
        other is None,
        f"{WHERE}: {inputs.shown(listing.root)}: sizes differ: {size(first)}, "
        f"{size(other or first)}; set config.data.image_size=224 for squares of one size",
    )
    return (*sides, channels)


def _check_space(into: pathlib.Path, count: int, shape: tuple[int, int, int]) -> None:
    needed = count * (math.prod(shape) + packed.ROW_BYTES) + len(PARTS) * packed.FILE_BYTES
    free = shutil.disk_usage(into).free
    require(
        needed <= free,
        f"{WHERE}: {count:,} pictures of {' x '.join(map(str, shape))} take "
        f"{needed / 1e6:,.1f} MB, and {inputs.shown(into.parent)} has {free / 1e6:,.1f} MB free; "
        "set config.data.folder to another disk, or a smaller config.data.image_size",
    )


def _decode(path, shape: tuple[int, int, int], image_size: int | None) -> _Decoded:
    image, highest = pictures.pixels(path, shape[-1])
    image = np.ascontiguousarray(image)
    full = hashlib.sha256(f"{image.shape}".encode())
    full.update(image)
    if image_size is not None:
        image = _square(image, image_size)
    elif image.shape != shape:  # a PNG that is turned by a note behind its pixels
        raise pictures.Broken(f"it is {image.shape[0]} x {image.shape[1]}, unlike the others")
    sums = image.sum((0, 1), np.uint64), SQUARES[image].sum((0, 1), np.uint64)
    return _Decoded(image, highest, full.digest(), hashlib.sha256(image).digest(), sums)


def _square(image: np.ndarray, side: int) -> np.ndarray:
    height, width, channels = image.shape
    longer = side * max(height, width) / min(height, width)
    if longer * side > 2 * Image.MAX_IMAGE_PIXELS:
        raise pictures.Broken(f"{height} x {width} is too narrow for a square of {side}")
    colour = image if channels == 3 else np.repeat(image, 3, axis=-1)
    return np.ascontiguousarray(photographs.shorter_side(colour, side)[..., :channels])


def _ahead(pool, function: Callable, items: Iterable[Picture]) -> Iterator[tuple[Picture, Any]]:
    """(item, function(item)) in order, computed by the pool some items ahead."""
    queue: collections.deque = collections.deque()
    items = iter(items)
    for item in itertools.islice(items, 4 * (os.cpu_count() or 1)):
        queue.append((item, pool.submit(function, item)))
    while queue:
        item, future = queue.popleft()
        for following in itertools.islice(items, 1):
            queue.append((following, pool.submit(function, following)))
        yield item, future.result()


def _told(items: Iterable, total: int, what: str) -> Iterator:
    """The same items; a terminal shows how many there were, and the time left."""
    started = shown = time.monotonic()
    for count, item in enumerate(items):
        now = time.monotonic()
        if now - shown > 0.5 and sys.stderr.isatty():
            shown, left = now, (now - started) * (total / max(count, 1) - 1)
            sys.stderr.write(
                f"\r{what} {total:,} pictures: {count / total:.0%}, {left:.0f} s left "
            )
        yield item
    if shown > started:
        sys.stderr.write(f"\r{what} {total:,} pictures: done in {shown - started:.0f} s    \n")
