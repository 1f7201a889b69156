"""Augmentation of a whole batch at once, on the device, inside the jitted step.

    augmented = augment.make_augment(crop_padding=4, flip="alternating", cutout=8, mixup=0.2)
    images, labels = augmented(key, images, labels, rows, epochs)

Every augmentation is a pure function `(key, images, labels, its own settings) -> (images, labels)`
that also works standalone. A row's result depends on that row alone; with `mixup` and `cutmix`,
also on the row before it.

Letters: B batch, H height, W width, C channels, K classes. `images` are float[B, H, W, C] in
[0, 1] and keep their dtype; `labels` are f32[B, K], distributions over the classes (one-hot at
first), so that mixing is exact.
"""

import zlib
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from common import tree
from common.errors import require
from vision.data.rand_augment import affine, rand_augment, rotations

MOST_PIXELS = 1 << 15  # of a side, a margin or a square


def _draws(key, *shape):
    """f32[shape], uniform in [0, 1). One call per augmentation is enough, and every call takes time
    to compile."""
    return jax.random.uniform(key, shape, jnp.float32)


def _below(draws, counts):
    """Uniform draws -> uniform i32 from 0 to counts - 1."""
    return jnp.floor(draws * counts).astype(jnp.int32)


# --------------------------------------------------------------------------------- moving the image


def random_crop(key, images, labels, padding: int):
    """Zero-pads every side and crops each image to the old size at its own random place
    (Krizhevsky 2009): a translation by whole pixels.

    Args:
      key: a jax key.
      images, labels: the batch.
      padding: pixels per side; the shift is uniform over (2 * padding + 1)^2 places.
    """
    batch, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = _below(_draws(key, batch, 2), 2 * padding + 1)
    crop = lambda image, at: jax.lax.dynamic_slice(
        image, (*at, jnp.int32(0)), (height, width, channels)
    )
    return jax.vmap(crop)(padded, corners), labels


def random_flip(key, images, labels):
    """Mirrors each image left to right with probability one half."""
    flip = _draws(key, len(images), 1, 1, 1) < 0.5
    return jnp.where(flip, images[:, :, ::-1], images), labels


def alternating_flip(images, labels, rows, epochs):
    """Mirrors each image left to right in every second epoch (airbench, Jordan 2024): any two
    consecutive epochs show it once unchanged and once mirrored.

    Args:
      images, labels: the batch.
      rows: u32[B], each image's row in the set. Its hash selects the epochs in which the image is
        mirrored: the even ones for about half of the rows, the odd ones for the others.
      epochs: u32[B], the epoch in which each row is read.
    """
    flip = (tree.mix(rows) + epochs) % 2 == 1
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images), labels


def random_affine(key, images, labels, degrees=None, fraction=None):
    """Rotates each image about its centre and shifts it: one bilinear resampling, zeros outside.

    Args:
      key: a jax key.
      images, labels: the batch.
      degrees: the angle is uniform between -degrees and degrees; None is none. May be traced.
      fraction: shifts are uniform between -fraction and fraction of the side, in both directions
        and not only by whole pixels; None is none. May be traced.
    """
    batch, height, width, _ = images.shape
    draws = 2 * _draws(key, batch, 3) - 1
    angles, shifts = jnp.zeros(batch), jnp.zeros((batch, 2))
    if degrees is not None:
        angles = degrees * draws[:, 0]
    if fraction is not None:
        shifts = fraction * draws[:, 1:] * jnp.float32((height, width))
    return affine(images, rotations(angles), shifts), labels


def random_resized_crop(
    key,
    images,
    labels,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
):
    """Resizes a random rectangle of each image to a square, as Inception (Szegedy et al. 2015).

    Args:
      key: a jax key.
      images, labels: the batch.
      size: side of the result, [B, size, size, C].
      area: the rectangle's share of the image is uniform in this range.
      ratio: width / height is log-uniform in this range.

    The rectangle need not lie on whole pixels. Resizing is linear, with antialiasing.
    """
    sides, places = _shapes(key, images.shape, area, ratio)
    corners = places * (jnp.float32(images.shape[1:3]) - sides)

    def crop(image, sides, corner):
        scale, shape = size / sides, (size, size, image.shape[-1])
        return jax.image.scale_and_translate(image, shape, (0, 1), scale, -corner * scale, "linear")

    return jax.vmap(crop)(images, sides, corners).astype(images.dtype), labels


def _shapes(key, shape, area, ratio):
    """Random rectangles within images of [B, H, W, C]: the first of ten draws that fits, or the
    first draw cut to fit.

    Returns:
      (height and width f32[B, 2] in pixels, uniform draws f32[B, 2] for their places).
    """
    limits = jnp.float32(shape[1:3])
    draws = _draws(key, shape[0], 10, 4)
    areas = (area[0] + (area[1] - area[0]) * draws[..., 0]) * limits.prod()
    ratios = ratio[0] * (ratio[1] / ratio[0]) ** draws[..., 1]
    sides = jnp.sqrt(jnp.stack([areas / ratios, areas * ratios], axis=-1))
    first = jnp.argmax((sides <= limits).all(axis=-1), axis=1)[:, None, None]  # 0 if none fits
    sides = jnp.take_along_axis(sides, first, axis=1)[:, 0]
    return jnp.minimum(sides, limits), draws[:, 0, 2:]


# ----------------------------------------------------------------------------- covering parts of it


def _rectangles(shape, corners, sides):
    """bool[B, H, W, 1], True inside rectangles with top left `corners` i32[B, 2], possibly outside
    the image, and `sides` i32[B, 2] in y and x."""

    def within(axis):
        at = jnp.arange(shape[1 + axis]) - corners[:, axis, None]
        return (at >= 0) & (at < sides[:, axis, None])

    return within(0)[:, :, None, None] & within(1)[:, None, :, None]


def _centred(draws, shape, sides):
    """`_rectangles` around pixels drawn uniformly (f32[B, 2] draws), clipped to the image."""
    return _rectangles(shape, _below(draws, jnp.float32(shape[1:3])) - sides // 2, sides)


def random_cutout(key, images, labels, size: int, fill=0.0):
    """Covers a square around a random pixel (cutout, DeVries & Taylor 2017), clipped to the image.

    Args:
      key: a jax key.
      images, labels: the batch.
      size: side of the square, in pixels.
      fill: value of the square, a number or one per channel. The paper's is the mean.
    """
    sides = jnp.full((len(images), 2), size, jnp.int32)
    square = _centred(_draws(key, *sides.shape), images.shape, sides)
    return jnp.where(square, jnp.asarray(fill, images.dtype), images), labels


def random_erasing(
    key,
    images,
    labels,
    probability,
    area: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
):
    """Covers a rectangle of some images with noise, uniform in [0, 1] (Zhong et al. 2020).

    Args:
      key: a jax key.
      images, labels: the batch.
      probability: probability that an image loses a rectangle. May be traced.
      area: the rectangle's share of the image is uniform in this range, up to rounding to pixels.
      ratio: width / height is log-uniform in this range.
    """
    coin_key, shape_key, noise_key = jax.random.split(key, 3)
    sides, places = _shapes(shape_key, images.shape, area, ratio)
    sides = jnp.round(sides).astype(jnp.int32)
    corners = _below(places, jnp.int32(images.shape[1:3]) - sides + 1)
    erased = _rectangles(images.shape, corners, sides)
    erased &= _draws(coin_key, len(images), 1, 1, 1) < probability
    # Drawn flat: on CPU four times faster than with the three channels last.
    noise = _draws(noise_key, len(images), images[0].size).reshape(images.shape)
    noise = noise.astype(images.dtype)
    return jnp.where(erased, noise, images), labels


# ------------------------------------------------------------------------------------ mixing images


def _symmetric_beta(draws, alpha):
    """f32[B, 2] uniform draws -> f32[B] from Beta(alpha, alpha), without a rejection sampler's
    loop: exactly (1 + t / sqrt(2 alpha + t^2)) / 2, where t has Student's distribution with
    2 alpha degrees of freedom, the radius times the cosine of two draws (Devroye 1996)."""
    log = jnp.log(draws[:, 0]) / alpha
    cos = jnp.cos(2 * jnp.pi * draws[:, 1])
    square = -jnp.expm1(log) * cos**2
    return (1 + jnp.sign(cos) * jnp.sqrt(square / (square + jnp.exp(log)))) / 2


def _mixed(x, share):
    """Each row weighted by its share, plus the row before it by the remainder. Batch order is
    random, so any pairing would do; this one sends a single row from device to device."""
    share = share.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (share * x + (1 - share) * jnp.roll(x, 1, axis=0)).astype(x.dtype)


def mixup(key, images, labels, alpha):
    """Weighted means of each image and another, and of their labels (Zhang et al. 2018).

    Args:
      key: a jax key.
      images, labels: the batch.
      alpha: each image's weight is drawn separately from Beta(alpha, alpha). May be traced.
    """
    share = _symmetric_beta(_draws(key, len(images), 2), alpha)
    return _mixed(images, share[:, None, None, None]), _mixed(labels, share[:, None])


def cutmix(key, images, labels, alpha):
    """Replaces a rectangle of each image by that part of another one (Yun et al. 2019). Labels are
    mixed by visible area.

    Args:
      key: a jax key.
      images, labels: the batch.
      alpha: the share of the image outside the rectangle is drawn from Beta(alpha, alpha); it is
        larger where the rectangle is clipped. May be traced.
    """
    draws = _draws(key, len(images), 4)
    share = _symmetric_beta(draws[:, :2], alpha)[:, None]
    sides = jnp.round(jnp.sqrt(1 - share) * jnp.float32(images.shape[1:3])).astype(jnp.int32)
    kept = ~_centred(draws[:, 2:], images.shape, sides)
    return _mixed(images, kept), _mixed(labels, kept.mean(axis=(1, 2), dtype=jnp.float32))


def mixing(key, images, labels, mixup_alpha=None, cutmix_alpha=None):
    """`mixup` or `cutmix`, whichever has an alpha; with both, a coin decides for each image."""
    coin_key, mixup_key, cutmix_key = jax.random.split(key, 3)
    if cutmix_alpha is None:
        return mixup(mixup_key, images, labels, mixup_alpha)
    if mixup_alpha is None:
        return cutmix(cutmix_key, images, labels, cutmix_alpha)
    images_up, labels_up = mixup(mixup_key, images, labels, mixup_alpha)
    images_cut, labels_cut = cutmix(cutmix_key, images, labels, cutmix_alpha)
    coins = _draws(coin_key, len(images), 1) < 0.5
    images = jnp.where(coins[..., None, None], images_up, images_cut)
    return images, jnp.where(coins, labels_up, labels_cut)


# -------------------------------------------------------------------------------------- the section


def make_augment(
    mean=0.0,
    *,
    resized_crop: int | None = None,
    resized_crop_area: tuple[float, float] = (0.08, 1.0),
    crop_padding: int = 0,
    flip: Literal["none", "random", "alternating"] = "none",
    rotation: float | None = None,
    translation: float | None = None,
    rand_augment_layers: int = 0,
    rand_augment_magnitude: float = 10.0,
    cutout: int = 0,
    erasing: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
) -> Callable:
    """The section `augment`: (key, images, labels, rows, epochs) -> (images, labels).

    Augmentations are applied in the order of the arguments. Each has its own random draws: enabling
    one does not change the others'. Floats may be traced.

    Args:
      mean: mean of the images, a number or one per channel: the value of `cutout` squares.
      resized_crop: side in pixels of the square to which a random rectangle of each image is
        resized (Szegedy et al. 2015); evaluation crops its centre square. None is none.
      resized_crop_area: range of that rectangle's share of the image.
      crop_padding: pixels of zero padding per side before a random crop to the old size; 0 is none.
      flip: mirrors images left to right: with probability one half ("random"), or in every second
        epoch ("alternating", Jordan 2024).
      rotation: largest angle, in degrees, of a random rotation about the centre; None is none.
      translation: largest random shift in each direction, as a fraction of the side; None is none.
      rand_augment_layers: number of RandAugment operations on each image (Cubuk et al. 2020); 0 is
        none.
      rand_augment_magnitude: strength of these operations, 0 to 30.
      cutout: side in pixels of a square at a random place that is filled with the mean (DeVries &
        Taylor 2017); 0 is none.
      erasing: probability of filling a random rectangle with noise (Zhong et al. 2020); None is
        none.
      mixup: alpha of mixup, which averages each image with another, and their labels, with a weight
        from Beta(alpha, alpha) (Zhang et al. 2018); None is none.
      cutmix: alpha of CutMix, which replaces a rectangle of each image by that of another (Yun et
        al. 2019); None is none. With `mixup` as well, a coin decides for each image.

    Raises:
      BadInput: if a number is out of range.
    """
    for name, value, low, high in (
        ("resized_crop", resized_crop, 1, MOST_PIXELS),
        ("crop_padding", crop_padding, 0, MOST_PIXELS),
        ("rotation", rotation, 0, 180),
        ("translation", translation, 0, 1),
        ("rand_augment_layers", rand_augment_layers, 0, 100),
        ("rand_augment_magnitude", rand_augment_magnitude, 0, 30),
        ("cutout", cutout, 0, MOST_PIXELS),
        ("erasing", erasing, 0, 1),
        ("mixup", mixup, 1e-3, float("inf")),
        ("cutmix", cutmix, 1e-3, float("inf")),
    ):
        if isinstance(value, int | float):  # and not traced
            require(
                low <= value <= high, f"config.augment.{name}: {value} is not in [{low}, {high}]"
            )
    low, high = resized_crop_area
    require(
        0 < low <= high <= 1,
        f"config.augment.resized_crop_area: {resized_crop_area} is not a range within (0, 1]",
    )

    def augment(key, images, labels, rows, epochs):
        own = lambda purpose: jax.random.fold_in(key, zlib.crc32(purpose.encode()))
        batch = images, labels
        if resized_crop is not None:
            batch = random_resized_crop(
                own("resized_crop"), *batch, size=resized_crop, area=resized_crop_area
            )
        if crop_padding:
            batch = random_crop(own("crop"), *batch, padding=crop_padding)
        if flip == "random":
            batch = random_flip(own("flip"), *batch)
        if flip == "alternating":
            batch = alternating_flip(*batch, rows, epochs)
        if rotation is not None or translation is not None:
            batch = random_affine(own("affine"), *batch, degrees=rotation, fraction=translation)
        if rand_augment_layers:
            batch = rand_augment(
                own("rand_augment"), *batch, rand_augment_layers, rand_augment_magnitude
            )
        if cutout:
            batch = random_cutout(own("cutout"), *batch, size=cutout, fill=mean)
        if erasing is not None:
            batch = random_erasing(own("erasing"), *batch, probability=erasing)
        if mixup is not None or cutmix is not None:
            batch = mixing(own("mixing"), *batch, mixup, cutmix)
        return batch

    return augment
