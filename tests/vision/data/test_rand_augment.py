"""RandAugment against Pillow, operation by operation; affine resampling against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from vision.data import rand_augment as module
from vision.data.rand_augment import OPERATIONS, affine, rotations, transform

H, W = 28, 32
KEY = jax.random.key(0)


def pictures(count: int, channels: int) -> np.ndarray:
    """u8[count, H, W, C] of blurred noise that does not reach all levels: something to stretch."""
    noise = np.random.default_rng(0).random((count, H, W, channels))
    smooth = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 0))
    low, high = smooth.min(axis=(1, 2), keepdims=True), smooth.max(axis=(1, 2), keepdims=True)
    return np.round(20 + 200 * (smooth - low) / (high - low)).astype(np.uint8)


def by_pillow(image: np.ndarray, name: str, a: float) -> np.ndarray:
    image = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)

    def moved(*coefficients):
        """The place (x, y, 1) times two rows of coefficients, in pixels from the upper left."""
        return image.transform(image.size, Image.AFFINE, coefficients, Image.BILINEAR)

    shear, share = 0.3 * a, 150 / 331 * a
    made = {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "rotate": lambda: image.rotate(30 * a, Image.BILINEAR),
        "solarize": lambda: ImageOps.solarize(image, 256 * (1 - abs(a))),
        "color": lambda: ImageEnhance.Color(image).enhance(1 + 0.9 * a),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * abs(a))),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(1 + 0.9 * a),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(1 + 0.9 * a),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * a),
        "shear_x": lambda: moved(1, shear, -shear * H / 2, 0, 1, 0),
        "shear_y": lambda: moved(1, 0, 0, shear, 1, -shear * W / 2),
        "translate_x": lambda: moved(1, 0, share * W, 0, 1, 0),
        "translate_y": lambda: moved(1, 0, 0, 0, 1, share * H),
    }[name]()
    return np.asarray(made).reshape(H, W, -1)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_is_pillows(channels):
    amounts = np.float32([-0.9, -0.3, 0, 0.2, 1])
    count = len(OPERATIONS) * len(amounts)
    images = pictures(count, channels)
    operations = np.repeat(np.arange(len(OPERATIONS)), len(amounts))
    amounts = np.tile(amounts, len(OPERATIONS))
    run = jax.jit(transform)
    found = 255 * np.asarray(run(jnp.float32(images) / 255, operations, amounts))
    kept = np.asarray(run(jnp.ones((count, H, W, 1)), operations, amounts))
    for image, operation, amount, result, inside in zip(
        images, operations, amounts, found, kept, strict=True
    ):
        name = OPERATIONS[operation]
        if amount == 0 and name not in ("autocontrast", "equalize"):
            np.testing.assert_allclose(result, image, atol=1e-4, err_msg=name)
        expected = by_pillow(image, name, float(amount)).astype(float)
        if name.startswith(("rotate", "shear", "translate")):
            # Pillow ends an image at its edge, where ours fades within a pixel.
            inside = (inside > 0.999) & (np.minimum(result, expected) > 0)
            assert inside.mean() > 0.25
            result, expected = result * inside, expected * inside
        whole = name in ("equalize", "solarize", "posterize")
        tolerance = 1e-3 if whole else 1.5  # Pillow cuts fractions of a level off, ours keeps them
        np.testing.assert_allclose(result, expected, atol=tolerance, err_msg=f"{name} {amount}")
        nothing = amount == 0 or name == "identity" or (name, channels) == ("color", 1)
        assert nothing or (expected != image).any()


def test_operations_and_signs_are_uniform_and_each_layer_has_its_own(monkeypatch):
    drawn = []

    def recorded(images, operations, amounts):
        drawn.append((operations, amounts))
        return images + 1

    monkeypatch.setattr(module, "transform", recorded)
    given, labels = np.zeros((2800, 2, 2, 1), np.float32), np.ones((2800, 2), np.float32)
    images, same = module.rand_augment(KEY, given, labels, layers=2, magnitude=24.0)
    assert (np.asarray(images) == 2).all()
    assert same is labels
    (first, first_amounts), (second, second_amounts) = jax.tree.map(np.asarray, drawn)
    counts = np.zeros((14, 2, 14, 2))
    sign = lambda amounts: np.int32(amounts > 0)
    np.add.at(counts, (first, sign(first_amounts), second, sign(second_amounts)), 1)
    np.testing.assert_allclose(np.abs([first_amounts, second_amounts]), 0.8)
    for pair in ((0, 1), (2, 3), (0, 2), (1, 3)):
        table = counts.sum(axis=tuple({0, 1, 2, 3} - set(pair)))
        assert stats.chisquare(table.ravel()).pvalue > 1e-3


@pytest.mark.slow
def test_layers_change_nearly_every_image_and_stay_in_range():
    images = np.float32(pictures(40, 1)) / 255
    found, _ = jax.jit(lambda x: module.rand_augment(KEY, x, x, layers=2, magnitude=20.0))(images)
    found = np.asarray(found)
    assert (found != images).any(axis=(1, 2, 3)).mean() > 0.8
    assert found.min() >= 0
    assert found.max() <= 1


# ------------------------------------------------------------------------------------------- affine


def test_affine_agrees_with_scipy():
    rng = np.random.default_rng(0)
    images = rng.random((6, 9, 12, 2)).astype(np.float32)
    matrices = (np.eye(2) + rng.normal(0, 0.4, (6, 2, 2))).astype(np.float32)
    shifts = rng.normal(0, 2, (6, 2)).astype(np.float32)
    found = jax.jit(affine)(images, matrices, shifts)
    centre = np.array([4, 5.5])
    for i in range(6):
        for channel in range(2):
            expected = ndimage.affine_transform(
                images[i, ..., channel],
                matrices[i],
                centre + shifts[i] - matrices[i] @ centre,
                order=1,
                mode="grid-constant",
            )
            np.testing.assert_allclose(found[i, ..., channel], expected, atol=1e-5)


def test_quarter_turns_and_the_identity():
    image = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    images = jnp.broadcast_to(image, (5, 8, 8, 3))
    turned = jax.jit(lambda x, d: affine(x, rotations(d), jnp.zeros((5, 2))))(
        images, jnp.float32([0, 90, 180, 270, -90])
    )
    np.testing.assert_array_equal(turned[0], image)
    for result, quarters in zip(turned, (0, 1, 2, 3, -1), strict=True):
        np.testing.assert_allclose(result, np.rot90(image, quarters), atol=1e-5)
