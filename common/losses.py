"""Losses and metrics as (sum, weight), so that means over any batches, padded or split, are exact.

Letters: B rows, C classes, D outputs. `valid f32[B]` weights rows: 0 on padding. A weight never
depends on the parameters. Metrics that are not means (F1, perplexity, RMSE) are computed at the
end, from float64 totals, by the functions at the bottom.
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from common.errors import brief, choice, require

# By the end of a metric's key: 1 if more is better, -1 if less is. Tasks add their own `SIGNS`.
SIGNS = dict.fromkeys(("accuracy", "f1", "matthews", "pearson", "precision", "top_5"), 1)
SIGNS |= dict.fromkeys(("loss", "perplexity", "error", "rmse", "ece", "mce", "brier"), -1)

# Of a class: NAME=NUMBER. The name may hold ',' and '=', since it ends before a number and ','.
WEIGHT = re.compile(r"\s*(.+?)\s*=\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?:,|$)")


def _check_whole(labels) -> None:
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels are {labels.dtype}{list(labels.shape)}, not whole numbers i32[B]")


def weighted(values, valid):
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


def softmax_cross_entropy(logits, labels, valid, label_smoothing=None, class_weights=None):
    """Cross-entropy with labels or with distributions over the classes.

    Args:
      logits: f32[B, C].
      labels: i32[B], or f32[B, C] whose rows sum to 1.
      valid: f32[B].
      label_smoothing: None, or the share of the target mass spread evenly over all classes; may be
        traced (Szegedy et al. 2016).
      class_weights: None, or f32[C], which multiplies the part of the loss that each class of the
        target contributes. A row then weighs as much as its label, or its mean over the
        distribution: for labels, the mean is that of `torch.nn.CrossEntropyLoss(weight=…)`.

    Returns:
      (sum f32[], weight f32[]) in nats.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if class_weights is not None:
        return _class_weighted(logits, labels, valid, label_smoothing, class_weights)
    if labels.ndim == logits.ndim:
        losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(labels * logits, axis=-1)
    else:
        _check_whole(labels)
        losses = _negative_log_likelihood(logits, labels)
    if label_smoothing is not None:
        uniform = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    return weighted(losses, valid)


def _class_weighted(logits, labels, valid, label_smoothing, class_weights):
    classes = logits.shape[-1]
    targets = jax.nn.one_hot(labels, classes) if labels.ndim < logits.ndim else labels
    row_weights = jnp.sum(class_weights * targets, axis=-1)  # exact on a TPU, unlike a product
    if label_smoothing is not None:
        targets = (1 - label_smoothing) * targets + label_smoothing / classes
    losses = -jnp.sum(class_weights * targets * jax.nn.log_softmax(logits), axis=-1)
    weights = jnp.where(valid > 0, row_weights * valid, 0)
    return weighted(losses, valid)[0], jnp.sum(weights)


def _binary_cross_entropy(logits, targets):
    return jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def sigmoid_cross_entropy(logits, targets, valid):
    """Binary cross-entropy in nats, summed over the outputs of a row.

    Args:
      logits, targets: f32[B, D]; targets lie in [0, 1].
      valid: f32[B].
    """
    losses = _binary_cross_entropy(logits.astype(jnp.float32), targets)
    return weighted(losses.sum(axis=-1), valid)


def multi_label_cross_entropy(logits, targets, valid, label_smoothing=None, class_weights=None):
    """Binary cross-entropy in nats, averaged over the classes of a row, as in
    `torch.nn.BCEWithLogitsLoss(pos_weight=class_weights)`.

    Args:
      logits: f32[B, C].
      targets: u8 or f32[B, C] in [0, 1]: 1 for each class of the row.
      valid: f32[B].
      label_smoothing: None, or e: targets become (1 - e) target + e / 2. May be traced.
      class_weights: None, or f32[C], which multiplies the loss of positives: that of a target y is
        -(w y log p + (1 - y) log(1 - p)). The weight of a row remains 1.
    """
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    if label_smoothing is not None:
        targets = (1 - label_smoothing) * targets + label_smoothing / 2
    losses = _binary_cross_entropy(logits, targets)
    if class_weights is not None:
        losses += (class_weights - 1) * targets * jax.nn.softplus(-logits)
    return weighted(losses.mean(axis=-1), valid)


def squared_error(predictions, targets, valid):
    """Squared difference, averaged over the outputs of a row. f32[B, D] each, valid f32[B]."""
    return weighted(jnp.mean((predictions - targets) ** 2, axis=-1), valid)


def absolute_error(predictions, targets, valid):
    """Absolute difference, averaged over the outputs of a row. f32[B, D] each, valid f32[B]."""
    return weighted(jnp.mean(jnp.abs(predictions - targets), axis=-1), valid)


def _rank(logits, labels):
    """i32[B]: the number of classes that rank above the label; among equal logits the lower index
    ranks higher, and NaN ranks highest. On CPU, counting is faster than argmax."""
    _check_whole(labels)
    picked = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    behind = jnp.arange(logits.shape[-1]) >= labels[:, None]
    behind = (logits < picked) | ((logits == picked) & behind)
    return logits.shape[-1] - jnp.sum(behind, axis=-1)


def accuracy(logits, labels, valid):
    """Counts rows whose label has the largest logit. logits [B, C], labels i32[B], valid f32[B]."""
    return top_k(logits, labels, valid, k=1)


def top_k(logits, labels, valid, k: int):
    """Counts rows whose label is among the k largest logits; ties go to the lower index."""
    return weighted((_rank(logits, labels) < k).astype(jnp.float32), valid)


def subset_accuracy(logits, targets, valid):
    """Counts rows whose classes are all predicted and no other: those of positive logits, that is
    of probabilities above 0.5. logits f32[B, C], targets [B, C] of 0 and 1, valid f32[B]."""
    exact = jnp.all((logits > 0) == (targets > 0), axis=-1)
    return weighted(exact.astype(jnp.float32), valid)


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


def of_labels(multi_label: bool) -> tuple[Callable, Callable]:
    """(the training loss, the metric logged beside it) for one label an example, or several."""
    one, several = (softmax_cross_entropy, accuracy), (multi_label_cross_entropy, subset_accuracy)
    return several if multi_label else one


def classification(
    *, label_smoothing: float | None = None, class_weights: str = ""
) -> tuple[float | None, str]:
    """The section `loss` of classification.

    Args:
      label_smoothing: share of each training target spread over all classes; None disables it. With
        several labels an example, the targets 1 and 0 become 1 - share / 2 and share / 2.
      class_weights: weights of the classes in the training loss; evaluation has none. "balanced"
        gives each class the same total weight: N / (K n) for one of K classes that has n of N
        examples; "cat=2,dog=0.5" names weights, 1 for other classes; "" is 1 for all. With several
        labels an example they multiply the loss of a class's positives, and "balanced" is its
        negatives / positives.
    """
    if isinstance(label_smoothing, float):
        ok = 0 <= label_smoothing < 1
        require(ok, f"config.loss.label_smoothing: {label_smoothing} is not in [0, 1)")
    return label_smoothing, class_weights


def class_weights(setting: str, source, classes: tuple[str, ...]) -> np.ndarray | None:
    """The weights f32[C] that `config.loss.class_weights` sets; None for "".

    Args:
      setting: see `classification`. Of "balanced" classes, one without training examples weighs 1,
        and K counts the others, as in scikit-learn; so does one without positives or negatives.
      source: the training set; "balanced" reads its labels i32[N], or u8[N, C] if examples have
        several.
      classes: the names of the C classes.

    Raises:
      BadInput: for a class that does not exist, or a weight that is not positive.
    """
    where = "config.loss.class_weights"
    if not setting.strip():
        return None
    require(bool(classes), f"{where}: weights are for classes, and the labels are numbers")
    weights = np.ones(len(classes), np.float32)
    if setting == "balanced":
        require(
            source.labels is not None,
            f"{where}: this set does not tell the labels of its examples (`Source.labels`); name "
            f"the weights: {brief(classes[0])[1:-1]}=2",
        )
        labels = source.labels()
        if labels.ndim == 2:
            with_class = labels.sum(axis=0, dtype=np.int64)
            ok = (with_class > 0) & (with_class < len(labels))
            balanced = (len(labels) - with_class) / np.maximum(with_class, 1)
        else:
            with_class = np.bincount(labels, minlength=len(classes))
            ok = with_class > 0
            balanced = len(labels) / (ok.sum() * np.maximum(with_class, 1))
        return np.where(ok, balanced, weights).astype(np.float32)
    pairs = WEIGHT.findall(setting)
    require(
        bool(pairs) and not WEIGHT.sub("", setting).strip(),
        f"{where}: {brief(setting)}: write 'balanced', or CLASS=NUMBER,CLASS=NUMBER",
    )
    names = [choice(f"{where}, class", name, classes) for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"{where}: class {brief(twice)} is named twice")
    for name, number in pairs:
        fits = 1e-30 <= float(number) <= 1e30
        require(fits, f"{where}: {name}={number}: a weight is in 1e-30 to 1e30")
        weights[classes.index(name)] = float(number)
    return weights


# ------------------------------------------------------------------ at the end, on float64 totals


def ratio(totals: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float | np.ndarray]:
    """{name: sum / weight}, the mean; NaN where the weight is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means = {name: np.divide(total, weight) for name, (total, weight) in totals.items()}
    return {name: float(mean) if np.ndim(mean) == 0 else mean for name, mean in means.items()}


def precision_recall_f1(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Per-class scores from a confusion matrix [C, C]; 0 where the divisor is 0, as in
    scikit-learn."""
    return _scores(np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0))


def _scores(hits, true, predicted) -> dict[str, np.ndarray]:
    def divide(a, b):
        return np.divide(a, b, out=np.zeros(np.shape(a)), where=b > 0)

    return {
        "precision": divide(hits, predicted),
        "recall": divide(hits, true),
        "f1": divide(2 * hits, true + predicted),
    }


def macro_f1(confusion: np.ndarray) -> float:
    """The mean F1 of the classes that occur among the labels or the predictions."""
    occurs = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    return float(precision_recall_f1(confusion)["f1"][occurs].mean())


def multi_label_scores(logits: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """{"precision", "recall", "f1", "average_precision": f64[K]} by class and {"micro_f1": f64[]}
    over all decisions, of examples that each have any number of K classes; 0 where the divisor is
    0, as in scikit-learn. A class is predicted if its probability is above 0.5.

    Args:
      logits: f32[N, K].
      targets: [N, K] of 0 and 1.
    """
    predicted, true = logits > 0, targets > 0
    counts = [x.sum(axis=0, dtype=np.int64) for x in (predicted & true, true, predicted)]
    by_class = _scores(*counts)
    ranked = zip(logits.T, true.T, strict=True)
    by_class["average_precision"] = np.array([average_precision(*columns) for columns in ranked])
    return by_class | {"micro_f1": _scores(*(count.sum() for count in counts))["f1"]}


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """The mean over positives of the precision at the score of each, which is the area below the
    steps of the precision-recall curve: examples of equal score are taken together. 0 without
    positives, as in scikit-learn; NaN if a score is.

    Args:
      scores: f[N].
      targets: bool[N].
    """
    if np.isnan(scores).any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(targets[order])
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # of each score
    gained = np.diff(hits[last], prepend=0)
    return float(gained @ (hits[last] / (last + 1)) / max(hits[-1], 1))


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
