"""Files of pictures as arrays: any file that Pillow reads, upright, opaque and with eight bits.

    header = pictures.header(path)                 # its size, and whether it is grey: quick
    image = pictures.pixels(path, channels=3)      # u8[H, W, 3]

Of an animation, or of several pages, the first is read. What is transparent is laid on white. 16
bits become 8: 65535 is 255. A file that is no picture, or damaged, raises `Broken` with the reason.
"""

import contextlib
import functools
import stat
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from common import inputs

# Formats that Pillow opens only with other programs, or only to write them again.
STUBS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")
GREY = ("1", "L", "LA", "La", "I", *SIXTEEN)
ORIENTATION = 0x0112  # a tag of EXIF and TIFF, as the next
IMAGE_WIDTH, IMAGE_LENGTH = 0x0100, 0x0101
SIDEWAYS = (5, 6, 7, 8)  # its values that exchange height and width


class Broken(Exception):
    """A file that cannot be read as a picture; the message is the reason, without the path."""


class Header(NamedTuple):
    """What the beginning of a file says: the picture's height and width, upright, and whether it
    has no colours."""

    height: int
    width: int
    grey: bool


@functools.cache
def _readable() -> tuple[tuple[str, ...], frozenset[str]]:
    """(formats that Pillow reads, their suffixes)."""
    Image.init()
    formats = tuple(sorted(set(Image.OPEN) - STUBS))
    known = Image.registered_extensions().items()
    return formats, frozenset(suffix for suffix, kind in known if kind in formats)


def suffixes() -> frozenset[str]:
    """The suffixes of pictures that can be read, such as ".png", in lower case."""
    return _readable()[1]


@contextlib.contextmanager
def _opened(path):
    """The picture of a file, of which only the header has been read."""
    wrong = inputs.fault(path, stat.S_IFREG)
    if wrong is not None:
        raise Broken(wrong)
    try:
        with open(path, "rb") as file:
            known = inputs.impostor(file.read(64))
            if known is not None:
                raise Broken(known)
            file.seek(0)
            with Image.open(file, formats=_readable()[0]) as image:
                yield image
    except Broken:
        raise
    except Image.UnidentifiedImageError as error:
        raise Broken("no picture that Pillow can read, or its header is damaged") from error
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise Broken(f"a picture of more than {limit:,} pixels: make it smaller") from error
    except Exception as error:  # a damaged file may raise anything
        raise Broken(f"damaged: {inputs.reason(error)}") from error


def header(path) -> Header:
    """The size and the kind of a picture; reads no more than the beginning of its file."""
    with _opened(path) as image:
        _check_mode(image)
        width, height = image.size
        if image.format == "TIFF":  # Pillow's size may be upright, or not yet
            width, height = (image.tag_v2[tag] for tag in (IMAGE_WIDTH, IMAGE_LENGTH))
        # A PNG may tell its orientation behind its pixels, which would all be read.
        early = image.format != "PNG" or "exif" in image.info
        if early and _orientation(image) in SIDEWAYS:
            width, height = height, width
        return Header(height, width, image.mode in GREY)


def pixels(path, channels: int) -> np.ndarray:
    """The pixels of a picture: u8[H, W, channels], with 1 channel (for one that is grey) or 3."""
    with _opened(path) as image:
        _check_mode(image)
        image.load()
        array = _sixteen(image) if image.mode in ("I", *SIXTEEN) else None
        if array is not None:
            upright = Image.fromarray(array)
            if (orientation := _orientation(image)) != 1:
                upright.getexif()[ORIENTATION] = orientation
                upright = ImageOps.exif_transpose(upright)
        else:
            upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
        array = _opaque(upright)
    return array if array.shape[-1] == channels else np.repeat(array, channels, axis=-1)


def _check_mode(image: Image.Image) -> None:
    if image.mode == "F":
        raise Broken("its pixels are floats, of which nobody knows the range: save it with 8 bits")
    if image.mode == "LAB":
        raise Broken("its colours are LAB: save it as RGB")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise Broken("its pixels have 32 bits, of which nobody knows the range: save it with 8")


def _orientation(image: Image.Image) -> int:
    """How a camera was held, 1 to 8; 1 if its note is absent or cannot be read."""
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(ORIENTATION, 1)
        return orientation if orientation in range(1, 9) else 1
    return 1


def _sixteen(image: Image.Image) -> np.ndarray:
    """16 bits as 8, to the nearest: u8[H, W]."""
    array = np.asarray(image).astype(np.int64)
    return ((np.clip(array, 0, 65535) + 128) // 257).astype(np.uint8)


def _opaque(image: Image.Image) -> np.ndarray:
    """u8[H, W, 1] of a grey picture, u8[H, W, 3] of any other, on white."""
    grey = image.mode in GREY
    if image.mode not in ALPHA and "transparency" not in image.info:
        array = np.asarray(image.convert("L" if grey else "RGB"))
        return array[..., None] if grey else array
    if image.mode == "1":
        image = image.convert("L")
    array = np.asarray(image.convert("LA" if grey else "RGBA")).astype(np.int32)
    colour, alpha = array[..., :-1], array[..., -1:]
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
