"""Whether a classifier's probabilities can be trusted: are 80% of the predictions it makes with 80%
confidence right?

    config.evals.calibration = {"kind": "common.evaluators.calibration", "split": "test"}

Works with every task that offers `logits`: `vision.classify`, `lm.classify`. scripts/report.py
draws the reliability diagram from the logged `reliability`.

Letters: B rows, K classes, M bins of confidence.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from common import losses
from common.errors import require
from common.evaluate import mean_evaluator
from common.task import Evaluator, Source

MOST_BINS = 1 << 16


def evaluator(
    source: Source,
    logits: Callable,
    *,
    split: str = "test",
    every: str = "1 epoch",
    batch_size: int = 512,
    bins: int = 15,
) -> Evaluator:
    """Expected calibration error (ECE) and related measures.

    Logged: `ece`, the mean over predictions of |accuracy - confidence| of their bin (Naeini et al.
    2015; M equal bins as in Guo et al. 2017); `mce`, the largest of these; `brier`, the squared
    distance of the probabilities from the one-hot label (Brier 1950; 0 to 2); `loss`; and
    `reliability` f64[3, M]: predictions, mean confidence and accuracy of each bin, 0 where a bin is
    empty.

    Args:
      source: the set, with `label i32[]`.
      logits: (params, extra, batch, key) -> f32[B, K], as in evaluation.
      split: split of the data set to evaluate: "test" or "train[90%:]".
      every: duration between evaluations, such as "1 epoch"; the end is always evaluated.
      batch_size: rows evaluated at a time.
      bins: M, the number of equal bins of confidence.

    Raises:
      BadInput: if `bins` is not positive or too large, or the labels are not classes.
    """
    del split  # already read by the task's `sources`
    fits = 0 < bins <= MOST_BINS
    require(fits, f"config.evals: bins = {bins} is not positive, or more than {MOST_BINS:,}")
    label = source.spec["label"]
    is_class = jnp.issubdtype(label.dtype, jnp.integer) and label.shape == ()
    have = "several labels" if label.shape else "numbers"
    require(
        is_class, f"config.evals: calibration is for examples of a class each; these have {have}"
    )

    def terms(params, extra, batch, key):
        outputs, labels, valid = logits(params, extra, batch, key), batch["label"], batch["valid"]
        return bin_sums(outputs, labels, valid, bins) | {
            "loss": losses.softmax_cross_entropy(outputs, labels, valid),
            "brier": brier(outputs, labels, valid),
        }

    def finish(totals):
        table, weight = totals.pop("bins")
        return losses.ratio(totals) | summary(table, float(weight))

    return Evaluator(every, mean_evaluator(source, terms, finish, batch_size=batch_size))


def bin_sums(logits, labels, valid, bins: int) -> dict:
    """{"bins": (f32[3, M], f32[])}: rows, summed confidence and correct rows of each bin.

    Args:
      logits: f32[B, K].
      labels: i32[B].
      valid: f32[B], the weight of each row.
      bins: M; bin i holds confidences in [i / M, (i + 1) / M), the last one also 1.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    confidence, correct = probabilities.max(axis=-1), logits.argmax(axis=-1) == labels
    place = jnp.clip((confidence * bins).astype(jnp.int32), 0, bins - 1)
    inside = jax.nn.one_hot(place, bins) * valid[:, None]  # [B, M]
    rows = jnp.stack([jnp.ones_like(confidence), confidence, correct.astype(jnp.float32)])
    return {"bins": (rows @ inside, valid.sum())}


def brier(logits, labels, valid):
    """(sum f32[], weight f32[]) of the squared distance between probabilities and label."""
    distance = jax.nn.softmax(logits, axis=-1) - jax.nn.one_hot(labels, logits.shape[-1])
    return (jnp.square(distance).sum(axis=-1) * valid).sum(), valid.sum()


def summary(table: np.ndarray, weight: float) -> dict:
    """{"ece", "mce", "reliability"} from the totals of `bin_sums`, f64[3, M], of `weight` rows."""
    counts = table[0]
    means = np.divide(table[1:], counts, out=np.zeros_like(table[1:]), where=counts > 0)
    gaps = np.abs(means[1] - means[0])
    return {
        "ece": float(np.sum(counts * gaps) / weight) if weight else 0.0,
        "mce": float(gaps.max(initial=0.0)),
        "reliability": np.stack([counts, *means]),
    }
