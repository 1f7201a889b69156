"""Sets of labelled images as Sources: `digits`, `fashion_mnist`, and any prepared TFDS directory.

`tfds:NAME` (`tfds:cifar10`, `tfds:NAME/CONFIG:VERSION`) reads what `tfds build
--file_format=array_record` or scripts/prepare.py wrote, without TensorFlow. Small sets are decoded
once, cached as .npy next to the prepared files, and kept in memory and on the device as uint8;
large ones are read on demand. Splits use TFDS syntax: `train`, `train[:90%]`, `train[90%:]+test`.
"""

import contextlib
import gzip
import hashlib
import importlib.resources
import logging
import os
import sys
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from common.data import loading
from common.data.splits import fingerprint, open_prepared, ranges, reading, source_of
from common.errors import require
from common.task import Source
from common.task import split_key as where
from vision.data import photographs

# Means and standard deviations of the training images, divided by 255; 0.5 for other sets.
NORMALISATION = {
    "digits": ((0.2873,), (0.3534,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# Sets whose outline is known without their files: shape, classes, examples per split.
OUTLINES = {
    "digits": ((8, 8, 1), 10, {"train": 1437, "test": 360}),
    "fashion_mnist": ((28, 28, 1), 10, {"train": 60_000, "test": 10_000}),
    "cifar10": ((32, 32, 3), 10, {"train": 50_000, "test": 10_000}),
    "imagenet2012": ((None, None, 3), 1000, {"train": 1_281_167, "validation": 50_000}),
}
SCRIPTED = ("fashion_mnist",)  # sets that scripts/prepare.py prepares
DECODING = 1  # of `_stack`: another number makes every cache be decoded again
RESIDENT_BYTES = 1 << 30  # sets below this are resident unless the config says otherwise


class ImageFacts(NamedTuple):
    """Facts about a set of images for tasks, `Source.facts`.

    Attributes:
      classes: class names, in the order of the labels.
      mean, std: of the training pixels divided by 255: a number per channel, or one for all.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_sources(
    splits: dict[str, str],
    *,
    name: str = "digits",
    train: str = "train",
    folder: str = "",
    image_size: int | None = None,
    resident: bool | None = None,
    workers: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> dict[str, Source]:
    """The section `data`: Sources of `image u8[N, H, W, C]` and `label i32[N]`.

    Args:
      splits: {name of the Source: split}; its "train" is the argument `train`.
      name: the data set: "digits", "fashion_mnist", or "tfds:NAME" for any set prepared by TFDS.
      train: split to train on: "train" or "train[:90%]".
      folder: folder of TFDS's prepared sets; "" is TFDS_DATA_DIR or ~/tensorflow_datasets.
      image_size: for images of varying size: the shorter side is resized to this many pixels, and
        the centre square is kept (`photographs.shorter_side`). None is for images of one size.
      resident: whether the training set lives on the device; None decides by its size.
      workers: number of processes that read a set that is not resident; 0 reads in threads.
      mean, std: by which pixels, divided by 255, are normalised: a number per channel, or one for
        all; () are those of the set. Published weights come with their own.

    Raises:
      BadInput: if the set is not prepared, there is no such split, or its images vary in size and
        the config sets no `image_size`.
    """
    loading.check_workers(workers)
    require(splits.get("train", train) == train, "config.data.train: given twice")
    require(
        image_size is None or (image_size > 0 and not resident),
        f"config.data.image_size: {image_size}: must be positive, and the set read on demand "
        "(config.data.resident=false)",
    )
    require(
        image_size is None or name.startswith("tfds:"),
        f"config.data.image_size: the images of {name} have one size",
    )
    sources = _read(splits, name, folder, image_size, resident)
    return {k: source._replace(facts=_scaled(source, mean, std)) for k, source in sources.items()}


def _scaled(source: Source, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageFacts:
    """A set's facts, with another normalisation if there is one."""
    channels = source.spec["image"].shape[-1]
    for key, values in (("mean", mean), ("std", std)):
        require(
            len(values) in (0, 1, channels),
            f"config.data.{key}: {values} are {len(values)} numbers, and the images have "
            f"{channels} channels",
        )
    require(
        bool(mean) == bool(std) and all(value > 0 for value in std),
        f"config.data.std: {std}: a positive number for each of the mean is needed",
    )
    return source.facts._replace(mean=mean, std=std) if mean else source.facts


def _read(
    splits: dict[str, str], name: str, folder: str, image_size: int | None, resident: bool | None
) -> dict[str, Source]:
    if name == "digits":
        arrays = _digits()
        sizes = {split: len(columns["label"]) for split, columns in arrays.items()}
        facts = _facts("digits", tuple(map(str, range(10))))
        take = lambda split, rows: {k: v[rows] for k, v in arrays[split].items()}
        return _sources(splits, sizes, take, facts, resident is not False)
    require(
        name == "fashion_mnist" or name.startswith("tfds:"),
        f"config.data.name: unknown {name!r}; use 'digits', 'fashion_mnist' or 'tfds:NAME'",
    )
    return _from_tfds(splits, name.removeprefix("tfds:"), folder, image_size, resident)


def _facts(name: str, classes: tuple[str, ...]) -> ImageFacts:
    mean, std = NORMALISATION.get(name, ((0.5,), (0.5,)))
    return ImageFacts(classes, mean, std)


def _spec(shape: tuple[int, ...]) -> dict:
    image = jax.ShapeDtypeStruct(shape, np.uint8)
    return {"image": image, "label": jax.ShapeDtypeStruct((), np.int32)}


def outline_sources(splits: dict[str, str], section: dict) -> dict[str, Source]:
    """What `load_sources` returns, but with black images, for the sets in `OUTLINES`.

    Args:
      splits: {name of the Source: split}.
      section: the completed section `data`.
    """
    name = section["name"].removeprefix("tfds:")
    if name not in OUTLINES:
        return load_sources(splits, **section)
    shape, classes, sizes = OUTLINES[name]
    if section["image_size"] is not None:
        shape = section["image_size"], section["image_size"], shape[-1]
    require(None not in shape, f"config.data.image_size: the images of {name} vary; set it to 256")
    facts, spec = _facts(name, tuple(map(str, range(classes)))), _spec(shape)
    black = lambda size: {k: np.zeros((size, *s.shape), s.dtype) for k, s in spec.items()}
    resident = _is_resident(section["resident"], section["image_size"], sizes, shape)
    outlines = {}
    for key, split in splits.items():
        size = sum(at.stop - at.start for _, at in ranges(split, sizes, where(key)))
        arrays = black(size) if resident else None  # untouched zeros take no memory
        source = Source(size, lambda rows: black(len(rows)), arrays, spec, "outline", facts)
        facts = _scaled(source, section["mean"], section["std"])
        outlines[key] = source._replace(facts=facts)
    return outlines


def _is_resident(resident: bool | None, image_size: int | None, sizes: dict, shape) -> bool:
    """Whether a set lives on the device: as the config sets it, else if it is small."""
    small = image_size is None and sum(sizes.values()) * int(np.prod(shape)) <= RESIDENT_BYTES
    return small if resident is None else resident


def _digits() -> dict[str, dict[str, np.ndarray]]:
    """8x8 handwritten digits (Alpaydin & Kaynak 1998, CC BY 4.0; the test part of UCI's set, as in
    scikit-learn): the first 1,437 for training, the other 360, by other writers, for testing."""
    packed = importlib.resources.files("vision.data").joinpath("digits.csv.gz").read_bytes()
    table = np.loadtxt(gzip.decompress(packed).decode().splitlines(), delimiter=",", dtype=np.int32)
    images = (table[:, :-1] * 15).astype(np.uint8).reshape(-1, 8, 8, 1)  # 0..16 -> 0..240
    labels = table[:, -1].astype(np.int32)
    parts = {"train": slice(0, 1437), "test": slice(1437, None)}
    return {split: {"image": images[at], "label": labels[at]} for split, at in parts.items()}


def _sources(splits, sizes, take, facts, resident: bool) -> dict[str, Source]:
    """Sources in memory; `take(split, slice)` returns the arrays of part of a split."""
    sources = {}
    for name, split in splits.items():
        parts = [take(part, at) for part, at in ranges(split, sizes, where(name))]
        arrays = (
            parts[0]
            if len(parts) == 1
            else {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        )
        sources[name] = loading.from_arrays(arrays, resident, facts)
    return sources


# -------------------------------------------------------------------------------------------- TFDS


def _from_tfds(
    splits: dict[str, str], name: str, folder: str, image_size: int | None, resident: bool | None
) -> dict[str, Source]:
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
    facts = _facts(builder.name, tuple(classes))
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    if _is_resident(resident, image_size, sizes, shape):
        cache = {}

        def take(split, at):
            if split not in cache:
                source_of(builder, split)  # refuses what is damaged
                with reading(builder.data_dir):
                    cache[split] = decoded(builder, split)
                _check_labels(cache[split]["label"], facts, f"{name!r}: {split!r}")
            return {key: array[at] for key, array in cache[split].items()}

        return _sources(splits, sizes, take, facts, True)
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
            len(reader.rows), reader, None, _spec(shape), f"{digest}:{content}", facts
        )
    return sources


def _check_labels(labels: np.ndarray, facts: ImageFacts, where: str) -> None:
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
