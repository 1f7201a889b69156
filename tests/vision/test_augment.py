"""Augmentations by their statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.config import BadInput
from vision import augment

IMAGES = jnp.asarray(np.random.default_rng(0).integers(1, 255, (2000, 6, 6, 1)), jnp.uint8)


def test_a_crop_is_a_shift_with_zeros_uniform_over_the_places():
    crops = np.asarray(augment.random_crop(jax.random.key(0), IMAGES, 1))
    padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = np.zeros(9, int)
    for image, crop in zip(padded, crops, strict=True):
        matches = [
            i
            for i in range(9)
            if np.array_equal(image[i // 3 : i // 3 + 6, i % 3 : i % 3 + 6], crop)
        ]
        assert len(matches) == 1
        places[matches[0]] += 1
    expected = len(IMAGES) / 9
    assert ((places - expected) ** 2 / expected).sum() < 26  # chi-squared, 8 degrees, p = 0.001


def test_a_flip_mirrors_half_of_the_images():
    flipped = np.asarray(augment.random_flip(jax.random.key(0), IMAGES))
    same = (flipped == IMAGES).all(axis=(1, 2, 3))
    mirrored = (flipped == IMAGES[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same | mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 0.04


def test_the_default_is_nothing_and_types_stay():
    assert augment.make()(jax.random.key(0), IMAGES) is IMAGES
    changed = augment.make(crop_padding=2, flip=True)(jax.random.key(0), IMAGES)
    assert changed.dtype == IMAGES.dtype
    assert changed.shape == IMAGES.shape
    with pytest.raises(BadInput, match="negative"):
        augment.make(crop_padding=-1)
