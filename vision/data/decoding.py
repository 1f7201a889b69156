"""Pictures of a listing, decoded by threads some pictures ahead, as they are stored: at one size,
with hashes of their pixels.
"""

import collections
import hashlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vision.data import photographs, pictures
from vision.data.listed import Picture

SQUARES = np.arange(256, dtype=np.uint32) ** 2


class Decoded(NamedTuple):
    """A picture as it is stored, its highest value of 16 bits if it has them, hashes of its pixels
    at full size and as stored, and the sums of its values and of their squares, per channel."""

    image: np.ndarray
    highest: int | None
    full: bytes
    stored: bytes
    sums: tuple[np.ndarray, np.ndarray]


def attempt(function: Callable, *arguments) -> Any:
    """What a function of a file returns, or why the file is broken."""
    try:
        return function(*arguments)
    except pictures.Broken as error:
        return str(error)


def each(
    pool, function: Callable, items: list[Picture], what: str
) -> Iterator[tuple[Picture, Any]]:
    """(item, function(item), or why its file is broken) in order, computed by a pool of threads. A
    terminal shows `what` is done, and how long it will take."""
    results = _ahead(pool, lambda item: attempt(function, item), items)
    return _told(results, len(items), what)


def decode(path, shape: tuple[int, int, int], image_size: int | None) -> Decoded:
    """A picture as it is stored. Raises `Broken` if it cannot be."""
    image, highest = pictures.pixels(path, shape[-1])
    image = np.ascontiguousarray(image)
    full = hashlib.sha256(f"{image.shape}".encode())
    full.update(image)
    if image_size is not None:
        image = _square(image, image_size)
    elif image.shape != shape:
        raise pictures.Broken(f"it is {image.shape[0]} x {image.shape[1]}, unlike its header says")
    sums = image.sum((0, 1), np.uint64), SQUARES[image].sum((0, 1), np.uint64)
    return Decoded(image, highest, full.digest(), hashlib.sha256(image).digest(), sums)


def _square(image: np.ndarray, side: int) -> np.ndarray:
    height, width, _ = image.shape
    longer, limit = side * max(height, width) / min(height, width), 2 * Image.MAX_IMAGE_PIXELS
    if longer * side > limit:
        raise pictures.Broken(
            f"{height} x {width}, made {side} at its shorter side, has more than {limit:,} pixels; "
            "config.data.image_size is too large for it"
        )
    return np.ascontiguousarray(photographs.square(image, side))


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
