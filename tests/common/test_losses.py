"""Losses and metrics against formulas written another way, and against padding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(12, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 12)
VALID = np.array([1] * 9 + [0] * 3, np.float32)


def test_softmax_cross_entropy_agrees_with_optax():
    total, weight = losses.softmax_cross_entropy(LOGITS, LABELS, VALID)
    rows = optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS)
    np.testing.assert_allclose(total, (rows * VALID).sum(), rtol=1e-6)
    assert weight == 9
    smoothed, _ = losses.softmax_cross_entropy(LOGITS, LABELS, VALID, label_smoothing=0.2)
    targets = optax.smooth_labels(jax.nn.one_hot(LABELS, 5), 0.2)
    rows = optax.softmax_cross_entropy(LOGITS, targets)
    np.testing.assert_allclose(smoothed, (rows * VALID).sum(), rtol=1e-6)
    soft, weight = losses.softmax_cross_entropy(LOGITS, targets, VALID)
    np.testing.assert_allclose(soft, (rows * VALID).sum(), rtol=1e-6)
    assert weight == 9


def test_sigmoid_cross_entropy_agrees_with_optax_and_is_finite_far_out():
    targets = (LOGITS > 0.3).astype(np.float32)
    total, _ = losses.sigmoid_cross_entropy(LOGITS, targets, VALID)
    rows = optax.sigmoid_binary_cross_entropy(LOGITS, targets).sum(axis=1)
    np.testing.assert_allclose(total, (rows * VALID).sum(), rtol=1e-6)
    far, _ = losses.sigmoid_cross_entropy(1e4 * LOGITS, targets, VALID)
    assert np.isfinite(far)


@pytest.mark.parametrize(
    "loss",
    [
        losses.softmax_cross_entropy,
        losses.accuracy,
        lambda *rows: losses.top_k(*rows, k=2),
        losses.confusion_matrix,
    ],
)
def test_padding_changes_nothing_even_when_it_is_nan(loss):
    broken = np.where(
        VALID[:, None] > 0, LOGITS, np.nan if loss is not losses.confusion_matrix else 0
    )
    for a, b in zip(
        loss(broken, LABELS, VALID), loss(LOGITS[:9], LABELS[:9], VALID[:9]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_regression_errors():
    targets = LOGITS + 0.5
    total, weight = losses.squared_error(LOGITS, targets, VALID)
    np.testing.assert_allclose(total / weight, 0.25, rtol=1e-5)
    total, weight = losses.absolute_error(LOGITS, targets, VALID)
    np.testing.assert_allclose(total / weight, 0.5, rtol=1e-5)
    assert losses.root(0.25) == 0.5
    assert losses.perplexity(np.log(7.0)) == pytest.approx(7.0)


def test_top_k_is_accuracy_for_one_and_everything_for_all():
    assert losses.top_k(LOGITS, LABELS, VALID, 1)[0] == losses.accuracy(LOGITS, LABELS, VALID)[0]
    assert losses.top_k(LOGITS, LABELS, VALID, 5)[0] == 9
    constant = np.zeros_like(LOGITS)  # ties: a model that says nothing is right one time in five
    assert losses.top_k(constant, np.arange(12) % 5, np.ones(12), 1)[0] == 3


def test_confusion_and_what_comes_of_it():
    confusion, weight = losses.confusion_matrix(LOGITS, LABELS, VALID)
    confusion = np.array(confusion)
    for t, p in zip(LABELS[:9], LOGITS[:9].argmax(axis=1), strict=True):
        confusion[t, p] -= 1
    assert not confusion.any()
    assert weight == 9
    table = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]], float)
    found = losses.precision_recall_f1(table)
    np.testing.assert_allclose(found["precision"], [3 / 5, 4 / 5, 0])
    np.testing.assert_allclose(found["recall"], [3 / 4, 4 / 6, 0])
    np.testing.assert_allclose(found["f1"], [2 / 3, 8 / 11, 0])


def test_a_mean_of_nothing_is_nan():
    assert np.isnan(losses.ratio({"x": (np.float64(0), np.float64(0))})["x"])


def test_the_gradient_of_cross_entropy_is_that_of_its_formula():
    valid = jnp.array([1.0] * (len(LABELS) - 1) + [0.5])
    right = jax.nn.one_hot(LABELS, LOGITS.shape[-1])

    def formula(logits, smoothing):
        target = (1 - smoothing) * right + smoothing / logits.shape[-1]
        return -((target * jax.nn.log_softmax(logits)).sum(axis=-1) * valid).sum()

    for smoothing in (0.0, 0.3):
        ours = lambda x: losses.softmax_cross_entropy(x, LABELS, valid, smoothing)[0]  # noqa: B023
        expected = jax.grad(formula)(LOGITS, smoothing)
        np.testing.assert_allclose(jax.grad(ours)(LOGITS), expected, rtol=1e-5, atol=1e-6)


def test_a_row_that_weighs_nothing_has_no_gradient():
    logits, valid = jnp.asarray(LOGITS).at[0].set(jnp.nan), jnp.ones(len(LABELS)).at[0].set(0)
    ours = lambda x: losses.softmax_cross_entropy(x, LABELS, valid)[0]
    gradient = jax.grad(ours)(logits)
    assert not gradient[0].any()
    assert np.isfinite(gradient).all()


def test_what_is_not_a_number_is_never_right():
    logits = jnp.full((3, 4), jnp.nan)
    hits, weight = losses.accuracy(logits, jnp.array([0, 1, 3]), jnp.ones(3))
    assert (float(hits), float(weight)) == (0, 3)
