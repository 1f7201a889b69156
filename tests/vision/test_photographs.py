"""Crops and sizes of photographs, against numbers that can be told without a filter."""

import numpy as np
import pytest

from common.config import BadInput
from vision.photographs import centre_crop, shorter_side


def ramp(height: int, width: int) -> np.ndarray:
    """Channels that grow with the row and the column, and a constant."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([rows, columns, np.full_like(rows, 7)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (97, 96)])
def test_a_crop_of_its_own_size_is_the_centre_itself(shape):
    image = ramp(*shape)
    top, left = (shape[0] - 84) // 2, (shape[1] - 84) // 2
    if shape[0] % 2:  # the centre lies between pixels, and bicubic keeps a ramp
        found = centre_crop(image, 84).astype(int)[2:-2]
        assert np.abs(found - image[top + 2 : top + 82, left : left + 84]).max() <= 1
    else:
        np.testing.assert_array_equal(
            centre_crop(image, 84), image[top : top + 84, left : left + 84]
        )


@pytest.mark.parametrize("shape", [(96, 160), (160, 96)])
def test_resizing_keeps_a_ramp_and_its_place(shape):
    for size in (24, 60, 144):
        step = 0.875 * 96 / size
        found = centre_crop(ramp(*shape), size).astype(float)
        for axis, length in enumerate(shape):
            first = (length - 0.875 * 96) / 2
            there = first + step * (np.arange(size) + 0.5) - 0.5
            there = there.reshape((-1, 1) if axis == 0 else (1, -1))
            assert (
                np.abs(found[3:-3, 3:-3, axis] - (there + 0 * found[..., 0])[3:-3, 3:-3]).max() <= 1
            )
        assert (found[..., 2] == 7).all()


@pytest.mark.parametrize("shape", [(40, 67), (67, 40), (40, 40)])
def test_shorter_side_is_a_crop_of_the_whole(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    found = shorter_side(image, 20)
    assert found.shape == (20, 20, 3)
    assert found.dtype == np.uint8
    # Edges aside it is what cropping first gives, moved by less than a pixel.
    whole = centre_crop(np.kron(image, np.ones((1, 1, 1), np.uint8)), 20, 1.0)
    if shape == (40, 40):
        np.testing.assert_array_equal(found, whole)
    same = shorter_side(image, 40)
    top, left = (shape[0] - 40) // 2, (shape[1] - 40) // 2
    np.testing.assert_array_equal(same, image[top : top + 40, left : left + 40])


def test_fine_stripes_become_grey():
    """Antialiasing: a filter that looks at four pixels only would see some of them."""
    image = np.zeros((128, 128, 3), np.uint8)
    image[:, ::2] = 200
    for found in (centre_crop(image, 12), shorter_side(image, 12)):
        assert np.abs(found[:, 1:-1].astype(int) - 100).max() <= 3


def test_other_shapes_and_types_are_refused():
    image = ramp(8, 8)
    for bad in (image[..., 0], image[..., :1], image.astype(np.float32), image[:0]):
        with pytest.raises(BadInput, match=r"u8\[H, W, 3\]"):
            centre_crop(bad, 4)
        with pytest.raises(BadInput, match=r"u8\[H, W, 3\]"):
            shorter_side(bad, 4)
    for fraction in (0, 1.1):
        with pytest.raises(BadInput, match="fraction"):
            centre_crop(image, 4, fraction)
