"""What all sets of labelled images share: their facts, the shape of an example, and Sources of sets
in memory."""

from typing import NamedTuple

import jax
import numpy as np

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
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def known(name: str, classes: tuple[str, ...]) -> ImageFacts:
    """The facts of a set by its name; 0.5 and 0.5 for one whose pixels were not measured."""
    mean, std = NORMALISATION.get(name, ((0.5,), (0.5,)))
    return ImageFacts(classes, mean, std)


def spec(shape: tuple[int, ...]) -> dict:
    """The spec of Sources of u8 images of a shape (H, W, C)."""
    image = jax.ShapeDtypeStruct(shape, np.uint8)
    return {"image": image, "label": jax.ShapeDtypeStruct((), np.int32)}


def is_resident(resident: bool | None, image_size: int | None, sizes: dict, shape) -> bool:
    """Whether a set lives on the device: as the config sets it, else if it is small."""
    small = image_size is None and sum(sizes.values()) * int(np.prod(shape)) <= RESIDENT_BYTES
    return small if resident is None else resident


def in_memory(splits, sizes, take, facts, resident: bool) -> dict[str, Source]:
    """Sources in memory; `take(split, slice)` returns the arrays of part of a split."""
    sources = {}
    for name, split in splits.items():
        parts = [take(part, at) for part, at in ranges(split, sizes, split_key(name))]
        arrays = (
            parts[0]
            if len(parts) == 1
            else {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        )
        sources[name] = loading.from_arrays(arrays, resident, facts)
    return sources
