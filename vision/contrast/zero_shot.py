"""Classes by words: a picture belongs to the class whose name, in the sentences of `prompts`, is
nearest to it. Nothing is learned of the set (Radford et al. 2021).

Letters: N rows of a set, B batch, K classes, P prompts, E width of a vector.
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from common import evaluate, inputs, losses
from common.errors import brief, require
from common.task import Evaluator, Source

CHUNK = 256  # sentences encoded at a time
WORDNET = re.compile(r"n\d{8}", re.A)  # ids of ImageNet's classes, which are no words


def evaluator(
    source: Source,
    vectors: Callable,
    words: Callable,
    rows_of: Callable,
    *,
    split: str = "test",
    every: str = "1 epoch",
    batch_size: int = 256,
    data: str = "",
    names: str = "",
    prompts: tuple[str, ...] = ("a photo of a {}.",),
) -> Evaluator:
    """A section `evals.NAME`, of `kind` "vision.contrast.zero_shot": accuracy, top-5 accuracy where
    there are more than five classes, and macro F1.

    Args:
      source: the set, with `label` i32[].
      vectors: (params, extra, batch, key) -> (images f32[B, E], texts or None).
      words: (params, extra, rows) -> f32[n, E] of texts.
      rows_of: texts -> {name: np[n, ...]}, as `words` takes them.
      split: the split to evaluate.
      every: how often to evaluate, as a duration; the last step is always evaluated.
      batch_size: rows evaluated at a time; affects the result only by rounding.
      data: a set of labelled pictures, as `config.data.name` of vision.classify; "" is the run's
        own, whose table then has a column `label`.
      names: a file of the classes' names, one a line in the order of the labels, in place of the
        set's own; ImageNet's are WordNet ids, which no text tower understands.
      prompts: sentences with {} in place of a class's name; the vectors of several are averaged.
    """
    del split, data  # `sources` has read them
    classes = source.facts.image.classes
    require(
        "label" in source.spec and bool(classes),
        "config.evals: zero-shot classification needs a set with classes: name one by `data`, or "
        "give the run's own a column `label`",
    )
    path, names = names, named_by(names) if names else classes
    require(
        len(names) == len(classes),
        f"config.evals: names: {inputs.shown(path)} has {len(names):,} lines, and the set "
        f"{len(classes):,} classes",
    )
    ids = [name for name in names if WORDNET.fullmatch(name)]
    require(
        not ids,
        f"config.evals: the class {brief(ids and ids[0])} is a WordNet id and no word: set `names` "
        "to a file of the classes' names, one a line in the order of the labels",
    )
    for prompt in prompts:
        require(prompt.count("{}") == 1, f"config.evals: the prompt {prompt!r} has no one '{{}}'")
    require(bool(prompts), "config.evals: zero-shot classification needs a prompt")
    spoken = [name.replace("_", " ") for name in names]
    rows = rows_of([prompt.replace("{}", name) for name in spoken for prompt in prompts])
    encode = jax.jit(words)

    def classes_of(context) -> jax.Array:
        """f32[K, E], of length 1. Every process computes all of them."""
        count, parts = len(names) * len(prompts), []
        for start in range(0, count, CHUNK):
            at = np.minimum(np.arange(start, start + min(CHUNK, count)), count - 1)
            part = {name: array[at] for name, array in rows.items()}
            parts.append(encode(context.params, context.extra, part))
        sentences = jnp.concatenate(parts)[:count].reshape(len(names), len(prompts), -1)
        mean = sentences.mean(axis=1)
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=1, keepdims=True), 1e-12)

    def terms(params, extra, batch, key):
        extra, classes = extra
        logits = vectors(params, extra, batch, key)[0] @ classes.T
        scored = logits, batch["label"], batch["valid"]
        metrics = {
            "accuracy": losses.accuracy(*scored),
            "confusion": losses.confusion_matrix(*scored),
        }
        return metrics | ({"top_5": losses.top_k(*scored, k=5)} if len(names) > 5 else {})

    def finish(totals):
        confusion = totals.pop("confusion")[0]
        return losses.ratio(totals) | {"f1": losses.macro_f1(confusion)}

    means = evaluate.mean_evaluator(source, terms, finish, batch_size=batch_size)
    return Evaluator(
        every, lambda context: means(context._replace(extra=(context.extra, classes_of(context))))
    )


def named_by(path: str) -> tuple[str, ...]:
    """The names of classes in a file, one a line. Raises `BadInput` if it cannot be read, or a line
    is empty."""
    where = "config.evals: names"
    lines = tuple(line.strip() for line in inputs.text(where, path).splitlines())
    shown = f"{where}: {inputs.shown(path)}"
    require(bool(lines), f"{shown} is empty")
    require(all(lines), f"{shown}: line {([*lines, '']).index('') + 1} is empty")
    return lines
