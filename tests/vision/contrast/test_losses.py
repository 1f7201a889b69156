"""The contrastive losses: the formulas, and that no mesh changes them or their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from common.devices.mesh import RULES
from common.laws import report
from vision.contrast import losses
from vision.contrast.model import Towers

B, E = 16, 6
ROWS = np.arange(B, dtype=np.uint32)
TWICE = np.where(ROWS == 12, 1, ROWS)  # at the end of an epoch: a row of the set is there twice


def rows(seed=0):
    rng = np.random.default_rng(seed)
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    valid = np.ones(B, np.float32)
    valid[[3, 14]] = 0
    return unit(rng.normal(size=(B, E))), unit(rng.normal(size=(B, E))), valid


def value(kind, images, texts, scale, bias, valid, rows=ROWS, axes=()):
    if kind == "softmax":
        total, weight = losses.softmax(images, texts, scale, valid, rows, axes)[0]
    else:
        total, weight = losses.sigmoid(images, texts, scale, bias, valid, rows, axes)
    return total / weight


def by_hand(kind, images, texts, scale, bias, valid, rows=ROWS):
    """In float64, of the valid rows alone; copies of a row are no answers to it."""
    there = valid > 0
    scores = scale * (images[there].astype(np.float64) @ texts[there].T.astype(np.float64))
    copies = rows[there, None] == rows[there]
    np.fill_diagonal(copies, False)
    if kind == "sigmoid":
        sign = 2 * np.eye(len(scores)) - 1
        return np.where(copies, 0, np.log1p(np.exp(-sign * (scores + bias)))).sum(1).mean()
    scores = np.where(copies, -np.inf, scores)
    each = [np.log(np.exp(s).sum(1)) - np.diag(s) for s in (scores, scores.T)]
    return np.mean(each)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("of_the_set", [ROWS, TWICE], ids=["once", "twice"])
def test_the_formula(kind, of_the_set):
    images, texts, valid = rows()
    found = value(kind, images, texts, jnp.float32(7), jnp.float32(-2), valid, of_the_set)
    wanted = by_hand(kind, images, texts, 7, -2, valid, of_the_set)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_accuracy_is_of_pictures_that_find_their_text():
    images, _, valid = rows()
    texts = images.copy()
    texts[[0, 1]] = texts[[1, 0]]
    _, (hits, weight) = losses.softmax(images, texts, jnp.float32(1), valid, ROWS)
    assert (hits, weight) == (B - 4, B - 2)


def test_the_scale_is_learned_up_to_its_limit():
    model = Towers(vocab_size=9, max_scale=100.0)
    of = lambda x, sign: sign * model.apply({"params": {"logit_scale": x}}, method="scale")[0]
    below, beyond = jnp.log(jnp.float32([50.0])), jnp.log(jnp.float32([120.0]))
    for start, wanted in ((below, 50), (beyond, 100)):
        assert of(start, 1) == pytest.approx(wanted, rel=1e-5)
        assert jax.grad(of)(start, 1) == pytest.approx(wanted, rel=1e-5)  # descent moves it back
    assert jax.grad(of)(below, -1) == pytest.approx(-50, rel=1e-5)
    assert jax.grad(of)(beyond, -1) == 0


# One mesh that splits the batch over two axes is run every day; the others are a measure.
EVERY_DAY = {(2, 2, 2, AxisType.Auto): (), (2, 2, 2, AxisType.Explicit): pytest.mark.slow}
GRID = pytest.mark.slow, pytest.mark.measure("grid")
SHAPES = [
    pytest.param(
        shape,
        kind,
        id=f"{'x'.join(map(str, shape))}-{kind.name}",
        marks=EVERY_DAY.get((*shape, kind), GRID),
    )
    for shape in report.meshes(8)
    for kind in (AxisType.Auto, AxisType.Explicit)
]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("shape", "axis_type"), SHAPES)
def test_no_mesh_changes_value_or_gradients(kind, shape, axis_type):
    images, texts, valid = rows()
    arguments = images, texts, jnp.float32(7), jnp.float32(-2)
    wanted = jax.value_and_grad(
        lambda *values: value(kind, *values, valid, TWICE), argnums=(0, 1, 2, 3)
    )(*arguments)
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(axis_type,) * 3)
    with jax.set_mesh(mesh):
        axes = losses.split_axes(RULES)
        place = lambda x, *spec: jax.device_put(
            x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        )
        split = place(images, axes or None), place(texts, axes or None)
        numbers = place(arguments[2]), place(arguments[3])
        known = place(valid, axes or None), place(TWICE, axes or None)
        step = jax.value_and_grad(
            lambda *values: value(kind, *values, *known, axes), argnums=(0, 1, 2, 3)
        )
        found = jax.jit(step)(*split, *numbers)
        text = jax.jit(step).lower(*split, *numbers).as_text()
    assert ("collective_permute" in text) == (kind == "sigmoid" and bool(axes))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
