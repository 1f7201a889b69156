"""Images as evaluation sees them: normalised, centre-cropped, in one view or several."""

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np

from common.errors import choice, require

Views = Literal["none", "flip", "flip_shift"]


def normalise(images, mean, std):
    """(images - mean) / std, in their dtype. `mean` and `std` are numbers or one per channel."""
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def centre_crop(images, size: int):
    """The centre square, [B, size, size, C]: evaluation's counterpart of `random_resized_crop` in
    training.

    Raises:
      BadInput: if the images are smaller.
    """
    _, height, width, _ = images.shape
    require(
        size <= min(height, width),
        f"config.augment.resized_crop: {size} is larger than the images, {height} x {width}",
    )
    top, left = (height - size) // 2, (width - size) // 2
    return images[:, top : top + size, left : left + size]


def evaluated(images, size: int | None, mean, std):
    """Images u8[B, H, W, C] as evaluation sees them, f32: their centre square of this size, unless
    it is None, with pixels divided by 255 and normalised."""
    images = images if size is None else centre_crop(images, size)
    return normalise(images.astype(np.float32) / 255.0, mean, std)


def weighted_views(images, name: Views) -> tuple:
    """Views to average an image's logits over: ((weight, [B, H, W, C]), …), weights sum to 1.

    Args:
      images: [B, H, W, C].
      name: "none" is the image itself. "flip" is the image and its mirror image. "flip_shift" is
        airbench's six (Jordan 2024): these two, with half of the total weight, and both shifted by
        a pixel up and left, and down and right, with the border reflected.

    Raises:
      BadInput: for an unknown name.
    """
    choice("views", name, get_args(Views))
    if name == "none":
        return ((1.0, images),)
    if name == "flip":
        return (0.5, images), (0.5, images[:, :, ::-1])
    _, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    shifted = (padded[:, at : at + height, at : at + width] for at in (2, 0))
    return tuple(
        (share * weight, view)
        for share, moved in zip((0.5, 0.25, 0.25), (images, *shifted), strict=True)
        for weight, view in weighted_views(moved, "flip")
    )
