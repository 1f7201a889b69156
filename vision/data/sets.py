"""What all sets of labelled images share: their facts, the shape of an example, and Sources of sets
in memory."""

import functools
import hashlib
import logging
from typing import NamedTuple

import jax
import numpy as np

from common.data import labels as numbering
from common.data import loading
from common.data.splits import ranges
from common.task import Source, split_key

# Means and standard deviations of the training images, divided by 255; 0.5 for other sets.
NORMALISATION = {
    "digits": ((0.2873,), (0.3534,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
RESIDENT_BYTES = 1 << 30  # sets below this are resident unless the config says otherwise


class ImageFacts(NamedTuple):
    """Facts about a set of images for tasks, `Source.facts`.

    Attributes:
      classes: class names, in the order of the labels.
      mean, std: of the training pixels divided by 255: a number per channel, or one for all.
      multi_label: whether an example has any number of classes: its label is u8[K], 0 or 1.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    multi_label: bool = False


def known(name: str, classes: tuple[str, ...]) -> ImageFacts:
    """The facts of a set by its name; 0.5 and 0.5 for one whose pixels were not measured."""
    mean, std = NORMALISATION.get(name, ((0.5,), (0.5,)))
    return ImageFacts(classes, mean, std)


def spec(shape: tuple[int, ...], facts: ImageFacts) -> dict:
    """The spec of Sources of u8 images of a shape (H, W, C)."""
    one, several = ((), np.int32), ((len(facts.classes),), np.uint8)
    label = jax.ShapeDtypeStruct(*(several if facts.multi_label else one))
    return {"image": jax.ShapeDtypeStruct(shape, np.uint8), "label": label}


def outline(shape: tuple[int, ...], size: int, facts: ImageFacts, resident: bool) -> Source:
    """A set of `size` black images, with labels of every class."""
    row = spec(shape, facts)
    black = lambda size: {k: np.zeros((size, *s.shape), s.dtype) for k, s in row.items()}
    arrays = black(size) if resident else None  # untouched zeros take no memory
    labels = functools.partial(numbering.any_of, size, len(facts.classes), facts.multi_label)
    return Source(size, lambda rows: black(len(rows)), arrays, row, "outline", facts, labels)


def is_resident(resident: bool | None, image_size: int | None, sizes: dict, shape) -> bool:
    """Whether a set lives on the device: as the config sets it, else if it is small."""
    small = image_size is None and sum(sizes.values()) * int(np.prod(shape)) <= RESIDENT_BYTES
    return small if resident is None else resident


def duplicates(train: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The rows of `other` whose pixels are those of a training image.

    Rows are compared by a hash that is linear in their 64-bit words, and where it agrees by a
    digest: 70,000 images of 28x28 take a fiftieth of a second.

    Args:
      train: u8[N, H, W, C].
      other: u8[M, H, W, C].

    Returns:
      i64[D], ascending; empty if the shapes differ.
    """
    if train.shape[1:] != other.shape[1:] or not (train.size and other.size):
        return np.empty(0, np.int64)
    train, other = (np.ascontiguousarray(x).reshape(len(x), -1) for x in (train, other))
    weights = np.random.default_rng(0).integers(0, 1 << 64, train.shape[1], np.uint64) | np.uint64(
        1
    )
    hashes = [_hashes(images, weights) for images in (train, other)]
    alike = np.flatnonzero(np.isin(hashes[1], hashes[0]))
    digest = lambda row: hashlib.blake2b(row, digest_size=16).digest()
    known = {digest(train[i]) for i in np.flatnonzero(np.isin(hashes[0], hashes[1][alike]))}
    return np.array([i for i in alike if digest(other[i]) in known], np.int64)


def _hashes(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """u64[N] of u8[N, D]: sums of words times random odd weights, modulo 2^64."""
    words = images.shape[1] // 8
    hashes = images[:, 8 * words :] @ weights[8 * words :]
    for start in range(0, len(images), 4096):  # parts that fit in the cache
        part = np.ascontiguousarray(images[start : start + 4096, : 8 * words]).view(np.uint64)
        hashes[start : start + 4096] += part @ weights[:words]
    return hashes


def in_memory(
    splits, sizes, take, facts, resident: bool, *, compare: bool = True
) -> dict[str, Source]:
    """Sources in memory; `take(split, slice)` returns the arrays of part of a split.

    With `compare`, a warning counts the images of other splits that are training images too, by
    their pixels.
    """
    sources, rows, images = {}, {}, {}
    for name, split in splits.items():
        rows[name] = ranges(split, sizes, split_key(name), shuffled=True)
        parts = [take(part, at) for part, at in rows[name]]
        arrays = (
            parts[0]
            if len(parts) == 1
            else {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        )
        sources[name] = loading.from_arrays(arrays, resident, facts)
        images[name] = arrays["image"]
    numbering.say_sorted(sources, splits)
    if compare:
        _report_duplicates(splits, sizes, rows, images)
    return sources


def _report_duplicates(splits, sizes, rows: dict, images: dict[str, np.ndarray]) -> None:
    """Warns of images that another split shares with the training split, except in rows that both
    name: who evaluates 'train[:100]' knows."""
    if "train" not in splits:
        return
    trained = {part: np.zeros(size, bool) for part, size in sizes.items()}
    for part, at in rows["train"]:
        trained[part][at] = True
    for split, name in {split: name for name, split in splits.items()}.items():
        new = np.concatenate([~trained[part][at] for part, at in rows[name]])
        count = len(duplicates(images["train"], images[name][new])) if new.any() else 0
        warn_of_copies(count, len(images[name]), split, splits["train"])


def warn_of_copies(count: int, size: int, split: str, trained: str) -> None:
    """Warns, if there are any, of images of a split that the split `trained` has, too."""
    if count:
        logging.warning(
            "%d of %d images of %r are also in %r, which is trained on", count, size, split, trained
        )
