"""Losses and metrics as (sum, weight), so that means over any batches, padded or split, are exact.

Letters: B rows, C classes, D outputs. `valid f32[B]` weights rows: 0 on padding. A weight never
depends on the parameters. Metrics that are not means (F1, perplexity, RMSE) are computed at the
end, from float64 totals, by the functions at the bottom.
"""

import jax
import jax.numpy as jnp
import numpy as np

from common.errors import require

# By the end of a metric's key: 1 if more is better, -1 if less is. Tasks add their own `SIGNS`.
SIGNS = dict.fromkeys(("accuracy", "f1", "matthews", "pearson", "top_5"), 1)
SIGNS |= dict.fromkeys(("loss", "perplexity", "error", "rmse", "ece", "mce", "brier"), -1)


def _weighted(values, valid):
    return jnp.sum(jnp.where(valid > 0, values, 0) * valid), jnp.sum(valid)


@jax.custom_vjp
def _negative_log_likelihood(logits, labels):
    """f32[B, C], i32[B] -> f32[B]. The custom gradient, softmax - onehot, is one pass over the
    logits; that of `take_along_axis` scatters into an array of zeros of that size, which is slower
    on CPU."""
    return _forward(logits, labels)[0]


def _forward(logits, labels):
    picked = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    return normaliser - picked, (logits, labels, normaliser)


def _backward(residuals, gradient):
    logits, labels, normaliser = residuals
    probabilities = jnp.exp(logits - normaliser[:, None])
    one_hot = labels[:, None] == jnp.arange(logits.shape[-1])
    # A row of weight 0 has gradient 0, whatever its logits.
    gradient = gradient[:, None]
    return jnp.where(gradient == 0, 0, gradient * (probabilities - one_hot)), None


_negative_log_likelihood.defvjp(_forward, _backward)


def softmax_cross_entropy(logits, labels, valid, label_smoothing=None):
    """Cross-entropy with labels or with distributions over the classes.

    Args:
      logits: f32[B, C].
      labels: i32[B], or f32[B, C] whose rows sum to 1.
      valid: f32[B].
      label_smoothing: None, or the share of the target mass spread evenly over all classes; may be
        traced (Szegedy et al. 2016).

    Returns:
      (sum f32[], weight f32[]) in nats.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if labels.ndim == logits.ndim:
        losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(labels * logits, axis=-1)
    else:
        losses = _negative_log_likelihood(logits, labels)
    if label_smoothing is not None:
        uniform = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    return _weighted(losses, valid)


def sigmoid_cross_entropy(logits, targets, valid):
    """Binary cross-entropy in nats, summed over the outputs of a row.

    Args:
      logits, targets: f32[B, D]; targets lie in [0, 1].
      valid: f32[B].
    """
    logits = logits.astype(jnp.float32)
    losses = jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return _weighted(losses.sum(axis=-1), valid)


def squared_error(predictions, targets, valid):
    """Squared difference, averaged over the outputs of a row. f32[B, D] each, valid f32[B]."""
    return _weighted(jnp.mean((predictions - targets) ** 2, axis=-1), valid)


def absolute_error(predictions, targets, valid):
    """Absolute difference, averaged over the outputs of a row. f32[B, D] each, valid f32[B]."""
    return _weighted(jnp.mean(jnp.abs(predictions - targets), axis=-1), valid)


def _rank(logits, labels):
    """i32[B]: the number of classes that rank above the label; among equal logits the lower index
    ranks higher, and NaN ranks highest. On CPU, counting is faster than argmax."""
    picked = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    behind = jnp.arange(logits.shape[-1]) >= labels[:, None]
    behind = (logits < picked) | ((logits == picked) & behind)
    return logits.shape[-1] - jnp.sum(behind, axis=-1)


def accuracy(logits, labels, valid):
    """Counts rows whose label has the largest logit. logits [B, C], labels i32[B], valid f32[B]."""
    return top_k(logits, labels, valid, k=1)


def top_k(logits, labels, valid, k: int):
    """Counts rows whose label is among the k largest logits; ties go to the lower index."""
    return _weighted((_rank(logits, labels) < k).astype(jnp.float32), valid)


def confusion_matrix(logits, labels, valid):
    """(f32[C, C] counts by true class (row) and predicted class (column), weight f32[])."""
    classes = logits.shape[-1]
    true = jax.nn.one_hot(labels, classes) * valid[:, None]
    predicted = jax.nn.one_hot(jnp.argmax(logits, axis=-1), classes)
    counts = jnp.einsum("bt,bp->tp", true, predicted, precision=jax.lax.Precision.HIGHEST)
    return counts, jnp.sum(valid)


def moments(x, y, valid):
    """(f32[5]: sums of x, y, x^2, y^2 and xy, weight f32[]) of f32[B] each; see `pearson`.

    Subtract a number near the mean from each first: squares of large numbers lose the differences.
    """
    rows = jnp.stack([x, y, x * x, y * y, x * y])
    return jnp.sum(jnp.where(valid > 0, rows, 0) * valid, axis=-1), jnp.sum(valid)


def smoothing(*, label_smoothing: float | None = None) -> float | None:
    """The section `loss` of classification.

    Args:
      label_smoothing: share of each training target spread over all classes; None disables it.
    """
    if isinstance(label_smoothing, float):
        ok = 0 <= label_smoothing < 1
        require(ok, f"config.loss.label_smoothing: {label_smoothing} is not in [0, 1)")
    return label_smoothing


# ------------------------------------------------------------------ at the end, on float64 totals


def ratio(totals: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float | np.ndarray]:
    """{name: sum / weight}, the mean; NaN where the weight is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means = {name: np.divide(total, weight) for name, (total, weight) in totals.items()}
    return {name: float(mean) if np.ndim(mean) == 0 else mean for name, mean in means.items()}


def precision_recall_f1(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Per-class scores from a confusion matrix [C, C]; 0 where the divisor is 0, as in
    scikit-learn."""
    hits, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)

    def divide(a, b):
        return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)

    return {
        "precision": divide(hits, predicted),
        "recall": divide(hits, true),
        "f1": divide(2 * hits, true + predicted),
    }


def macro_f1(confusion: np.ndarray) -> float:
    """The mean F1 of the classes that occur among the labels or the predictions."""
    occurs = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    return float(precision_recall_f1(confusion)["f1"][occurs].mean())


def matthews(confusion: np.ndarray) -> float:
    """The correlation of labels and predictions, for any number of classes (Gorodkin 2004); 0 if
    either is constant."""
    hits, total = np.trace(confusion), confusion.sum()
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    spread = (total**2 - (true**2).sum()) * (total**2 - (predicted**2).sum())
    return float((hits * total - true @ predicted) / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(moments: np.ndarray, weight: np.ndarray) -> float:
    """The correlation of x and y, from the sums of `moments`; NaN if one is constant."""
    x, y, xx, yy, xy = moments / weight
    with np.errstate(divide="ignore", invalid="ignore"):
        return float((xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y)))


def perplexity(mean_nats: float) -> float:
    """exp of a mean cross-entropy in nats."""
    return float(np.exp(mean_nats))


def root(mean_square: float) -> float:
    """The root of a mean squared error, in units of the target."""
    return float(np.sqrt(mean_square))
