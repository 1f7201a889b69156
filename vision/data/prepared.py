"""Sets of images that TFDS prepared, without TensorFlow.

Small sets are decoded once, cached as .npy next to the prepared files, and kept in memory and on
the device as uint8; large ones are read on demand.
"""

import contextlib
import hashlib
import logging
import os
import sys

import numpy as np
from etils import epath

from common.data.splits import fingerprint, open_prepared, ranges, reading, source_of
from common.errors import require
from common.task import Source
from common.task import split_key as where
from vision.data import photographs, sets

SCRIPTED = ("fashion_mnist",)  # sets that scripts/prepare.py prepares
DECODING = 1  # of `_stack`: another number makes every cache be decoded again


def from_tfds(
    splits: dict[str, str], name: str, folder: str, image_size: int | None, resident: bool | None
) -> dict[str, Source]:
    """Sources of a set that TFDS prepared; the arguments are those of `datasets.load_sources`."""
    builder = open_prepared(name, folder, SCRIPTED)
    features = builder.info.features
    for key in ("image", "label"):
        require(
            key in features, f"config.data.name: {name!r} has no {key!r}, but {', '.join(features)}"
        )
    shape = features["image"].shape
    if image_size is not None:
        shape = image_size, image_size, shape[-1]
    require(
        None not in shape,
        f"config.data.name: {name!r} has images of varying size; set config.data.image_size=256",
    )
    classes = getattr(features["label"], "names", None)
    require(
        classes is not None,
        f"config.data.name: {name!r}: its label is not a class (ClassLabel), but "
        f"{type(features['label']).__name__}",
    )
    facts = sets.known(builder.name, tuple(classes))
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    if sets.is_resident(resident, image_size, sizes, shape):
        cache = {}

        def take(split, at):
            if split not in cache:
                source_of(builder, split)  # refuses what is damaged
                with reading(builder.data_dir):
                    cache[split] = decoded(builder, split)
                _check_labels(cache[split]["label"], facts, f"{name!r}: {split!r}")
            return {key: array[at] for key, array in cache[split].items()}

        return sets.in_memory(splits, sizes, take, facts, True)
    digest = fingerprint(builder)
    sources = {}
    for key, split in splits.items():
        parts = ranges(split, sizes, where(key))
        reader = _Reader(
            {part: source_of(builder, part) for part, _ in parts},
            np.concatenate([np.arange(at.start, at.stop, dtype=np.uint32) for _, at in parts]),
            np.repeat([part for part, _ in parts], [at.stop - at.start for _, at in parts]),
            image_size,
        )
        content = split if image_size is None else f"{split}:{image_size}"
        sources[key] = Source(
            len(reader.rows), reader, None, sets.spec(shape), f"{digest}:{content}", facts
        )
    return sources


def _check_labels(labels: np.ndarray, facts: sets.ImageFacts, where: str) -> None:
    known = len(labels) == 0 or 0 <= labels.min() <= labels.max() < len(facts.classes)
    require(known, f"config.data.name: {where}: a label is none of {len(facts.classes)} classes")


class _Reader:
    """Reads rows u32[b] of a split as arrays; a class, so that it can be sent to processes."""

    def __init__(self, sources: dict, rows: np.ndarray, parts: np.ndarray, image_size: int | None):
        self.sources, self.rows, self.parts, self.image_size = sources, rows, parts, image_size

    def __call__(self, rows):
        examples: list = [None] * len(rows)
        for part, source in self.sources.items():
            at = np.flatnonzero(self.parts[rows] == part)
            for i, example in zip(
                at, source.__getitems__(self.rows[rows[at]].tolist()), strict=True
            ):
                examples[i] = example
                if self.image_size is not None:
                    square = photographs.shorter_side(example["image"], self.image_size)
                    examples[i] = example | {"image": square}
        return _stack(examples)


def _stack(examples: list[dict]) -> dict[str, np.ndarray]:
    return {
        "image": np.stack([e["image"] for e in examples]),
        "label": np.array([e["label"] for e in examples], np.int32),
    }


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
      {"image": u8[N, H, W, C], "label": i32[N]}.
    """
    folder = epath.Path(builder.data_dir) / "decoded"
    size = builder.info.splits[split].num_examples
    paths = {key: folder / f"{split}.{key}.npy" for key in ("image", "label")}
    record, made_from = folder / f"{split}.sha256", _prepared_digest(builder, split)
    arrays = _cached(paths, record, made_from)
    if arrays is not None:
        return arrays
    source = builder.as_data_source(split=split)
    parts = []
    for start in range(0, size, 1000):
        parts.append(_stack(source.__getitems__(list(range(start, min(start + 1000, size))))))
        if sys.stderr.isatty():
            sys.stderr.write(f"\rdecoding {builder.name} {split}: {100 * start // size}% ")
    if sys.stderr.isatty():
        sys.stderr.write(f"\rdecoding {builder.name} {split}: done\n")
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
