"""Pixels as u8, of sets that store them otherwise: encoded files, booleans, 16 bits, floats.

What white is, the data must tell: float32 may end at 1 or at 255. It is decided once for a whole
set, from its training split (`scale_of`), and holds for all that is read afterwards (`as_u8`): what
does not fit is refused, never clipped or wrapped.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.errors import BadInput, require

ROUNDING = 1e-6  # by which floats may leave [0, 1]; it becomes 0 or 255 all the same
FULL = 1 << 14  # 16 bits that never reach a quarter of their range are 10, 12 or 14 bits

SAID = {
    "u8": "uint8",
    "mask": "booleans",
    "sixteen": "uint16",
    "unit": "floats from 0 to 1",
    "whole": "whole numbers from 0 to 255",
}
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels


class Range(NamedTuple):
    """What pixels are: their dtype, the least and the greatest (NaN if any is), and whether all are
    whole numbers."""

    dtype: np.dtype
    low: float
    high: float
    whole: bool

    def __str__(self):
        if np.isnan(self.low):
            return f"{self.dtype}, and some are NaN"
        kind = "whole numbers " if self.whole and self.dtype.kind == "f" else ""
        return f"{self.dtype}, {kind}from {self.low:.6g} to {self.high:.6g}"


def range_of(image: np.ndarray) -> Range:
    """The range of an array of numbers."""
    low, high = image.min(), image.max()
    whole = image.dtype.kind != "f" or bool(np.isfinite(low) and (image == np.rint(image)).all())
    return Range(image.dtype, low.item(), high.item(), whole)


def joined(a: Range, b: Range) -> Range:
    """The range of the pixels of both."""
    return Range(
        a.dtype,
        float(np.minimum(a.low, b.low)),
        float(np.maximum(a.high, b.high)),
        a.whole and b.whole,
    )


def scale_of(seen: Range, where: str) -> str:
    """How pixels of this range become u8: a `scale` for `as_u8`.

    "u8" as they are; "mask" for booleans, of which True is white; "sixteen" for 16 bits, divided by
    257; "unit" for floats in [0, 1], times 255; "whole" for 0 to 255 in another type.

    Raises:
      BadInput: if the range does not tell what white is.
    """
    if seen.dtype in (np.uint8, np.bool_):
        return "u8" if seen.dtype == np.uint8 else "mask"
    require(
        seen.dtype.kind in "iuf",
        f"{where}: its images are {seen.dtype}; store them as uint8, 0 to 255",
    )
    if seen.dtype == np.uint16 and seen.high >= FULL:
        return "sixteen"
    if seen.dtype.kind == "f" and _fits(seen, "unit"):
        return "unit"
    if _fits(seen, "whole") and seen.high > 1 and seen.dtype != np.int8:
        return "whole"
    if seen.dtype.kind != "f" and seen.low >= 0 and seen.high <= 1:
        hint = "which does not tell what white is; store them as bool, or as uint8 with 255"
    elif seen.dtype == np.uint16:
        hint = "which is likely 10, 12 or 14 bits; store them as uint8, divided by their maximum"
    else:
        hint = "which is neither 0 to 255 nor floats from 0 to 1; store them as uint8, 0 to 255"
    raise BadInput(f"{where}: its pixels are {seen}, {hint}")


def _fits(seen: Range, scale: str) -> bool:
    if scale == "unit":
        return seen.low >= -ROUNDING and seen.high <= 1 + ROUNDING
    if scale == "whole":
        return seen.whole and seen.low >= 0 and seen.high <= 255
    return seen.dtype == {"u8": np.uint8, "mask": np.bool_, "sixteen": np.uint16}[scale]


def as_u8(image: np.ndarray, scale: str) -> np.ndarray:
    """Pixels as u8, of the same shape.

    Raises:
      ValueError: if they are not of this scale.
    """
    if scale == "u8" and image.dtype == np.uint8:
        return image
    seen = range_of(image)
    if not _fits(seen, scale):
        raise ValueError(f"its pixels are {seen}, and those of others are {SAID[scale]}")
    if scale == "mask":
        return image.astype(np.uint8) * np.uint8(255)
    if scale == "sixteen":
        return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if scale == "unit":
        image = np.rint(np.multiply(image, 255, dtype=np.promote_types(image.dtype, np.float32)))
    return image.astype(np.uint8)


def picture(data: bytes, channels: int, dtype: np.dtype) -> np.ndarray:
    """The pixels of an encoded image, in the channels that its set declares, as TensorFlow gives
    them: a palette becomes colours, grey is repeated, colours become grey by their luminance.

    Args:
      data: PNG, JPEG or another format of Pillow.
      channels: C, 1 to 4.
      dtype: u8; u16 if C is 1; f32 if C is 1, packed into RGBA as TFDS does.

    Returns:
      dtype[H, W, C].

    Raises:
      ValueError, OSError: if it is damaged, or its pixels would be lost: 16 bits where u8 is
        declared, transparency without a channel for it.
    """
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ValueError(f"its {len(data):,} bytes are no picture that Pillow reads") from error
    deep = image.mode.startswith(("I", "F"))
    if dtype == np.float32 and channels == 1 and image.mode == "RGBA":
        return np.asarray(image).view(np.float32)
    if dtype == np.uint16 and channels == 1 and deep and image.mode != "F":
        array = np.asarray(image).astype(np.uint16)
        if "transparency" in image.info and (array == image.info["transparency"]).any():
            raise ValueError(f"parts are transparent, and the set has {channels} channels")
        return array[..., None]
    if deep or dtype != np.uint8 or channels not in MODES:
        raise ValueError(
            f"a picture that Pillow reads as {image.mode} does not hold {dtype} of {channels} "
            "channels"
        )
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    coarse = _transparent_colour_is_coarse(image)
    if coarse or (channels in (1, 3) and not _opaque(image)):
        raise ValueError(
            f"parts are transparent{' by a colour' * coarse}, and the set has {channels} channels"
        )
    image = image if image.mode == MODES[channels] else image.convert(MODES[channels])
    return np.asarray(image).reshape(image.height, image.width, channels)


def _transparent_colour_is_coarse(image: Image.Image) -> bool:
    """Whether a picture names a colour that is transparent (a tRNS chunk) in 1, 2, 4 or 16 bits,
    which its pixels of 8 bits no longer tell."""
    if "transparency" not in image.info or image.mode not in ("1", "L", "RGB"):
        return False
    return image.tile[0][3] not in ("L", "RGB")


def _opaque(image: Image.Image) -> bool:
    """Whether no pixel is transparent, by a channel or by a colour that means it."""
    if "transparency" in image.info and image.mode in ("L", "RGB"):
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    return "A" not in image.getbands() or image.getchannel("A").getextrema()[0] == 255
