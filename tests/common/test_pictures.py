"""Tiles show every image, and a confusion matrix the share of each row."""

import numpy as np
import pytest

from common import pictures


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_image_has_its_tile(channels):
    images = np.zeros((5, 8, 8, channels), np.uint8)
    for k in range(5):
        images[k, ..., : min(channels, 3)] = 40 * k + 20
    images[..., 3:] = 255
    page = pictures.tiles(images, ["a very long caption indeed, longer than its image", "", *"abc"])
    assert page.shape == (2 * 118 + 6, 3 * 102 + 6, 3)
    middles = [page[6 + 48 + i // 3 * 118, 6 + 48 + i % 3 * 102, 0] for i in range(5)]
    assert middles == [20, 60, 100, 140, 180]
    assert (page[-60:, -60:] == 255).all()  # no sixth


def test_large_images_become_small_ones_and_long_captions_are_cut():
    images = np.zeros((2, 600, 1200, 3), np.uint8)
    images[:, :, 600:] = 200
    page = pictures.tiles(images, ["x" * 10_000, ""])
    assert page.shape == (192 + 22 + 6, 2 * 390 + 6, 3)
    assert page[100, [50, 300, 450, 700], 0].tolist() == [0, 200, 0, 200]


@pytest.mark.parametrize("count", [2, 10, 60, 1000])
def test_a_cell_is_as_dark_as_its_share_of_the_row(count):
    matrix = np.zeros((count, count))
    matrix[0, 0], matrix[0, 1], matrix[1, 0] = 3, 1, 2
    page = pictures.confusion(matrix, [f"klasse {k}" for k in range(count)])
    cell = max(1, min(pictures.CELL, pictures.MOST_CELLS // count))
    top, left = page.shape[0] - 8 - count * cell, page.shape[0] - 8 - count * cell
    corner = lambda i, j: page[top + i * cell, left + j * cell].tolist()
    assert corner(1, 0) == [8, 48, 107]
    assert corner(1, 1) == [255, 255, 255]
    assert corner(0, 0) == [255 - round(0.75 * (255 - c)) for c in (8, 48, 107)]


def test_of_thousands_of_classes_a_cell_stands_for_several():
    matrix = np.zeros((2401, 2401))
    matrix[3, 5], matrix[4, 2400], matrix[2400, 2400] = 3, 1, 7  # three together: 801 cells
    page = pictures.confusion(matrix, [""] * 2401)
    at = page.shape[0] - 8 - 801
    assert page[at + 1, at + 1].tolist() == [255 - round(0.75 * (255 - c)) for c in (8, 48, 107)]
    assert page[at + 800, at + 800].tolist() == [8, 48, 107]
    assert (page[at:, at:] < 255).any(axis=2).sum() == 3
