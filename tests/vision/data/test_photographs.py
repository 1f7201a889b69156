"""Crops and sizes of photographs, against numbers that can be told without a filter."""

import numpy as np
import pytest

from common.errors import BadInput
from vision.data.photographs import centre_crop, shorter_side


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def ramp(height: int, width: int) -> np.ndarray:
    """Channels that grow with the row and the column, and a constant."""
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns, np.full_like(rows, 7)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (96, 96)])
def test_what_needs_no_resizing_is_cut_out(shape):
    image = noise(*shape)
    for found, side in ((centre_crop(image, 84), 84), (shorter_side(image, 96), 96)):
        top, left = ((length - side) // 2 for length in shape)
        np.testing.assert_array_equal(found, image[top : top + side, left : left + side])


@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (96, 96)])
@pytest.mark.parametrize("size", [24, 60, 144])
def test_a_ramp_stays_one_and_in_its_place(shape, size):
    image = ramp(*shape)
    for found, side in ((centre_crop(image, size), 84), (shorter_side(image, size), 96)):
        assert found.shape == (size, size, 3)
        assert found.dtype == np.uint8
        assert (found[..., 2] == 7).all()
        for axis, length in enumerate(shape):
            places = (length - side) / 2 + side / size * (np.arange(size) + 0.5) - 0.5
            lines = np.moveaxis(found[..., axis], axis, -1)
            assert np.abs(lines - places)[3:-3, 3:-3].max() < 0.51  # what rounding does


def test_both_are_one_where_the_whole_is_wanted():
    image = noise(40, 40)
    np.testing.assert_array_equal(shorter_side(image, 20), centre_crop(image, 20, 1.0))


def test_fine_stripes_become_grey():
    """Antialiasing: a filter that looks at four pixels alone would see some of them."""
    image = np.zeros((128, 128, 3), np.uint8)
    image[:, ::2] = 200
    for found in (centre_crop(image, 12), shorter_side(image, 12)):
        assert np.abs(found[:, 1:-1].astype(int) - 100).max() <= 3


def test_other_shapes_and_types_are_refused():
    image = noise(8, 8)
    for bad in (image[..., 0], image[..., :1], image.astype(np.float32), image[:0]):
        with pytest.raises(BadInput, match=r"u8\[H, W, 3\]"):
            centre_crop(bad, 4)
        with pytest.raises(BadInput, match=r"u8\[H, W, 3\]"):
            shorter_side(bad, 4)
    for fraction in (0, 1.1):
        with pytest.raises(BadInput, match="fraction"):
            centre_crop(image, 4, fraction)
