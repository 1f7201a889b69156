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
import functools
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import warnings
from typing import Literal

import numpy as np

from common import inputs
from common.data import made
from common.data import splits as prepared_sets
from common.data.labels import multi_hot, say_sorted
from common.data.parts import moves
from common.devices import terminal
from common.errors import require
from common.task import Source, split_key
from vision.data import decoding, kept, listed, packed, pictures, prepared, sets
from vision.data.kept import Kept
from vision.data.listed import PARTS, PREFIX, WHERE, Listing, Picture
from vision.data.pixels import FULL
from vision.data.tally import HELD_OUT, Tally, part_of, said

VERSION = 2  # of what is made: another number makes all of it anew
Broken = Literal["refuse", "skip"]


def load_sources(
    splits: dict[str, str],
    name: str,
    folder: str,
    image_size: int | None,
    resident: bool | None,
    broken: Broken,
    columns: tuple[str, str],
    separator: str,
) -> dict[str, Source]:
    """Sources of a set `images:…`, prepared if it is not; the arguments are those of
    `datasets.load_sources`."""
    listing = listed.listing(name, columns, broken, separator)
    if "train" in splits:
        listed.check_learnable(listing, name)
    path, title = _place(listing, name, folder, image_size, broken)
    build = lambda into: _build(into, title, listing, image_size, broken)
    found = made.folder(path, kept.load, build, f"the pixels of {name}")
    for text in found.warnings:
        logging.warning("%s: %s", name, text)
    for key, split in splits.items():
        _check_parts(listing, found.sizes, split, split_key(key))
    sources = prepared.from_tfds(splits, title, folder, None, resident, listed=True)
    # What two parts share stands in the warnings, with names.
    kept.warn_of_copies(path, found, splits)
    contents = {}
    for key, source in sources.items():
        if source.resident is None and kept.LABELS in found.files:
            labels = functools.partial(kept.labels, path, found, splits[key], key)
            source = source._replace(labels=functools.cache(labels))
        contents[key] = _content(source, splits[key], found)
    say_sorted({k: s for k, s in contents.items() if s.resident is None}, splits)
    return contents


def _check_parts(listing: Listing, sizes: dict[str, int], split: str, where: str) -> None:
    """Refuses parts of others' making, with what there is instead."""
    for name in prepared_sets.names(split):
        require(
            name in sizes or name not in PARTS,
            f"{where}: {inputs.shown(listing.root)} has no part {name!r}, but "
            f"{', '.join(sizes)}: add it, or hold some out with train[:90%] and train[90%:]",
        )


def _content(source: Source, split: str, found: Kept) -> Source:
    """A prepared set with its own facts, and a fingerprint that tells pixels, not file names."""
    facts = sets.ImageFacts(found.classes, found.mean, found.std, source.facts.multi_label)
    own = source.fingerprint if source.resident is not None else split
    return source._replace(facts=facts, fingerprint=f"{found.digest}:{own}")


def _place(
    listing: Listing, name: str, folder: str, image_size: int | None, broken: Broken
) -> tuple[pathlib.Path, str]:
    """(the folder of the prepared set, its name for TFDS)."""
    root = prepared_sets.data_dir(folder)
    require("://" not in root, f"config.data.folder: {root}: pictures are prepared on a local disk")
    given = os.path.abspath(os.path.expanduser(name.removeprefix(PREFIX)))
    stem = re.sub(r"[^a-z0-9]+", "_", os.path.basename(given).lower()).strip("_")[-40:]
    title = f"images_{stem}_{listed.stamp(listing, VERSION, image_size, broken)}"
    return pathlib.Path(root, title), title


# -------------------------------------------------------------------------------------- outlines


def unprepared(section: dict) -> str | None:
    """What has to be prepared first, for a message; None if nothing has."""
    listing = _listing(section)
    keys = "name", "folder", "image_size", "broken"
    path, _ = _place(listing, *(section[key] for key in keys))
    if kept.load(path) is not None:
        return None
    return f"{section['name']}: {len(listing.pictures):,} pictures, which training prepares first"


def _listing(section: dict) -> Listing:
    keys = "name", "columns", "broken", "label_separator"
    listing = listed.listing(*(section[key] for key in keys))
    listed.check_learnable(listing, section["name"])
    return listing


def outline(section: dict) -> tuple[tuple[int, int, int], tuple[str, ...], bool, dict[str, int]]:
    """(shape, classes, whether examples have several, {part: pictures}) of a set that is not
    prepared: from its listing and its first picture that can be read. Where a hash decides, the
    sizes are those it is expected to give."""
    listing = _listing(section)
    counts = collections.Counter(picture.part for picture in listing.pictures)
    if not listing.parts:
        total = counts.pop("")
        _require_three(total, listing)
        held_out = max(1, round(total * HELD_OUT / 100))
        counts.update(train=total - 2 * held_out, valid=held_out, test=held_out)
    heads = (decoding.attempt(pictures.header, listing.root / p.path) for p in listing.pictures)
    first = next((head for head in heads if not isinstance(head, str)), None)
    require(first is not None, f"{WHERE}: none of the pictures of {listing.root} can be read")
    side = section["image_size"]
    shape = (first.height, first.width) if side is None else (side, side)
    shape = (*shape, 1 if first.grey else 3)
    return shape, listing.classes, listing.multi_label, dict(counts)


# ------------------------------------------------------------------------------------- preparing


def _build(
    into: pathlib.Path, title: str, listing: Listing, image_size: int | None, broken: Broken
) -> None:
    """Writes the set, and images.json last."""
    left_out: dict[str, str] = {}  # {path: why}
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    with warnings.catch_warnings(), pool:
        # Of pictures that are large, or have notes that are damaged; threads cannot set this.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        heads = _headers(pool, listing, broken, left_out, image_size)
        shape = _shape(listing, heads, image_size)
        sound = [picture for picture in listing.pictures if picture.path in heads]
        _check_space(into, len(sound), shape)

        def write(moved: dict[bytes, str]) -> Tally:
            tally = Tally(shape[-1])
            decode = lambda p: decoding.decode(listing.root / p.path, shape, image_size)
            several = listing.multi_label
            with packed.writing(into, title, shape, listing.classes, several) as add:
                for picture, decoded in decoding.each(pool, decode, sound, "preparing"):
                    if isinstance(decoded, str):
                        _leave_out(listing, picture, decoded, broken, left_out)
                        continue
                    part = picture.part or moved.get(decoded.full) or part_of(decoded.full)
                    add(part, decoded.image, picture.label)
                    tally.add(picture, decoded, part)
            return tally

        tally = write({})
        none = f"{WHERE}: none of the pictures of {inputs.shown(listing.root)} can be read"
        require(bool(tally.full), none)
        if not listing.parts:
            moved = moves((full, part, full) for full, part in tally.full.items())
            _require_three(len(tally.full), listing)
            if moved:
                shutil.rmtree(into / packed.NUMBER)
                tally = write(moved)
    _finish(into, listing, shape, tally, left_out)


def _finish(into: pathlib.Path, listing: Listing, shape, tally: Tally, left_out: dict) -> None:
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
    deviation = lambda s, q: math.sqrt(tally.pixels * q - s * s) / (255 * tally.pixels)
    with packed.refused(into):
        found = kept.save(
            into,
            tally.rows.values(),
            _labels(listing, tally),
            classes=listing.classes,
            mean=tuple(total / (255 * tally.pixels) for total in tally.sum),
            std=tuple(deviation(*of) or 1.0 for of in zip(tally.sum, tally.squares, strict=True)),
            sizes={part: tally.sizes[part] for part in PARTS if tally.sizes[part]},
            digest=hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16],
            warnings=tuple(said(listing, tally, left_out)),
        )
    sizes = ", ".join(f"{part} {size:,}" for part, size in found.sizes.items())
    spelled = " x ".join(map(str, shape))
    terminal.say(f"{inputs.shown(listing.root)}: prepared {sizes} pictures of {spelled}")


def _labels(listing: Listing, tally: Tally) -> np.ndarray:
    """The labels of all rows, by part: i32[N], or u8[N, K]."""
    labels = [label for part in tally.labels.values() for label in part]
    if not listing.multi_label:
        return np.array(labels, np.int32)
    rows = np.repeat(np.arange(len(labels)), list(map(len, labels)))
    flat = np.array([k for own in labels for k in own], np.int64)
    return multi_hot(flat, rows, (len(labels), len(listing.classes)))


def _require_three(distinct: int, listing: Listing) -> None:
    require(
        distinct >= len(PARTS),
        f"{WHERE}: {inputs.shown(listing.root)} has {distinct} different pictures, too few for "
        "train, valid and test; add more, or make these parts yourself: DIR/train/CLASS, "
        "DIR/test/CLASS",
    )


def _leave_out(listing: Listing, picture: Picture, why: str, broken: Broken, left_out) -> None:
    path = inputs.shown(listing.root / picture.path)
    text = f"{WHERE}: {path}: {why}; mend or remove it, or config.data.broken=skip leaves it out"
    require(broken == "skip", text)
    left_out[picture.path] = why


def _headers(
    pool, listing: Listing, broken: Broken, left_out, image_size: int | None
) -> dict[str, pictures.Header]:
    """{path: header} of the pictures that can be read."""
    heads = {}
    look = lambda picture: pictures.header(listing.root / picture.path)
    for picture, head in decoding.each(pool, look, listing.pictures, "looking at"):
        if isinstance(head, str):
            _leave_out(listing, picture, head, broken, left_out)
        else:
            heads[picture.path] = head
    if broken == "skip":
        _leave_out_odd(listing, heads, image_size, left_out)
    require(bool(heads), f"{WHERE}: none of the pictures of {listing.root} can be read")
    return heads


def _leave_out_odd(listing: Listing, heads: dict, image_size: int | None, left_out: dict) -> None:
    """Leaves out pictures unlike most, in what decides the shape, whose pixels cannot be read; up
    to the first that can, which does decide."""
    kind = lambda head: head if image_size is None else head.grey
    kinds = collections.Counter(map(kind, heads.values()))
    for path in [p for p, head in heads.items() if kind(head) != max(kinds, key=kinds.get)]:
        why = decoding.attempt(pictures.pixels, listing.root / path, 3)
        if not isinstance(why, str):
            break
        left_out[path] = why
        del heads[path]


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
