"""Losses and metrics against formulas written another way, and against padding."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common import losses
from common.data import loading
from common.errors import BadInput

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


# ------------------------------------------------------------------ class weights, several labels

WEIGHTS = np.float32([0.2, 1, 3, 1, 7])
MANY = (RNG.random((12, 5)) < 0.3).astype(np.uint8)


def labelled(labels):
    return loading.from_arrays({"label": labels})


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_class_weights_are_those_of_torch(smoothing):
    torch = pytest.importorskip("torch")
    total, weight = losses.softmax_cross_entropy(LOGITS, LABELS, VALID, smoothing, WEIGHTS)
    of = torch.nn.CrossEntropyLoss(weight=torch.tensor(WEIGHTS), label_smoothing=smoothing)
    theirs = of(torch.tensor(LOGITS[:9]), torch.tensor(LABELS[:9]))
    np.testing.assert_allclose(total / weight, theirs, rtol=1e-6)
    np.testing.assert_allclose(weight, WEIGHTS[LABELS[:9]].sum(), rtol=1e-6)
    one_hot = jax.nn.one_hot(LABELS, 5)
    soft = losses.softmax_cross_entropy(LOGITS, one_hot, VALID, smoothing, WEIGHTS)
    np.testing.assert_allclose(soft, (total, weight), rtol=1e-6)
    mixed = 0.7 * one_hot + 0.3 * one_hot[::-1]  # as mixup does
    total, _ = losses.softmax_cross_entropy(LOGITS, mixed, VALID, smoothing, WEIGHTS)
    of = torch.nn.CrossEntropyLoss(
        weight=torch.tensor(WEIGHTS), label_smoothing=smoothing, reduction="sum"
    )
    theirs = of(torch.tensor(LOGITS[:9]), torch.tensor(np.array(mixed[:9])))
    np.testing.assert_allclose(total, theirs, rtol=1e-6)


def test_weights_of_rows_are_no_matrix_product():
    """Which TPUs round to 8 bits."""
    loss = lambda *args: losses.softmax_cross_entropy(*args, None, WEIGHTS)
    assert "dot_general" not in str(jax.make_jaxpr(loss)(LOGITS, LABELS, VALID))


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_several_labels_cost_what_they_cost_in_torch(weights):
    torch = pytest.importorskip("torch")
    total, weight = losses.multi_label_cross_entropy(LOGITS, MANY, VALID, 0.2, weights)
    of = torch.nn.BCEWithLogitsLoss(pos_weight=None if weights is None else torch.tensor(weights))
    targets = torch.tensor(0.8 * MANY[:9] + 0.1, dtype=torch.float32)
    np.testing.assert_allclose(total / weight, of(torch.tensor(LOGITS[:9]), targets), rtol=1e-6)
    assert weight == 9
    far, _ = losses.multi_label_cross_entropy(1e4 * LOGITS, MANY, VALID, None, weights)
    assert np.isfinite(far)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 12, 400])
def test_scores_of_several_labels_are_those_of_scikit_learn(rows):
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(rows, 4)).astype(np.float32)
        logits = np.round(logits, 1) if seed % 2 else logits  # with ties
        targets = rng.random((rows, 4)) < [0.3, 0.01, 0.9, 0.5]
        targets[:, 1] &= seed > 2  # a class without positives
        found = losses.multi_label_scores(logits, targets)
        sure = {"zero_division": 0, "average": None}
        theirs = metrics.precision_recall_fscore_support(targets, logits > 0, **sure)
        for name, values in zip(("precision", "recall", "f1"), theirs, strict=False):
            np.testing.assert_allclose(found[name], values, atol=1e-12)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes without positives
            wanted = metrics.average_precision_score(targets, logits, average=None)
        np.testing.assert_allclose(found["average_precision"], wanted, atol=1e-12)
        micro = metrics.f1_score(targets, logits > 0, average="micro", zero_division=0)
        assert found["micro_f1"] == pytest.approx(micro)
        exact = losses.subset_accuracy(logits, targets, np.ones(rows, np.float32))
        assert exact[0] / exact[1] == pytest.approx(metrics.accuracy_score(targets, logits > 0))


def test_precision_is_averaged_over_positives():
    scores, targets = np.float32([3, 2, 2, 1]), np.array([0, 1, 0, 1], bool)
    assert losses.average_precision(scores, targets) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert losses.average_precision(scores, targets < 0) == 0


def test_a_score_that_is_not_a_number_ranks_nothing():
    assert np.isnan(losses.average_precision(np.float32([1, np.nan]), np.array([True, False])))


def test_balanced_classes_weigh_the_same_in_all():
    labels = np.int32([0, 2, 2, 2, 3, 3])  # as in scikit-learn: 6 / (3 * [1, 3, 2])
    found = losses.class_weights("balanced", labelled(labels), ("a", "b", "c", "d"))
    np.testing.assert_allclose(found, [2, 1, 2 / 3, 1])
    many = np.uint8([[1, 0, 1], [0, 0, 1], [0, 0, 1], [1, 0, 1], [1, 0, 1]])
    found = losses.class_weights("balanced", labelled(many), ("a", "b", "c"))
    np.testing.assert_allclose(found, [2 / 3, 1, 1])


def test_weights_are_named():
    named = lambda text: losses.class_weights(text, None, ("cat", "a, b=c", "dog")).tolist()
    assert named("cat=2") == [2, 1, 1]
    assert named(" dog = 1e-1 , cat=.5") == [0.5, 1, pytest.approx(0.1)]
    assert named("a, b=c=3,dog=2") == [1, 3, 2]
    assert losses.class_weights("", None, ("cat",)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cow=2", "class: unknown 'cow'"),
        ("balance", "'balance': write 'balanced', or CLASS=NUMBER,CLASS=NUMBER"),
        ("cat=2,dog", "'cat=2,dog': write"),
        ("cat=nan", "'cat=nan': write"),
        ("cat=0", "cat=0: a weight is in 1e-30 to 1e30"),
        ("cat=-1", "cat=-1: a weight is"),
        ("cat=1e99", "cat=1e99: a weight is"),
        ("cat=1,cat=2", "class 'cat' is named twice"),
        ("balanced", "does not tell the labels"),
    ],
)
def test_weights_that_are_refused(text, message):
    source = labelled(np.int32([0, 1]))._replace(labels=None)
    with pytest.raises(BadInput, match=r"^config\.loss\.class_weights") as error:
        losses.class_weights(text, source, ("cat", "dog"))
    assert message in str(error.value)
