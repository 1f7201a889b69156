"""Files of pictures as arrays: any file that Pillow reads, upright, opaque and with eight bits.

    header = pictures.header(path)                 # its size, and whether it is grey: quick
    image, highest = pictures.pixels(path, channels=3)     # u8[H, W, 3]

The contents of a file, as bytes, will do in place of its path. Of an animation, or of several
pages, the first is read. What is transparent is laid on white. 16 bits become 8: 65535 is 255. A
file that is no picture, or damaged, or whose values Pillow would change without a word, raises
`Broken` with the reason.
"""

import contextlib
import functools
import io
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
BITS, PHOTOMETRIC, PLANAR, SAMPLE = 0x0102, 0x0106, 0x011C, 0x0153
NOTES = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks of a PNG that may tell its orientation
SIDEWAYS = (5, 6, 7, 8)  # its values that exchange height and width


class Broken(Exception):
    """A file that cannot be read as a picture; the message is the reason, without the path."""


class Header(NamedTuple):
    """What a file says without its pixels: the picture's height and width, upright, and whether it
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


def _file(path):
    return io.BytesIO(path) if isinstance(path, bytes) else open(path, "rb")


@contextlib.contextmanager
def _opened(path):
    """(the picture of a file, of which only the header has been read; the bits of a value as they
    are stored, if it is a PNG or TIFF, else 8; whether it is grey)."""
    wrong = None if isinstance(path, bytes) else inputs.fault(path, stat.S_IFREG)
    if wrong is not None:  # the path is said already
        shown = inputs.shown(path)
        raise Broken(wrong.replace(f"{shown} ", "it ", 1).replace(f": {shown}", "", 1))
    try:
        with _file(path) as file:
            head = file.read(64)
            known = inputs.impostor(head)
            if known is not None:
                raise Broken(known)
            file.seek(0)
            with Image.open(file, formats=_readable()[0]) as image:
                grey, depth = image.mode in GREY, 8
                if image.format == "PNG":
                    depth, kind = head[24:26]  # of its first chunk
                    grey |= kind == 4  # with alpha and 16 bits, Pillow makes colours of it
                if image.format == "TIFF":
                    depth = max(image.tag_v2.get(BITS, (1,)))
                _check_mode(image, depth)
                yield image, depth, grey
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
    """The size and the kind of a picture; reads its pixels only if notes stand behind them."""
    with _opened(path) as (image, _, grey):
        width, height = image.size
        if image.format == "TIFF":  # Pillow's size may be upright, or not yet
            width, height = (image.tag_v2[tag] for tag in (IMAGE_WIDTH, IMAGE_LENGTH))
        if image.format == "PNG" and _notes_behind(path):
            image.load()
        if _orientation(image) in SIDEWAYS:
            width, height = height, width
        return Header(height, width, grey)


def pixels(path, channels: int) -> tuple[np.ndarray, int | None]:
    """The pixels of a picture, u8[H, W, channels], with 1 channel (for one that is grey) or 3; and
    its highest value of 16 bits, None if it has 8 (of colours, Pillow tells the upper byte)."""
    with _opened(path) as (image, depth, grey):
        image.load()
        grey &= image.mode in GREY or image.format == "PNG"  # icons tell their mode now
        highest = None
        key = image.info.get("transparency")
        if image.mode in ("I", *SIXTEEN):
            values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
            highest = int(values.max())
            if depth == 12:  # as packed in a TIFF: 4095 is white
                array, highest = (values * 255 + 2047) // 4095, None
            else:
                array = (values + 128) // 257
            array = np.where(values == key, 255, array) if isinstance(key, int) else array
            upright = _upright(Image.fromarray(array.astype(np.uint8)), _orientation(image))
        elif image.format == "PNG" and isinstance(key, int) and image.mode == "L":
            array = np.asarray(image)  # values are scaled to 8 bits, but not the transparent one
            array = np.where(array == key * 255 // (2**depth - 1), np.uint8(255), array)
            upright = _upright(Image.fromarray(array), _orientation(image))
        else:
            upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
        array = _opaque(upright, grey)
        if highest is None and depth == 16:
            highest = 257 * int(array.max() if upright.mode not in ALPHA else _brightest(upright))
    if array.shape[-1] == channels:
        return array, highest
    if channels == 1:
        raise Broken("it has colours, and its header says that it is grey")
    return np.repeat(array, channels, axis=-1), highest


def _brightest(image: Image.Image) -> int:
    """The highest value of a picture with alpha, which is the last band."""
    return max(high for _, high in image.getextrema()[:-1])


def _notes_behind(path) -> bool:
    """Whether a PNG has notes behind its pixels."""
    with _file(path) as file:
        file.seek(8)
        begun = False
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            begun |= head[4:] == b"IDAT"
            if begun and head[4:] in NOTES:
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)
    return False


def _check_mode(image: Image.Image, depth: int) -> None:
    """Refuses what Pillow would read as something else, or nobody knows how to read."""
    if image.mode == "F":
        raise Broken("its pixels are floats, of which nobody knows the range: save it with 8 bits")
    if image.mode == "LAB":
        raise Broken("its colours are LAB: save it as RGB")
    if image.format == "TIFF":
        tags = image.tag_v2
        if 2 in tags.get(SAMPLE, (1,)):
            raise Broken(
                "its values have signs, so nobody knows what black is: save it with 8 bits"
            )
        if depth > 8 and tags.get(PHOTOMETRIC) == 0:
            raise Broken(
                "0 is white, with more than 8 bits, which Pillow does not know: save it with 8"
            )
        if depth > 8 and tags.get(PLANAR) == 2 and len(image.getbands()) > 1:
            raise Broken("its channels stand one after the other, with 16 bits: save it with 8")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise Broken("its pixels have 32 bits, of which nobody knows the range: save it with 8")
    if (image.format, image.mode, depth) == ("PNG", "RGB", 16) and "transparency" in image.info:
        raise Broken("a colour of 16 bits is transparent, of which Pillow reads 8: save it with 8")


def _orientation(image: Image.Image) -> int:
    """How a camera was held, 1 to 8; 1 if its note is absent or cannot be read."""
    with contextlib.suppress(Exception):
        # Pillow's own method for PNG reads all pixels where there is no note.
        orientation = Image.Image.getexif(image).get(ORIENTATION, 1)
        return orientation if orientation in range(1, 9) else 1
    return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1:
        return image
    image.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def _opaque(image: Image.Image, grey: bool) -> np.ndarray:
    """u8[H, W, 1] of a grey picture, u8[H, W, 3] of any other, on white."""
    if image.mode not in ALPHA and "transparency" not in image.info:
        array = np.asarray(image.convert("L" if grey else "RGB"))
        return array[..., None] if grey else array
    if image.mode == "1":
        image = image.convert("L")
    array = np.asarray(image.convert("LA" if grey else "RGBA")).astype(np.int32)
    colour, alpha = array[..., :-1], array[..., -1:]
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
