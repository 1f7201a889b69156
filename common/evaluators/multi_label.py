"""The default evaluator of classifiers whose examples have any number of classes each.

    config.evals.labels = {"kind": "common.evaluators.multi_label", "split": "test"}

Works with every task that offers `logits` for a set whose labels are u8[N, K] of 0 and 1.

Letters: B rows, N examples in the set, K classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from common import losses
from common.errors import require
from common.evaluate import collecting_evaluator
from common.task import Evaluator, Source


def evaluator(
    source: Source,
    logits: Callable,
    *,
    split: str = "test",
    every: str = "1 epoch",
    batch_size: int = 512,
    per_class: bool = False,
) -> Evaluator:
    """Logged, of the predictions that have a probability above 0.5: `micro_f1`, over all decisions;
    `macro_f1`, the mean over the K classes; `subset_accuracy`, the share of examples whose
    predictions are all right. Of the ranking: `mean_average_precision`, the mean over the classes,
    exact. `loss`: binary cross-entropy, averaged over classes. Equal to scikit-learn's `f1_score`,
    `accuracy_score` and `average_precision_score`, a class without positives counting as 0.

    The scores of all examples are held on the host: 5 N K bytes, and a sort of each class.

    Args:
      source: the set, with `label u8[K]`.
      logits: (params, extra, batch, key) -> f32[B, K], as in evaluation.
      split: split of the data set to evaluate: "test" or "train[90%:]".
      every: duration between evaluations, such as "1 epoch"; the end is always evaluated.
      batch_size: rows evaluated at a time.
      per_class: whether to also log precision, recall, F1 and average precision of every class.

    Raises:
      BadInput: if examples have one label each.
    """
    del split  # already read by the task's `sources`
    several = len(source.spec["label"].shape) == 1
    require(several, "config.evals: multi_label is for several labels an example, not for one")

    def loss(outputs, label):
        one_row = outputs[None], label[None], jnp.ones(1, jnp.float32)
        return losses.multi_label_cross_entropy(*one_row)[0]

    def rows(params, extra, batch, key):
        outputs = logits(params, extra, batch, key).astype(jnp.float32)
        own = {"logits": outputs, "loss": jax.vmap(loss)(outputs, batch["label"])}
        return own | {name: batch[name] for name in ("label", "valid")}

    def finish(rows):
        predicted, true = rows["logits"] > 0, rows["label"] > 0
        by_class = losses.multi_label_scores(rows["logits"], true)
        values = {
            "loss": float(rows["loss"].mean(dtype=np.float64)),
            "subset_accuracy": float((predicted == true).all(axis=1).mean()),
            "micro_f1": float(by_class.pop("micro_f1")),
            "macro_f1": float(by_class["f1"].mean()),
            "mean_average_precision": float(by_class["average_precision"].mean()),
        }
        named = {f"class_{name}": scores for name, scores in by_class.items()}
        return values | (named if per_class else {})

    return Evaluator(every, collecting_evaluator(source, rows, finish, batch_size=batch_size))
