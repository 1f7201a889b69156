"""Retrieval, both ways: is a text of a picture among the first k that the model ranks, and a
picture of a text among the first k pictures.

All pictures and texts of the set are ranked against each other, on the host. A picture with several
captions, or a text of several pictures, is ranked once, and each of its counterparts is right:
rows have the same picture if all its pixels are equal, at the size that the model sees, and the
same text if its L tokens are, so that texts that differ beyond them are one.

Letters: N rows of a set, E width of a vector, L positions, Q queries, A answers.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from common import evaluate
from common.task import Evaluator, Source
from common.tree import mix

AT = (1, 5, 10)
CHUNK = 1024  # rows ranked at a time


def evaluator(
    source: Source,
    vectors: Callable,
    *,
    split: str = "test",
    every: str = "1 epoch",
    batch_size: int = 256,
) -> Evaluator:
    """A section `evals.NAME`: `image_to_text_r1`, …, `text_to_image_r10`, the shares of pictures,
    and of texts, with a counterpart among the first 1, 5 and 10; `recall`, the mean of all six; and
    the median ranks, from 1. Where each has one counterpart, a ranking at random has R@k of k / N.

    Args:
      source: the set.
      vectors: (params, extra, batch, key) -> (images f32[B, E], texts f32[B, E]).
      split: the split to evaluate, whose rows are ranked.
      every: how often to evaluate, as a duration; the last step is always evaluated.
      batch_size: rows evaluated at a time; affects the result only by rounding.
    """
    del split  # `sources` has read it

    def rows(params, extra, batch, key):
        images, texts = vectors(params, extra, batch, key)
        picture = fingerprint(batch["image"])
        kept = {k: batch[k] for k in ("tokens", "valid")}
        return {"image": images, "text": texts, "picture": picture, **kept}

    def finish(rows):
        ids = (np.unique(rows[k], axis=0, return_inverse=True)[1] for k in ("picture", "tokens"))
        return metrics(rows["image"], rows["text"], *(each.reshape(-1) for each in ids))

    return Evaluator(
        every, evaluate.collecting_evaluator(source, rows, finish, batch_size=batch_size)
    )


def fingerprint(images):
    """u32[B, 2]: equal for equal pictures, and hardly for others.

    Args:
      images: u8[B, H, W, C].
    """
    pixels = images.reshape(len(images), -1).astype(jnp.uint32)
    place = jnp.arange(pixels.shape[1], dtype=jnp.uint32)
    sums = [mix(mix(2 * place + i) ^ pixels).sum(axis=1, dtype=jnp.uint32) for i in range(2)]
    return jnp.stack(sums, axis=1)


def metrics(images, texts, picture, text) -> dict[str, float]:
    """What `evaluator` tells of N rows.

    Args:
      images, texts: f[N, E].
      picture, text: i[N], from 0: rows of the same number have the same picture, or text.
    """
    (_, pictures), (_, sentences) = (np.unique(i, return_index=True) for i in (picture, text))
    one, other, values = images[pictures], texts[sentences], {}
    for name, places in (
        ("image_to_text", ranks(one, other, picture, text)),
        ("text_to_image", ranks(other, one, text, picture)),
    ):
        values |= {f"{name}_r{k}": float(np.mean(places <= k)) for k in AT}
        values[f"{name}_median_rank"] = float(np.median(places))
    recalls = [value for key, value in values.items() if not key.endswith("rank")]
    return values | {"recall": float(np.mean(recalls))}


def ranks(queries, answers, query: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """i64[Q]: the place, from 1, of the best right answer to each query among the wrong ones. Wrong
    answers of an equal score come first, so that a model whose vectors are all one finds nothing.

    Args:
      queries, answers: f[Q, E], f[A, E].
      query, answer: i[N], the pairs that belong together.
    """
    places = []
    for start in range(0, len(queries), CHUNK):
        scores = queries[start : start + CHUNK] @ answers.T
        right = np.zeros(scores.shape, bool)
        here = (query >= start) & (query < start + CHUNK)
        right[query[here] - start, answer[here]] = True
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        places.append(1 + (~right & ~(scores < best)).sum(axis=1))
    return np.concatenate(places)
