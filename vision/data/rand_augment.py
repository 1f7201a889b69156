"""RandAugment (Cubuk et al. 2020) of a whole batch at once, and its affine resampling.

    images, labels = rand_augment(key, images, labels, layers=2, magnitude=10.0)
    images = affine(images, matrices, shifts)

Every operation is computed for the whole batch and each image selects its own, since a batch cannot
branch. All operations that move pixels are one resampling, with a matrix per image.

Letters: B batch, H height, W width, C channels, K classes.
"""

import jax
import jax.numpy as jnp

# The paper's fourteen, in its order.
OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "rotate",
    "solarize",
    "color",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)


def affine(images, matrices, shifts):
    """Bilinear affine resampling, with zeros outside the image.

    The result at (y, x), in pixels from the centre with y pointing down, is the image at
    `matrix @ (y, x) + shift`. The identity returns exactly the same values.

    Args:
      images: float[B, H, W, C].
      matrices: f32[B, 2, 2].
      shifts: f32[B, 2], in pixels.
    """
    _, height, width, _ = images.shape
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    y = jnp.arange(height, dtype=dtype)[:, None] - (height - 1) / 2
    x = jnp.arange(width, dtype=dtype) - (width - 1) / 2
    matrices, shifts = matrices.astype(dtype)[..., None, None], shifts.astype(dtype)
    # A border of zeros, onto which positions further out are clipped.
    padded = jnp.pad(images.astype(dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))

    def along(axis, size):
        """(the preceding padded pixel i32[B, H, W], the distance past it [B, H, W, 1])."""
        at = matrices[:, axis, 0] * y + matrices[:, axis, 1] * x + shifts[:, axis, None, None]
        at = jnp.clip(at + (size + 1) / 2, 0, size + 1)
        front = jnp.minimum(jnp.floor(at), size)
        return front.astype(jnp.int32), (at - front)[..., None]

    top, down = along(0, height)
    left, right = along(1, width)
    pixels = lambda y, x: jax.vmap(lambda image, y, x: image[y, x])(padded, y, x)
    above = pixels(top, left) * (1 - right) + pixels(top, left + 1) * right
    below = pixels(top + 1, left) * (1 - right) + pixels(top + 1, left + 1) * right
    return (above * (1 - down) + below * down).astype(images.dtype)


def rotations(degrees):
    """f32[B] angles, counter-clockwise as displayed -> matrices f32[B, 2, 2] for `affine`."""
    angles = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.stack([cos, sin, -sin, cos], axis=-1).reshape(-1, 2, 2)


def rand_augment(key, images, labels, layers: int = 2, magnitude=10.0):
    """Applies a series of operations to each image, each drawn uniformly from `OPERATIONS`.

    Args:
      key: a jax key.
      images: float[B, H, W, C] in [0, 1]; C is 1 or 3.
      labels: f32[B, K], returned unchanged.
      layers: N of the paper, the number of operations per image.
      magnitude: M of the paper, 0 to 30: the amounts passed to `transform` are ±magnitude / 30 with
        a random sign. May be traced.
    """
    draws = jax.random.uniform(key, (layers, 2, len(images)), jnp.float32)
    for operations, signs in draws:
        operations = jnp.floor(operations * len(OPERATIONS)).astype(jnp.int32)
        images = transform(images, operations, jnp.where(signs < 0.5, -1, 1) * magnitude / 30)
    return images, labels


def transform(images, operations, amounts):
    """Applies one operation to each image, more strongly for larger amounts; 0 is none.

    The scale is torchvision's, where every operation grows with the magnitude; in the paper's code
    a larger magnitude solarizes and posterizes less. At amount a:
    rotate by 30a degrees; shear by 0.3a about the centre; translate by 150/331 a of the side, all
    with zeros outside; color, contrast, brightness and sharpness by the factor 1 + 0.9a; solarize
    (invert) pixels at 1 - |a| or brighter; posterize to 8 - round(4|a|) bits. Autocontrast and
    equalize have no amount. Only solarize, posterize and equalize, which act on levels, round
    pixels to the 256 levels. Color leaves C = 1 unchanged.

    Args:
      images: float[B, H, W, C] in [0, 1]; C is 1 or 3.
      operations: i32[B], indices into `OPERATIONS`.
      amounts: f32[B] in [-1, 1].
    """
    dtype = images.dtype
    images = images.astype(jnp.promote_types(dtype, jnp.float32))
    amount = lambda name: jnp.where(operations == OPERATIONS.index(name), amounts, 0.0)
    zero, sides = jnp.zeros_like(amounts), (images.shape[1], images.shape[2])
    matrices = rotations(30 * amount("rotate"))
    shear = jnp.stack([zero, amount("shear_y"), amount("shear_x"), zero], axis=-1)
    shifts = jnp.stack([amount("translate_y"), amount("translate_x")], axis=-1)
    images = affine(
        images, matrices + 0.3 * shear.reshape(-1, 2, 2), 150 / 331 * shifts * jnp.float32(sides)
    )

    amounts = amounts.astype(images.dtype)[:, None, None, None]
    levels, size = jnp.round(255 * images), jnp.abs(amounts)
    grey = _grey(images)
    away_from = lambda x: jnp.clip(x + (1 + 0.9 * amounts) * (images - x), 0, 1)
    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    low, high = jnp.where(high > low, low, 0), jnp.where(high > low, high, 1)
    step = jnp.exp2(jnp.round(4 * size))
    changed = {
        "autocontrast": (images - low) / (high - low),
        "equalize": _equalized(levels) / 255,
        "solarize": jnp.where(levels >= 256 * (1 - size), 255 - levels, levels) / 255,
        "color": away_from(grey),
        "posterize": jnp.floor(levels / step) * step / 255,
        "contrast": away_from(grey.mean(axis=(1, 2), keepdims=True)),
        "brightness": away_from(0.0),
        "sharpness": away_from(_smooth(images)),
    }
    for name, result in changed.items():
        chosen = operations == OPERATIONS.index(name)
        images = jnp.where(chosen[:, None, None, None], result, images)
    return images.astype(dtype)


def _grey(images):
    """[B, H, W, C] -> the luminance [B, H, W, 1] (ITU-R 601)."""
    if images.shape[-1] == 1:
        return images
    red, green, blue = jnp.split(images, 3, axis=-1)  # a sum over the axis is slower on CPU
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _smooth(images):
    """Mean of each pixel (weight 5) and its eight neighbours (weight 1); the border is kept."""
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = (box + 4 * images[:, 1:-1, 1:-1]) / 13
    return images.at[:, 1:-1, 1:-1].set(inner)


def _equalized(levels):
    """Integer levels 0 to 255, [B, H, W, C] -> levels with as even a histogram as a table from old
    to new levels allows, per channel; in integer arithmetic, as in PIL."""

    def equalize(levels):  # i32[H, W]
        counts = jnp.zeros(256, jnp.int32).at[levels].add(1)
        step = (levels.size - counts[levels.max()]) // 255
        below = jnp.cumsum(counts) - counts
        table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table, jnp.arange(256))[levels]

    by_channel = jax.vmap(jax.vmap(equalize, in_axes=-1, out_axes=-1))
    return by_channel(levels.astype(jnp.int32)).astype(levels.dtype)
