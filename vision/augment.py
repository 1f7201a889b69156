"""Augmentation on the device, of a whole batch at once, inside the jitted step.

Letters: B batch, H height, W width, C channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from common.config import require


def random_crop(key, images, padding: int):
    """Zero-pads every side and takes a crop of the old size at a place of its own for each image.

    Args:
      key: a jax key.
      images: [B, H, W, C].
      padding: pixels a side; the shift is uniform over (2 * padding + 1)^2 places (Krizhevsky
        2009).
    """
    batch, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)
    crop = lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), (height, width, channels))
    return jax.vmap(crop)(padded, corners)


def random_flip(key, images):
    """Mirrors each image left to right with probability one half. [B, H, W, C]."""
    flip = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def make(*, crop_padding: int = 0, flip: bool = False) -> Callable:
    """The section `augment`: (key, images) -> images.

    Args:
      crop_padding: see `random_crop`; 0 is none.
      flip: see `random_flip`.
    """
    require(crop_padding >= 0, f"config.augment.crop_padding: {crop_padding} is negative")

    def augment(key, images):
        crop_key, flip_key = jax.random.split(key)
        if crop_padding:
            images = random_crop(crop_key, images, crop_padding)
        if flip:
            images = random_flip(flip_key, images)
        return images

    return augment
