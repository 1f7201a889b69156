"""Augmentations by their statistics, and by what they leave alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import stats

from common.errors import BadInput
from vision.data import augment
from vision.data.augment import make_augment
from vision.data.views import centre_crop, normalise, weighted_views

B, H, W = 2000, 7, 6
IMAGES = np.float32(np.random.default_rng(0).integers(1, 255, (B, H, W, 1)) / 255)
LABELS = np.eye(2, dtype=np.float32)[np.arange(B) % 2]
KEY = jax.random.key(0)
ROWS = np.arange(B, dtype=np.uint32)
ALL = {
    "crop_padding": 1,
    "flip": "alternating",
    "rotation": 30.0,
    "translation": 0.1,
    "cutout": 3,
    "erasing": 0.5,
    "mixup": 0.4,
    "cutmix": 1.0,
}
FEW = {"crop_padding": 1, "flip": "random", "cutout": 3, "mixup": 1.0}


@functools.cache
def compiled(function, **static):
    return jax.jit(functools.partial(function, **static))


def applied(function, images=IMAGES, labels=LABELS, /, *traced, **static):
    images, labels = compiled(function, **static)(KEY, images, labels, *traced)
    return np.asarray(images), np.asarray(labels)


def likely(draws, distribution):
    """Kolmogorov and Smirnov's test."""
    return stats.kstest(np.ravel(draws), distribution.cdf).pvalue > 1e-3


def unrelated(*draws):
    others = np.corrcoef(draws) - np.eye(len(draws))
    return np.abs(others).max() < 4 / np.sqrt(len(draws[0]))


def uniform(low, high):
    return stats.uniform(low, high - low)


# --------------------------------------------------------------------------------- moving the image


def test_a_crop_is_a_shift_with_zeros_uniform_over_the_places():
    crops, labels = applied(augment.random_crop, padding=1)
    padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, y : y + H, x : x + W] for y in range(3) for x in range(3)]
    matches = np.stack([(crops == s).all(axis=(1, 2, 3)) for s in shifted])
    assert (matches.sum(axis=0) == 1).all()
    assert stats.chisquare(matches.sum(axis=1)).pvalue > 1e-3
    assert (labels == LABELS).all()


def test_a_flip_mirrors_half_of_the_images():
    flipped, _ = applied(augment.random_flip)
    same = (flipped == IMAGES).all(axis=(1, 2, 3))
    mirrored = (flipped == IMAGES[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 0.04


def test_alternating_flips_show_both_sides_in_any_two_epochs():
    alternating = jax.jit(augment.alternating_flip)
    epoch = lambda e: alternating(IMAGES, LABELS, ROWS, np.full(B, e, np.uint32))[0]
    for e in (0, 7):
        now, then = epoch(e), epoch(e + 1)
        mirrored = (now != IMAGES).any(axis=(1, 2, 3))
        assert abs(mirrored.mean() - 0.5) < 0.04
        np.testing.assert_array_equal(then, now[:, :, ::-1])
    # The row of the set decides, not the place in the batch.
    again, _ = alternating(IMAGES[::-1], LABELS, ROWS[::-1], np.full(B, 8, np.uint32))
    np.testing.assert_array_equal(again[::-1], then)


@functools.cache
def ramps():
    """[B, 21, 25, 2] whose two channels are the place in y and x from the centre, in pixels."""
    y, x = np.arange(21.0) - 10, np.arange(25.0) - 12
    ramp = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)
    return np.float32(np.broadcast_to(ramp, (600, *ramp.shape)))


@pytest.mark.parametrize(
    ("degrees", "fraction"), [pytest.param(25.0, None, marks=pytest.mark.slow), (25.0, 0.2)]
)
def test_angles_and_shifts_are_uniform(degrees, fraction):
    images, _ = applied(
        augment.random_affine, ramps(), LABELS[:600], degrees=degrees, fraction=fraction
    )
    shifts = images[:, 10, 12]
    right = images[:, 10, 13] - shifts
    angles = np.rad2deg(np.arctan2(right[:, 0], right[:, 1]))
    assert likely(-angles, uniform(-degrees, degrees))
    if fraction is None:
        np.testing.assert_allclose(shifts, 0, atol=1e-4)
    else:
        for axis, side in enumerate((21, 25)):
            assert likely(shifts[:, axis], uniform(-fraction * side, fraction * side))
        assert unrelated(angles, *shifts.T)


def test_resized_crops_have_areas_ratios_and_places_as_asked():
    size, area, ratio = 8, (0.2, 0.4), (0.6, 1.5)
    images, _ = applied(
        augment.random_resized_crop, ramps(), LABELS[:600], size=size, area=area, ratio=ratio
    )
    assert images.shape == (600, size, size, 2)
    # A straight line stays one but near the border, where antialiasing finds nothing to average.
    step = np.stack(
        [images[:, 4, 3, 0] - images[:, 3, 3, 0], (images[:, 3, 4] - images[:, 3, 3])[:, 1]]
    )
    sides = size * step
    assert likely(sides.prod(axis=0) / (21 * 25), uniform(*area))
    assert likely(np.log(sides[1] / sides[0]), uniform(*np.log(ratio)))
    free = np.array([[21], [25]]) - sides
    places = images[:, 3:5, 3:5].mean(axis=(1, 2)).T / free + 0.5
    assert likely(places[0], uniform(0, 1))
    assert likely(places[1], uniform(0, 1))
    assert unrelated(sides.prod(axis=0), sides[1] / sides[0], *places)


@pytest.mark.slow
def test_a_resized_crop_of_everything_is_the_image():
    images, _ = applied(
        augment.random_resized_crop, IMAGES[:, :6], size=6, area=(1.0, 1.0), ratio=(1.0, 1.0)
    )
    np.testing.assert_allclose(images, IMAGES[:, :6], atol=1e-5)


# ----------------------------------------------------------------------------- covering parts of it


def boxes(covered):
    """bool[B, H, W] -> top, bottom, left, right of the box around what is covered, and whether it
    covers its box."""
    edges = []
    for axis in (2, 1):
        line = covered.any(axis=axis)
        edges += [line.argmax(axis=1), line.shape[1] - line[:, ::-1].argmax(axis=1)]
    top, bottom, left, right = edges
    return top, bottom, left, right, covered.sum(axis=(1, 2)) == (bottom - top) * (right - left)


@pytest.mark.parametrize("size", [2, 3])
def test_cutout_covers_a_square_around_any_pixel(size):
    images, labels = applied(augment.random_cutout, size=size, fill=(2.0,))
    covered = (images == 2.0)[..., 0]
    assert ((images == IMAGES) | (images == 2.0)).all()
    assert (labels == LABELS).all()
    *edges, whole = boxes(covered)
    assert whole.all()
    expected = []
    for y in range(H):
        for x in range(W):
            top, left = y - size // 2, x - size // 2
            expected.append((max(top, 0), min(top + size, H), max(left, 0), min(left + size, W)))
    found = [expected.index(edge) for edge in zip(*map(np.ndarray.tolist, edges), strict=True)]
    # Squares that stick out may be cut to the same box as another: count those together.
    counts = np.bincount(found, minlength=H * W)
    places = np.bincount([expected.index(edge) for edge in expected], minlength=H * W)
    there = places > 0
    assert stats.chisquare(counts[there], B / (H * W) * places[there]).pvalue > 1e-3


def test_erasing_takes_the_areas_and_the_share_of_images_asked_for():
    large = np.full((B, 30, 40, 1), 2, np.float32)
    images, labels = applied(
        augment.random_erasing, large, probability=0.4, area=(0.1, 0.3), ratio=(0.6, 1.5)
    )
    covered = (images != 2.0)[..., 0]
    assert (labels == LABELS).all()
    erased = covered.any(axis=(1, 2))
    assert abs(erased.mean() - 0.4) < 0.04
    top, bottom, left, right, whole = boxes(covered[erased])
    assert whole.all()
    # Sides are whole pixels: a hair of noise hides the steps from the test.
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, erased.sum()))
    height, width = np.stack([bottom - top, right - left]) + noise
    assert likely(height * width / (30 * 40), uniform(0.1, 0.3))
    assert likely(np.log(width / height), uniform(*np.log((0.6, 1.5))))
    free = np.array([[31], [41]]) - (bottom - top, right - left)
    places = (np.stack([top, left]) + noise + 0.5) / free
    assert likely(places[0], uniform(0, 1))
    assert likely(places[1], uniform(0, 1))
    assert unrelated(height * width, width / height, *places)
    assert likely(images[images != 2.0][:5000], uniform(0, 1))


# ------------------------------------------------------------------------------------ mixing images

# Rows are black and white by turns, and so are their labels.
STRIPES = np.broadcast_to(LABELS[:, 1, None, None, None], (B, 9, 9, 1))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 4.0])
def test_mixup_weighs_pixels_and_labels_alike_by_a_beta(alpha):
    images, labels = applied(augment.mixup, STRIPES, LABELS, alpha)
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        images, np.broadcast_to(labels[:, 1, None, None, None], images.shape)
    )
    share = np.where(np.arange(B) % 2 == 1, labels[:, 1], labels[:, 0])
    bins = np.array([0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1])
    expected = B * np.diff(stats.beta(alpha, alpha).cdf(bins))
    assert stats.chisquare(np.histogram(share, bins)[0], expected).pvalue > 1e-3


def test_mixup_mixes_a_row_with_the_one_in_front_of_it():
    noise = np.random.default_rng(0).random(STRIPES.shape, np.float32)
    images, labels = applied(augment.mixup, noise, LABELS, 1.0)
    share = labels[np.arange(B), np.arange(B) % 2].reshape(-1, 1, 1, 1)
    expected = share * noise + (1 - share) * noise[np.arange(B) - 1]
    np.testing.assert_allclose(images, expected, atol=1e-6)


def test_cutmix_weighs_labels_by_the_area_that_is_seen():
    images, labels = applied(augment.cutmix, STRIPES, alpha=1.0)
    np.testing.assert_allclose(labels[:, 1], images.mean(axis=(1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    pasted = (images != STRIPES)[..., 0]
    *_, whole = boxes(pasted)
    assert whole[pasted.any(axis=(1, 2))].all()
    # The same by numpy: a square whose area is uniform, cut off where it sticks out.
    rng = np.random.default_rng(0)
    side = np.round(9 * np.sqrt(rng.random(200_000))).astype(int)
    seen = np.ones_like(side)
    for start in rng.integers(0, 9, (2, len(side))) - side // 2:
        seen *= np.minimum(start + side, 9) - np.maximum(start, 0)
    counts = np.bincount(np.digitize(pasted.sum(axis=(1, 2)), np.arange(5, 81, 15)), minlength=7)
    expected = np.bincount(np.digitize(seen, np.arange(5, 81, 15)), minlength=7)
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert stats.chisquare(counts, B * expected / len(side)).pvalue > 1e-3


@pytest.mark.slow
def test_with_both_each_image_takes_one():
    images, labels = applied(augment.mixing, STRIPES, mixup_alpha=1.0, cutmix_alpha=1.0)
    np.testing.assert_allclose(labels[:, 1], images.mean(axis=(1, 2, 3)), atol=1e-6)
    up = ((images > 0) & (images < 1)).all(axis=(1, 2, 3))
    cut = np.isin(images, (0, 1)).all(axis=(1, 2, 3))
    assert (up ^ cut).all()
    assert abs(up.mean() - 0.5) < 0.04


# --------------------------------------------------------------------------- for evaluation as well


def test_normalise_and_centre_crop():
    images = np.random.default_rng(0).random((2, 7, 6, 3), np.float32)
    mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)
    expected = (images - np.float32(mean)) / np.float32(std)
    np.testing.assert_allclose(normalise(images, mean, std), expected, rtol=1e-6)
    np.testing.assert_array_equal(centre_crop(images, 4), images[:, 1:5, 1:5])
    assert centre_crop(images[:, :6], 6).shape == (2, 6, 6, 3)
    with pytest.raises(BadInput, match=r"config\.augment\.resized_crop: 7 is larger"):
        centre_crop(images, 7)


def test_views_and_their_weights():
    images = np.asarray(IMAGES[:2])
    assert weighted_views(images, "none") == ((1.0, images),)
    (one, same), (other, mirrored) = weighted_views(images, "flip")
    assert one == other == 0.5
    assert same is images
    np.testing.assert_array_equal(mirrored, images[:, :, ::-1])
    # What lies outside shows what lies as far inside.
    y, x = (np.abs(np.arange(-1, n + 1)) for n in (H, W))
    y[-1], x[-1] = H - 2, W - 2
    reflected = images[:, y][:, :, x]
    expected = [(0.25, images), (0.125, reflected[:, 2:, 2:]), (0.125, reflected[:, :-2, :-2])]
    expected = [(w, v) for w, image in expected for v in (image, image[:, :, ::-1])]
    found = weighted_views(images, "flip_shift")
    assert [weight for weight, _ in found] == [weight for weight, _ in expected]
    assert sum(weight for weight, _ in found) == 1
    for (_, view), (_, right) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(view, right)
    with pytest.raises(BadInput, match="did you mean 'flip'"):
        weighted_views(images, "flips")


# -------------------------------------------------------------------------------------- the section


def test_the_default_is_nothing():
    images, labels = make_augment()(KEY, IMAGES, LABELS, None, None)
    assert images is IMAGES
    assert labels is LABELS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_types_and_shapes_stay_and_numbers_may_be_traced(dtype):
    settings = ALL | {"resized_crop": 5, "rand_augment_layers": 1, "rand_augment_magnitude": 5.0}
    floats = {key: jnp.float32(v) for key, v in settings.items() if isinstance(v, float)}

    def augmented(floats, *batch):
        return make_augment((0.1,), **(settings | floats))(KEY, *batch)

    rows = jax.ShapeDtypeStruct((B,), jnp.uint32)
    batch = jax.ShapeDtypeStruct(IMAGES.shape, dtype), LABELS, rows, rows
    with jax.enable_x64(dtype == "float64"):
        images, labels = jax.eval_shape(augmented, floats, *batch)
    assert (images.shape, images.dtype) == ((B, 5, 5, 1), dtype)
    assert (labels.shape, labels.dtype) == (LABELS.shape, jnp.float32)


@pytest.mark.parametrize("settings", [FEW, pytest.param(ALL, marks=pytest.mark.slow)])
def test_the_key_decides_and_rows_do_not_interact_but_by_mixing(settings):
    images, rows = IMAGES[:64], ROWS[:64]
    augmented = jax.jit(make_augment(**settings))

    def run(images, key=KEY):
        return map(np.asarray, augmented(key, images, LABELS[:64], rows, rows))

    changed = lambda a, b: np.flatnonzero((a != b).reshape(64, -1).any(axis=1)).tolist()
    first, mixed = run(images)
    again, _ = run(images)
    np.testing.assert_array_equal(again, first)
    by_another_key, _ = run(images, jax.random.key(1))
    assert len(changed(by_another_key, first)) > 60
    np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=1e-6)
    assert first.min() >= 0
    assert first.max() <= 1
    other, same = run(np.where(rows.reshape(-1, 1, 1, 1) == 3, 1 - images, images))
    assert changed(other, first) == [3, 4]
    np.testing.assert_array_equal(same, mixed)


def test_one_augmentation_does_not_change_the_draws_of_another():
    def run(which, images, **settings):
        return jax.jit(lambda x: make_augment(**settings)(KEY, x, LABELS, ROWS, ROWS)[which])(
            images
        )

    everything = ALL | {"cutmix": None, "rand_augment_layers": 1}
    alone, among = run(1, IMAGES, mixup=0.4), run(1, IMAGES, **everything)
    np.testing.assert_array_equal(alone, among)
    symmetric = (IMAGES + IMAGES[:, :, ::-1]) / 2
    alone, among = run(0, symmetric, cutout=2), run(0, symmetric, cutout=2, flip="random")
    np.testing.assert_array_equal(alone, among)


@pytest.mark.slow
def test_a_mesh_changes_nothing_and_moves_no_whole_batch():
    images, labels = IMAGES[:64], LABELS[:64]
    zeros = np.zeros(64, np.uint32)
    augmented = jax.jit(make_augment(**ALL, rand_augment_layers=1))
    expected = augmented(KEY, images, labels, ROWS[:64], zeros)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    put = lambda x: jax.device_put(x, NamedSharding(mesh, P("data")))
    batch = tuple(map(put, (images, labels, ROWS[:64], zeros)))
    compiled = augmented.lower(KEY, *batch).compile()
    found = compiled(KEY, *batch)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert "f32[64,7,6,1]" not in compiled.as_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_padding": -1}, r"config\.augment\.crop_padding: -1 is not in"),
        ({"rotation": 200.0}, r"config\.augment\.rotation"),
        ({"erasing": 1.5}, r"config\.augment\.erasing"),
        ({"mixup": 0.0}, r"config\.augment\.mixup"),
        ({"rand_augment_magnitude": 31.0}, r"config\.augment\.rand_augment_magnitude"),
        ({"resized_crop_area": (0.5, 0.2)}, r"config\.augment\.resized_crop_area"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        make_augment(**settings)
