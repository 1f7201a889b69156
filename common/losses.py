"""Losses and metrics as (sum, weight), so that means over any batches, padded or split, are exact.

Letters: B rows, C classes, D outputs. `valid f32[B]` weighs rows: 0 on padding. A weight never
depends on the parameters. What a mean cannot say (F1, perplexity, RMSE) is computed at the end, on
float64 totals, by the functions at the bottom.
"""

import jax
import jax.numpy as jnp
import numpy as np


def _weighted(values, valid):
    return jnp.sum(jnp.where(valid > 0, values, 0) * valid), jnp.sum(valid)


def softmax_cross_entropy(logits, labels, valid, label_smoothing=None):
    """Cross-entropy of integer labels.

    Args:
      logits: f32[B, C].
      labels: i32[B].
      valid: f32[B].
      label_smoothing: None, or the share of the target that is spread evenly over all classes; may
        be traced (Szegedy et al. 2016).

    Returns:
      (sum f32[], weight f32[]) in nats.
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    if label_smoothing is not None:
        picked = (1 - label_smoothing) * picked + label_smoothing * logits.mean(axis=-1)
    return _weighted(normaliser - picked, valid)


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
    """Mean over the outputs of a row of the squared difference. f32[B, D] each, valid f32[B]."""
    return _weighted(jnp.mean((predictions - targets) ** 2, axis=-1), valid)


def absolute_error(predictions, targets, valid):
    """Mean over the outputs of a row of the absolute difference. f32[B, D] each, valid f32[B]."""
    return _weighted(jnp.mean(jnp.abs(predictions - targets), axis=-1), valid)


def accuracy(logits, labels, valid):
    """How many rows have their label at the largest logit. logits [B, C], labels i32[B], valid
    f32[B]."""
    return _weighted((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32), valid)


def top_k(logits, labels, valid, k: int):
    """How many rows have their label among the k largest logits; of equal logits the first ones
    count."""
    picked = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = jnp.arange(logits.shape[-1]) < labels[:, None]
    rank = jnp.sum((logits > picked) | ((logits == picked) & before), axis=-1)
    return _weighted((rank < k).astype(jnp.float32), valid)


def confusion_matrix(logits, labels, valid):
    """(f32[C, C] counts by true class (row) and predicted class (column), weight f32[])."""
    classes = logits.shape[-1]
    true = jax.nn.one_hot(labels, classes) * valid[:, None]
    predicted = jax.nn.one_hot(jnp.argmax(logits, axis=-1), classes)
    counts = jnp.einsum("bt,bp->tp", true, predicted, precision=jax.lax.Precision.HIGHEST)
    return counts, jnp.sum(valid)


# --------------------------------------------------------------------- at the end, on float64
# totals


def ratio(totals: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float | np.ndarray]:
    """{name: sum / weight}, the mean; NaN where nothing was weighed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means = {name: np.divide(total, weight) for name, (total, weight) in totals.items()}
    return {name: float(mean) if np.ndim(mean) == 0 else mean for name, mean in means.items()}


def precision_recall_f1(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Per class from a confusion matrix [C, C]; 0 where there is nothing to divide by, as
    scikit-learn."""
    hits, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)

    def divide(a, b):
        return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)

    return {
        "precision": divide(hits, predicted),
        "recall": divide(hits, true),
        "f1": divide(2 * hits, true + predicted),
    }


def perplexity(mean_nats: float) -> float:
    """exp of a mean cross-entropy in nats."""
    return float(np.exp(mean_nats))


def root(mean_square: float) -> float:
    """The root of a mean squared error, in the units of the target."""
    return float(np.sqrt(mean_square))
