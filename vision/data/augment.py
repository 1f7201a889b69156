"""Augmentation on the device, of a whole batch at once, inside the jitted step.

    augmented = augment.make_augment(crop_padding=4, flip="alternating", cutout=8, mixup=0.2)
    images, labels = augmented(key, images, labels, rows, epochs)

Every augmentation is a pure function `(key, images, labels, its own settings) -> (images, labels)`
that works by itself too. A row's result depends on that row alone; `mixup` and `cutmix` add the row
in front of it.

Letters: B batch, H height, W width, C channels, K classes. `images` are float[B, H, W, C] in
[0, 1] and keep their type; `labels` are f32[B, K], distributions over the classes (one-hot at
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


def _draws(key, *shape):
    """f32[shape], uniform in [0, 1). An augmentation needs one call, as each takes its time to
    compile."""
    return jax.random.uniform(key, shape, jnp.float32)


def _below(draws, counts):
    """Uniform draws -> uniform i32 from 0 to counts - 1."""
    return jnp.floor(draws * counts).astype(jnp.int32)


# --------------------------------------------------------------------------------- moving the image


def random_crop(key, images, labels, padding: int):
    """Zero-pads every side and takes a crop of the old size at a place of its own for each image
    (Krizhevsky 2009): a translation by whole pixels.

    Args:
      key: a jax key.
      images, labels: the batch.
      padding: pixels a side; the shift is uniform over (2 * padding + 1)^2 places.
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
    epochs in a row show it once as it is and once mirrored.

    Args:
      images, labels: the batch.
      rows: u32[B], the row of the set. A hash of it says in which epochs it is mirrored: the even
        ones for about half of the rows, the odd ones for the others.
      epochs: u32[B], the epoch that each row is read in.
    """
    flip = (tree.mix(rows) + epochs) % 2 == 1
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images), labels


def random_affine(key, images, labels, degrees=None, fraction=None):
    """Turns each image about its centre and shifts it: one bilinear resampling, zeros outside.

    Args:
      key: a jax key.
      images, labels: the batch.
      degrees: the angle is uniform between -degrees and degrees; None turns nothing. May be traced.
      fraction: shifts are uniform between -fraction and fraction of the side, in both directions
        and not by whole pixels only; None shifts nothing. May be traced.
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
    """A rectangle of each image, resized to a square: the crop of Inception (Szegedy et al. 2015).

    Args:
      key: a jax key.
      images, labels: the batch.
      size: side of the result, [B, size, size, C].
      area: the rectangle's share of the image is uniform in this range.
      ratio: width by height is log-uniform in this range.

    The rectangle need not lie on whole pixels. Resized linearly, with antialiasing.
    """
    sides, places = _shapes(key, images.shape, area, ratio)
    corners = places * (jnp.float32(images.shape[1:3]) - sides)

    def crop(image, sides, corner):
        scale, shape = size / sides, (size, size, image.shape[-1])
        return jax.image.scale_and_translate(image, shape, (0, 1), scale, -corner * scale, "linear")

    return jax.vmap(crop)(images, sides, corners).astype(images.dtype), labels


def _shapes(key, shape, area, ratio):
    """Random rectangles within images of [B, H, W, C]: the first of ten draws that fits, or the
    first one cut to fit.

    Returns:
      (height and width f32[B, 2] in pixels, draws f32[B, 2] for their places).
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
    """bool[B, H, W, 1]: where the rectangles are that begin at `corners` i32[B, 2], perhaps outside
    of the image, and measure `sides` i32[B, 2] in y and x."""

    def within(axis):
        at = jnp.arange(shape[1 + axis]) - corners[:, axis, None]
        return (at >= 0) & (at < sides[:, axis, None])

    return within(0)[:, :, None, None] & within(1)[:, None, :, None]


def _centred(draws, shape, sides):
    """`_rectangles` around pixels drawn uniformly (f32[B, 2] draws): what sticks out is cut off."""
    return _rectangles(shape, _below(draws, jnp.float32(shape[1:3])) - sides // 2, sides)


def random_cutout(key, images, labels, size: int, fill=0.0):
    """Covers a square around a random pixel (cutout, DeVries & Taylor 2017); what of it sticks out
    of the image is cut off.

    Args:
      key: a jax key.
      images, labels: the batch.
      size: side of the square, in pixels.
      fill: a number, or one a channel: what the square shows. The paper's is the mean.
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
    """Covers a rectangle of some of the images with noise, uniform in [0, 1] (Zhong et al. 2020).

    Args:
      key: a jax key.
      images, labels: the batch.
      probability: of an image to lose a rectangle. May be traced.
      area: the rectangle's share of the image is uniform in this range, but for whole pixels.
      ratio: width by height is log-uniform in this range.
    """
    coin_key, shape_key, noise_key = jax.random.split(key, 3)
    sides, places = _shapes(shape_key, images.shape, area, ratio)
    sides = jnp.round(sides).astype(jnp.int32)
    corners = _below(places, jnp.int32(images.shape[1:3]) - sides + 1)
    erased = _rectangles(images.shape, corners, sides)
    erased &= _draws(coin_key, len(images), 1, 1, 1) < probability
    # Drawn flat: on CPU four times faster than with three channels at the end.
    noise = _draws(noise_key, len(images), images[0].size).reshape(images.shape)
    noise = noise.astype(images.dtype)
    return jnp.where(erased, noise, images), labels


# ------------------------------------------------------------------------------------ mixing images


def _symmetric_beta(draws, alpha):
    """f32[B, 2] uniform draws -> f32[B] from Beta(alpha, alpha), without the loop of a sampler that
    rejects: exactly (1 + t / sqrt(2 alpha + t^2)) / 2, where t has Student's distribution with
    2 alpha degrees of freedom, which is radius times cosine of two draws (Devroye 1996)."""
    log = jnp.log(draws[:, 0]) / alpha
    cos = jnp.cos(2 * jnp.pi * draws[:, 1])
    square = -jnp.expm1(log) * cos**2
    return (1 + jnp.sign(cos) * jnp.sqrt(square / (square + jnp.exp(log)))) / 2


def _mixed(x, share):
    """Each row by its share, and the row in front of it by the rest. The order of a batch is
    random, so any pairing would do; this one sends a single row from device to device."""
    share = share.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (share * x + (1 - share) * jnp.roll(x, 1, axis=0)).astype(x.dtype)


def mixup(key, images, labels, alpha):
    """Weighted means of each image with another one, and of their labels (Zhang et al. 2018).

    Args:
      key: a jax key.
      images, labels: the batch.
      alpha: an image's weight is drawn from Beta(alpha, alpha), for each by itself. May be traced.
    """
    share = _symmetric_beta(_draws(key, len(images), 2), alpha)
    return _mixed(images, share[:, None, None, None]), _mixed(labels, share[:, None])


def cutmix(key, images, labels, alpha):
    """Shows in a rectangle of each image that part of another one (Yun et al. 2019). The labels are
    mixed by the areas that are seen.

    Args:
      key: a jax key.
      images, labels: the batch.
      alpha: the share of the image outside of the rectangle is drawn from Beta(alpha, alpha); it is
        more where the rectangle sticks out. May be traced.
    """
    draws = _draws(key, len(images), 4)
    share = _symmetric_beta(draws[:, :2], alpha)[:, None]
    sides = jnp.round(jnp.sqrt(1 - share) * jnp.float32(images.shape[1:3])).astype(jnp.int32)
    kept = ~_centred(draws[:, 2:], images.shape, sides)
    return _mixed(images, kept), _mixed(labels, kept.mean(axis=(1, 2), dtype=jnp.float32))


def mixing(key, images, labels, mixup_alpha=None, cutmix_alpha=None):
    """`mixup` or `cutmix`, whichever has an alpha; if both have, each image takes one by a coin."""
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

    They are applied in the order of the arguments. Each has draws of its own: switching one on
    changes nothing in the others'. Floats may be traced, `None` is none.

    Args:
      mean: of the images, a number or one a channel: what `cutout` shows.
      resized_crop: side of the result of `random_resized_crop`.
      resized_crop_area: its range of areas.
      crop_padding: see `random_crop`; 0 is none.
      flip: "random" is `random_flip`, "alternating" is `alternating_flip`.
      rotation: degrees of `random_affine`.
      translation: fraction of `random_affine`.
      rand_augment_layers: operations for each image, see `rand_augment`; 0 is none.
      rand_augment_magnitude: 0 to 30.
      cutout: side of `random_cutout` in pixels; 0 is none.
      erasing: probability of `random_erasing`.
      mixup: alpha of `mixup`.
      cutmix: alpha of `cutmix`. With both, each image takes one of the two by a coin.

    Raises:
      BadInput: for a number out of its range.
    """
    for name, value, low, high in (
        ("resized_crop", resized_crop, 1, float("inf")),
        ("crop_padding", crop_padding, 0, float("inf")),
        ("rotation", rotation, 0, 180),
        ("translation", translation, 0, 1),
        ("rand_augment_layers", rand_augment_layers, 0, float("inf")),
        ("rand_augment_magnitude", rand_augment_magnitude, 0, 30),
        ("cutout", cutout, 0, float("inf")),
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
        f"config.augment.resized_crop_area: {resized_crop_area} is no range within (0, 1]",
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
