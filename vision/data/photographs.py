"""Turns photographs of any shape into squares of one size, as for evaluating ImageNet models.

    square = photographs.centre_crop(image, 224)

Runs on the host, one image at a time, with Pillow's antialiased bicubic filter. Normalising by mean
and deviation is up to the task.
"""

import numpy as np
from PIL import Image

from common.errors import require


def centre_crop(image: np.ndarray, size: int, fraction: float = 0.875) -> np.ndarray:
    """The centre square, `fraction` of the shorter side wide, resized.

    0.875 is 224 of 256 pixels (Krizhevsky et al. 2012), the setting of most published models.

    Args:
      image: u8[H, W, 3].
      size: side of the result in pixels.
      fraction: fraction of the shorter side, in (0, 1].

    Returns:
      u8[size, size, 3].

    Raises:
      BadInput: if the image has another shape or dtype, or the fraction is out of range.
    """
    require(0 < fraction <= 1, f"centre_crop: fraction {fraction} is not in (0, 1]")
    picture = _picture(image)
    side = fraction * min(picture.size)
    left, top = ((length - side) / 2 for length in picture.size)
    box = left, top, left + side, top + side
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box))


def shorter_side(image: np.ndarray, size: int) -> np.ndarray:
    """The centre square of the image resized so that its shorter side is `size`.

    Args:
      image: u8[H, W, 3].
      size: side of the result in pixels.

    Returns:
      u8[size, size, 3].

    Raises:
      BadInput: if the image has another shape or dtype.
    """
    picture = _picture(image)
    shape = [round(size * length / min(picture.size)) for length in picture.size]
    left, top = ((length - size) // 2 for length in shape)
    resized = np.asarray(picture.resize(shape, Image.Resampling.BICUBIC))
    return resized[top : top + size, left : left + size]


def square(image: np.ndarray, size: int) -> np.ndarray:
    """`shorter_side` of grey images too: u8[H, W, C] with 1 or 3 channels to u8[size, size, C]."""
    channels = image.shape[-1]
    colours = np.repeat(image, 3, axis=-1) if channels == 1 else image
    return shorter_side(colours, size)[..., :channels]


def squashed(image: np.ndarray, size: int) -> np.ndarray:
    """An image resized to a square whatever its proportions, as for SigLIP: u8[H, W, C] with 1 or 3
    channels to u8[size, size, C]."""
    channels = image.shape[-1]
    picture = _picture(np.repeat(image, 3, axis=-1) if channels == 1 else image)
    resized = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized)[..., :channels]


def _picture(image: np.ndarray) -> Image.Image:
    image = np.asarray(image)
    require(
        image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3 and image.size > 0,
        f"a photograph is u8[H, W, 3], not {image.dtype}{list(image.shape)}: "
        "convert it to RGB with eight bits a channel",
    )
    return Image.fromarray(image)
