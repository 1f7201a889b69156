"""Photographs of any shape become squares of one size, as ImageNet models are evaluated on them.

    square = photographs.centre_crop(image, 224)

On the host, with Pillow's antialiased bicubic filter; one image at a time. Scaling the numbers to
mean and deviation is the task's.
"""

import numpy as np
from PIL import Image

from common.errors import require


def centre_crop(image: np.ndarray, size: int, fraction: float = 0.875) -> np.ndarray:
    """The centre square, `fraction` of the shorter side wide, resized.

    0.875 is 224 of 256 pixels (Krizhevsky et al. 2012), and what most models are published with.

    Args:
      image: u8[H, W, 3].
      size: side in pixels of what is returned.
      fraction: of the shorter side, in (0, 1].

    Returns:
      u8[size, size, 3].

    Raises:
      BadInput: if the image is of another shape or type, or the fraction outside its range.
    """
    require(0 < fraction <= 1, f"centre_crop: fraction {fraction} is not in (0, 1]")
    picture = _picture(image)
    side = fraction * min(picture.size)
    left, top = ((length - side) / 2 for length in picture.size)
    box = left, top, left + side, top + side
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box))


def shorter_side(image: np.ndarray, size: int) -> np.ndarray:
    """The image resized so that its shorter side is `size`, and of that the centre square.

    Args:
      image: u8[H, W, 3].
      size: side in pixels of what is returned.

    Returns:
      u8[size, size, 3].

    Raises:
      BadInput: if the image is of another shape or type.
    """
    picture = _picture(image)
    shape = [round(size * length / min(picture.size)) for length in picture.size]
    left, top = ((length - size) // 2 for length in shape)
    resized = np.asarray(picture.resize(shape, Image.Resampling.BICUBIC))
    return resized[top : top + size, left : left + size]


def _picture(image: np.ndarray) -> Image.Image:
    image = np.asarray(image)
    require(
        image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3 and image.size > 0,
        f"a photograph is u8[H, W, 3], not {image.dtype}{list(image.shape)}: "
        "convert it to RGB with eight bits a channel",
    )
    return Image.fromarray(image)
