"""Sets of images that TFDS prepared, without TensorFlow.

Small sets are decoded once, cached as .npy next to the prepared files, and kept in memory and on
the device as uint8; large ones are read on demand.
"""

import contextlib
import functools
import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from common.data import labels as numbering
from common.data.splits import fingerprint, open_prepared, ranges, reading, source_of
from common.errors import brief, require
from common.task import Source
from common.task import split_key as where
from vision.data import pixels, sets
from vision.data.examples import (
    Layout,
    classes_of,
    image_of,
    label_column,
    layout_of,
    named,
    numbered,
    row_of,
    stack,
)

SCRIPTED = ("fashion_mnist",)  # sets that scripts/prepare.py prepares
DECODING = 3  # of `examples.stack`: another number makes every cache be decoded again
DARK = 16  # uint8 that never exceeds this is likely not meant to be 0 to 255
SAMPLED = 256  # rows that tell the scale of a set read on demand, and examples of its labels
LOOKED_AT = 16  # images of a split read on demand that tell whether it is nearly black
MOST_SCANNED = 200_000  # labels of a set read on demand that are read to learn its classes


def from_tfds(
    splits: dict[str, str],
    name: str,
    folder: str,
    image_size: int | None,
    resident: bool | None,
    *,
    listed: bool = False,
) -> dict[str, Source]:
    """Sources of a set that TFDS prepared; the arguments are those of `datasets.load_sources`.
    `listed` is for files of the user's own, of whose classes and copies their listing has told."""
    builder = open_prepared(name, folder, SCRIPTED)
    layout = _layout(builder)
    if (layout.image, layout.label) != ("image", "label"):
        logging.warning(
            "%s: read as its supervised_keys say: images of %r, labels of %r",
            named(name), layout.image, layout.label,
        )  # fmt: skip
    shape = layout.shape
    if image_size is not None:
        fits = shape[-1] in (1, 3)
        require(fits, f"{named(name)}: images of {shape[-1]} channels cannot be resized")
        shape = image_size, image_size, shape[-1]
    require(
        None not in shape,
        f"{named(name)} has images of varying size; set config.data.image_size=256",
    )
    sizes = _sizes(builder)
    if sets.is_resident(resident, image_size, sizes, shape):
        columns = functools.cache(lambda split: decoded(builder, split))
        classes = layout.classes or classes_of(layout, columns(_reference(sizes))["label"])
        _require_two(layout, classes, splits)
        facts = _facts(layout, classes, shape)

        def take(split, at):
            part = {key: array[at] for key, array in columns(split).items()}
            names = lambda i: (split, at.start + i)
            return part | {"label": numbered(part["label"], layout, classes, names)}

        sources = sets.in_memory(splits, sizes, take, facts, True, compare=not listed)
        for split, source in {splits[key]: source for key, source in sources.items()}.items():
            _warn_if_dark(layout, split, source.resident["image"], "never")
        trained = sources["train"].resident["label"] if "train" in sources else None
        if not listed:
            _warn_of_classes(layout, classes, trained, splits.get("train", ""))
        return sources
    scale, trained = _scale(builder, SAMPLED), None
    if layout.classes is None:
        trained = _labels(builder, layout, _reference(sizes))
    classes = layout.classes or classes_of(layout, trained)
    _require_two(layout, classes, splits)
    facts = _facts(layout, classes, shape)
    digest = fingerprint(builder)
    sources = {}
    for key, split in splits.items():
        parts = ranges(split, sizes, where(key), shuffled=True)
        reader = _Reader(
            {part: _examples_of(builder, layout, part) for part, _ in parts},
            np.concatenate([np.arange(at.start, at.stop, dtype=np.uint32) for _, at in parts]),
            np.repeat([part for part, _ in parts], [at.stop - at.start for _, at in parts]),
            (layout, scale, image_size, classes, os.fspath(builder.data_dir)),
        )
        reader.check_labels(_spread(len(reader.rows)))  # a set without them, before training
        content = split if image_size is None else f"{split}:{image_size}"
        sources[key] = Source(
            size=len(reader.rows),
            read=reader,
            resident=None,
            spec=sets.spec(shape, facts),
            fingerprint=f"{digest}:{content}",
            facts=facts,
            labels=functools.cache(reader.labels),
        )
    for split, source in {splits[key]: source for key, source in sources.items()}.items():
        few = source.read(_spread(source.size, LOOKED_AT))["image"]
        _warn_if_dark(layout, split, few, "in a sample never")
    if not listed:
        _warn_of_classes(layout, classes, trained, _reference(sizes))
    return sources


def _require_two(layout: Layout, classes: tuple[str, ...], splits: dict[str, str]) -> None:
    require(
        len(classes) > 1 or layout.several or "train" not in splits,
        f"{named(layout.name)}: there is but one class, {brief(classes[0])}: nothing to learn",
    )


def _warn_if_dark(layout: Layout, split: str, images: np.ndarray, how: str) -> None:
    """Warns of u8 images that are nearly black."""
    if images.max() <= DARK:
        logging.warning(
            "%s: %r: its pixels %s exceed %d of 255: all is nearly black",
            named(layout.name), split, how, images.max(),
        )  # fmt: skip


def _warn_of_classes(
    layout: Layout, classes: tuple[str, ...], trained: np.ndarray | None, split: str
) -> None:
    """Warns of classes spelled alike, and of those without an example among the labels `trained` of
    `split`, if these are known as numbers."""
    numbering.say_alike(dict.fromkeys(classes, 0), named(layout.name))
    known = trained is not None and trained.dtype.kind != "U"
    if known:
        numbering.say_absent(trained, classes, named(layout.name), split)


def _facts(layout: Layout, classes: tuple[str, ...], shape: tuple) -> sets.ImageFacts:
    """What is known of a set by its name, unless its images have other channels."""
    facts = sets.known(layout.name, classes)
    facts = facts if len(facts.mean) in (1, shape[-1]) else sets.known("", classes)
    return facts._replace(multi_label=layout.several)


def _layout(builder) -> Layout:
    with reading(builder.data_dir, SCRIPTED):
        return layout_of(builder)


def _sizes(builder) -> dict[str, int]:
    return {split: info.num_examples for split, info in builder.info.splits.items()}


def _reference(sizes: dict[str, int]) -> str:
    """The split that decides what holds for the set: 'train', else the largest."""
    return "train" if sizes.get("train") else max(sizes, key=sizes.__getitem__)


def _spread(size: int, most: int = SAMPLED) -> np.ndarray:
    """At most `most` rows, evenly spread over `size`."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).astype(np.int64))


def _examples_of(builder, layout: Layout, split: str):
    """Examples of a split: what else they hold, and encoded images, are not decoded by TFDS."""
    import tensorflow_datasets as tfds

    plain = tfds.features.Image | tfds.features.Audio | tfds.features.Text
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, plain) and key != layout.label
    }
    return source_of(builder, split, SCRIPTED, decoders)


@functools.lru_cache(maxsize=2)
def _scale(builder, most: int | None = None) -> str:
    """The scale of a set's pixels, decided by its training split: by a sample of about `most` rows,
    or by all."""
    layout = _layout(builder)
    if layout.dtype in (np.uint8, np.bool_):
        return "u8" if layout.dtype == np.uint8 else "mask"
    sizes = _sizes(builder)
    split = _reference(sizes)
    rows = _spread(sizes[split]) if most else np.arange(sizes[split])
    seen = None
    for names, part in _chunks(builder, layout, split, rows, "measuring"):
        for i, example in enumerate(part):
            with row_of(layout, *names(i)):
                found = pixels.range_of(image_of(example, layout))
            seen = found if seen is None else pixels.joined(seen, found)
    return pixels.scale_of(seen, named(layout.name))


def _chunks(
    builder, layout: Layout, split: str, rows: np.ndarray, doing: str
) -> Iterator[tuple[Callable, list[dict]]]:
    """Examples of these rows, a thousand at a time, and their names: i -> (split, row). Shows
    progress on a terminal."""
    source = _examples_of(builder, layout, split)
    for at in _thousands(len(rows), f"{doing} {builder.name} {split}"):
        part = rows[at].tolist()
        with reading(builder.data_dir, SCRIPTED):
            examples = source.__getitems__(part)
        yield lambda i, part=part: (split, part[i]), examples


def _thousands(most: int, doing: str) -> Iterator[slice]:
    """Slices of a thousand rows; shows progress on a terminal."""
    began, verbose = time.monotonic(), sys.stderr.isatty() and most > 1000
    for start in range(0, most, 1000):
        done = min(start + 1000, most)
        yield slice(start, done)
        if verbose:
            left = (time.monotonic() - began) * (most - done) / done
            sys.stderr.write(f"\r{doing}: {100 * done // most}%  ETA {left:.0f} s ")
    if verbose:
        sys.stderr.write("\n")


def _labels(builder, layout: Layout, split: str) -> np.ndarray:
    """The labels of a split, without decoding its images."""
    size = builder.info.splits[split].num_examples
    require(
        size <= MOST_SCANNED,
        f"{named(layout.name)}: its {layout.label!r} names no classes, and {size:,} labels are "
        "too many to read at every start; prepare it with a ClassLabel(names=…)",
    )
    chunks = _chunks(builder, layout, split, np.arange(size), "reading labels of")
    return np.concatenate([label_column(part, names, layout) for names, part in chunks])


class _Reader:
    """Reads rows u32[b] of a split as arrays; a class, so that it can be sent to processes."""

    def __init__(self, sources: dict, rows: np.ndarray, parts: np.ndarray, how: tuple):
        self.sources, self.rows, self.parts, self.how = sources, rows, parts, how

    def __call__(self, rows):
        layout, scale, image_size, classes, _ = self.how
        names = lambda i: (str(self.parts[rows[i]]), int(self.rows[rows[i]]))
        batch = stack(self._examples(rows), names, layout, scale, image_size)
        return batch | {"label": numbered(batch["label"], layout, classes, names)}

    def labels(self) -> np.ndarray:
        """The labels of all rows; reads the records, but decodes no image."""
        rows, doing = np.arange(len(self.rows)), f"reading labels of {self.how[0].name}"
        return np.concatenate([self.check_labels(rows[at]) for at in _thousands(len(rows), doing)])

    def check_labels(self, rows) -> np.ndarray:
        """The labels of these rows; refused if one is not known. Decodes no image."""
        layout, _, _, classes, _ = self.how
        names = lambda i: (str(self.parts[rows[i]]), int(self.rows[rows[i]]))
        return numbered(label_column(self._examples(rows), names, layout), layout, classes, names)

    def _examples(self, rows) -> list[dict]:
        examples: list = [None] * len(rows)
        for part, source in self.sources.items():
            at = np.flatnonzero(self.parts[rows] == part)
            with reading(self.how[-1], SCRIPTED):
                found = source.__getitems__(self.rows[rows[at]].tolist())
            for i, example in zip(at, found, strict=True):
                examples[i] = example
        return examples


def _load(path: epath.Path) -> np.ndarray:
    with path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _prepared_digest(builder, split: str) -> str:
    """A sha256 of the prepared files of a split, whose images are few enough to keep in memory."""
    sha = hashlib.sha256()
    features = epath.Path(builder.data_dir) / "features.json"
    for path in (features, *map(epath.Path, sorted(builder.info.splits[split].filepaths))):
        with path.open("rb") as file:
            sha.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return sha.hexdigest()


def _cache_digest(arrays: dict[str, np.ndarray], made_from: str) -> str:
    """A sha256 of decoded arrays and of what they were decoded from."""
    sha = hashlib.sha256(f"{DECODING} {made_from}".encode())
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array))
    return sha.hexdigest()


def _cached(paths: dict[str, epath.Path], record: epath.Path, made_from: str) -> dict | None:
    """The arrays of a cache; None, with a warning if there is one, unless they are those that were
    decoded from these files."""
    if not any(path.exists() for path in paths.values()):
        return None
    try:
        arrays = {key: _load(path) for key, path in paths.items()}
        if _cache_digest(arrays, made_from) == record.read_text().strip():
            return arrays
        reason = "it is not what the prepared files decode to"
    except FileNotFoundError as error:
        reason = f"{os.path.basename(error.filename or record)} is missing"
    except (
        OSError,
        ValueError,
        EOFError,
        AttributeError,
        MemoryError,
    ) as error:  # torn, or no .npy
        reason = str(error).partition("\n")[0] or type(error).__name__
    logging.warning("%s: %s; decoded again", paths["image"], reason)
    return None


def decoded(builder, split: str) -> dict[str, np.ndarray]:
    """A whole split in memory, decoded once: cached as .npy next to the prepared files if possible.

    A sha256 beside the arrays covers them and the prepared files: a cache that is damaged, or was
    made from other files or by other code, is decoded again.

    Returns:
      {"image": u8[N, H, W, C], "label": [N] as it is stored: numbers, or texts}.
    """
    folder = epath.Path(builder.data_dir) / "decoded"
    size = builder.info.splits[split].num_examples
    paths = {key: folder / f"{split}.{key}.npy" for key in ("image", "label")}
    layout, made_from = _layout(builder), ""
    plain = layout.dtype in (np.uint8, np.bool_)  # else the training split tells the scale
    for part in (split,) if plain else (split, _reference(_sizes(builder))):
        _examples_of(builder, layout, part)  # refuses what is damaged, though it was decoded
        made_from += _prepared_digest(builder, part)
    record = folder / f"{split}.sha256"
    arrays = _cached(paths, record, made_from)
    if arrays is not None:
        return arrays
    scale = _scale(builder)
    parts = [
        stack(part, names, layout, scale, None)
        for names, part in _chunks(builder, layout, split, np.arange(size), "decoding")
    ]
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in paths}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, path in paths.items():
            with _replacing(path) as file:
                np.save(file, arrays[key])
        with _replacing(record) as file:
            file.write(_cache_digest(arrays, made_from).encode() + b"\n")
    except OSError:
        pass  # a read-only folder: decoded again next time
    return arrays


@contextlib.contextmanager
def _replacing(path: epath.Path):
    """A file opened for writing that takes the place of `path` once it is whole."""
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    with temporary.open("wb") as file:
        yield file
    temporary.replace(path)
