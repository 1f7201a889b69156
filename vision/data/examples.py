"""Examples of prepared sets of labelled images: where a set keeps its image and its label, and what
they become, or why they are refused.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from common import inputs
from common.data import labels as numbering
from common.errors import BadInput, brief, require
from vision.data import photographs, pixels

MOST_CLASSES = 100_000


class Layout(NamedTuple):
    """How a set keeps its images and labels.

    Attributes:
      name: the set's name, for messages.
      image, label: their features.
      shape: (H, W, C) of an image; H and W are None if they vary.
      dtype: of the pixels, as stored.
      encoded: whether they are stored as PNG, JPEG and so on.
      flat: whether they are stored without an axis for the channel.
      classes: names of the classes; None if the labels themselves tell them.
      several: whether an example has any number of classes: a Sequence(ClassLabel).
    """

    name: str
    image: str
    label: str
    shape: tuple[int | None, ...]
    dtype: np.dtype
    encoded: bool
    flat: bool
    classes: tuple[str, ...] | None
    several: bool


def named(name: str) -> str:
    """How a message about a set begins."""
    return f"config.data.name: {name!r}"


def layout_of(builder) -> Layout:
    """How a prepared set keeps its images and labels.

    Raises:
      BadInput: unless an example is one image, and one label or a sequence of classes with names.
      ValueError: if the names of the classes are damaged.
    """
    import tensorflow_datasets as tfds

    features, name = builder.info.features, builder.name
    image, label = _keys(builder)
    stored = features[image]
    require(
        isinstance(stored, tfds.features.Image | tfds.features.Tensor)
        and len(stored.shape) in (2, 3),
        f"{named(name)}: its {image!r} is {_described(stored)}, not one image of shape "
        "[height, width, channels]",
    )
    shape = (*stored.shape, 1) if len(stored.shape) == 2 else tuple(stored.shape)
    require(
        0 not in shape,
        f"{named(name)}: its {image!r} has shape {list(stored.shape)}: its images have no pixels",
    )
    require(
        shape[2] is not None,
        f"{named(name)}: its {image!r} has shape {list(stored.shape)}, without a fixed number of "
        "channels",
    )
    require(
        shape[2] <= 4 or shape[0] not in (1, 2, 3, 4),
        f"{named(name)}: its {image!r} has shape {list(stored.shape)}, not [height, width, "
        "channels]: the channels come first; store them last",
    )
    kind = features[label]
    within = kind.feature if isinstance(kind, tfds.features.Sequence) else None
    several = isinstance(within, tfds.features.ClassLabel) and bool(within.num_classes)
    kind = within if several else kind
    dtype = np.dtype(kind.np_dtype) if isinstance(kind, tfds.features.Tensor) else None
    require(
        dtype is not None and kind.shape == () and dtype.kind in "iubOSU",
        f"{named(name)}: its {label!r} is {_described(features[label])}, neither one class "
        "(ClassLabel) nor several (a Sequence of them): one-hot vectors and real numbers cannot be "
        "trained on; store one whole number from 0, or one text",
    )
    known = isinstance(kind, tfds.features.ClassLabel) and bool(kind.num_classes)
    classes = tuple(kind.names) if known else None
    if known and not len(set(classes)) == len(classes) == kind.num_classes:
        raise ValueError(
            f"{label}.labels.txt has {len(set(classes))} different names, and there are "
            f"{kind.num_classes} classes"
        )
    return Layout(
        name=name,
        image=image,
        label=label,
        shape=shape,
        dtype=np.dtype(stored.np_dtype),
        encoded=isinstance(stored, tfds.features.Image),
        flat=len(stored.shape) == 2,
        classes=classes,
        several=several,
    )


def _keys(builder) -> tuple[str, str]:
    """The features of image and label: of these names, else as TFDS's `supervised_keys` say."""
    features, keys = builder.info.features, builder.info.supervised_keys
    if "image" in features and "label" in features:
        return "image", "label"
    pair = tuple(keys[:2]) if isinstance(keys, tuple) else ()
    if len(set(pair)) == 2 and all(isinstance(key, str) and key in features for key in pair):
        return pair
    missing = "image" if "image" not in features else "label"
    raise BadInput(f"{named(builder.name)} has no {missing!r}, but {', '.join(features)}")


def _described(feature) -> str:
    shape = getattr(feature, "shape", None)
    return (
        f"{type(feature).__name__}{f' of shape {list(shape)}' if isinstance(shape, tuple) else ''}"
    )


@contextlib.contextmanager
def row_of(layout: Layout, split: str, row: int) -> Iterator[None]:
    """Names the example in the error that an example raises."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # a damaged picture may raise anything
        reason = inputs.reason(error)
        raise BadInput(f"{named(layout.name)}: row {row} of {split!r}: {reason}") from error


def image_of(example: dict, layout: Layout) -> np.ndarray:
    """The pixels [H, W, C] of an example, as they are stored."""
    image = example[layout.image]
    if layout.encoded:
        image = pixels.picture(image, layout.shape[-1], layout.dtype)
    image = image[..., None] if layout.flat else image
    fits = len(image.shape) == 3 and all(
        want in (None, size) for want, size in zip(layout.shape, image.shape, strict=True)
    )
    if not fits or image.size == 0:
        raise ValueError(f"its image has shape {list(image.shape)}, not {list(layout.shape)}")
    return image


def stack(
    examples: list[dict], names: Callable, layout: Layout, scale: str, image_size: int | None
) -> dict[str, np.ndarray]:
    """u8[b, H, W, C] and labels, as they are stored; `names(i)` is (split, row) of example i."""
    images = []
    for i, example in enumerate(examples):
        with row_of(layout, *names(i)):
            image = pixels.as_u8(image_of(example, layout), scale)
            images.append(image if image_size is None else photographs.square(image, image_size))
    return {"image": np.stack(images), "label": label_column(examples, names, layout)}


# ------------------------------------------------------------------------------------------ labels


def label_column(examples: list[dict], names: Callable, layout: Layout) -> np.ndarray:
    """Labels as they are stored: numbers, or texts; of several labels an example, u8[b, K] of 0 and
    1."""
    if layout.several:
        given = [np.asarray(example[layout.label], np.int64) for example in examples]
        rows = np.repeat(np.arange(len(given)), list(map(len, given)))
        flat = np.concatenate(given)
        flat = numbered(flat, layout, layout.classes, lambda i: names(rows[i]))
        return numbering.multi_hot(flat, rows, (len(given), len(layout.classes)))
    labels = [example[layout.label] for example in examples]
    for i, label in enumerate(labels):
        with row_of(layout, *names(i)):
            if isinstance(label, bytes):
                labels[i] = _text(label)
            elif isinstance(label, int) and label > MOST_CLASSES:  # perhaps of 64 bits
                raise ValueError(
                    f"its label is {label}; classes are counted from 0, and at most "
                    f"{MOST_CLASSES:,}"
                )
    return np.array(labels)


def _text(label: bytes) -> str:
    try:
        text = label.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"its label {brief(label)} is not UTF-8; encode it so, or prepare the set with a "
            "ClassLabel(names=…)"
        ) from error
    if not text.strip():
        raise ValueError("its label is empty; prepare the set without it, or label it")
    return text


def classes_of(layout: Layout, labels: np.ndarray) -> tuple[str, ...]:
    """The classes of labels that have no names of their own: texts in the order of
    `common.data.labels.ordered`, or 0 to the greatest number."""
    if labels.dtype.kind == "U":
        classes = numbering.ordered(np.unique(labels).tolist())
    else:
        top = int(labels.max())
        require(
            labels.min() >= 0 and top < MOST_CLASSES,
            f"{named(layout.name)}: its {layout.label!r} is no ClassLabel, but numbers from "
            f"{labels.min()} to {top}; classes are counted from 0, and at most {MOST_CLASSES:,}",
        )
        classes = list(map(str, range(top + 1)))
    require(
        1 <= len(classes) <= MOST_CLASSES,
        f"{named(layout.name)}: its {layout.label!r} has {len(classes):,} different texts",
    )
    return tuple(classes)


def numbered(
    labels: np.ndarray, layout: Layout, classes: tuple[str, ...], names: Callable
) -> np.ndarray:
    """Labels as i32 numbers of classes; `names(i)` is (split, row) of label i. Several an example
    are numbered, u8[b, K].

    Raises:
      BadInput: if any is none of them: -1 above all, by which TFDS marks images without labels.
    """
    if labels.ndim == 2:
        return labels
    if labels.dtype.kind == "U":
        names_ = np.array(classes)
        order = np.argsort(names_)
        places = np.searchsorted(names_, labels, sorter=order)
        numbers = order[np.minimum(places, len(order) - 1)]
        bad = np.flatnonzero(names_[numbers] != labels)
    else:
        numbers, bad = labels, np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(bad):
        split, row = names(bad[0])
        value = labels[bad[0]].item()
        what = "-1, which means unlabelled" if value == -1 else f"none of {len(classes)} classes"
        raise BadInput(
            f"{named(layout.name)}: {split!r}: {len(bad):,} of {len(labels):,} labels are {what}, "
            f"such as {brief(value)} in row {row}; use another split"
        )
    return numbers.astype(np.int32)
