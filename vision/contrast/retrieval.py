"""Retrieval, both ways: is the text of a picture among the first k that the model ranks, and the
picture of a text among the first k pictures.

All rows of the set are ranked against each other, on the host. Where several rows have the same
text, any of their pictures is right for it, and the text is right for each of them.

Letters: N rows of a set, E width of a vector, L positions.
"""

from collections.abc import Callable

import numpy as np

from common import evaluate
from common.task import Evaluator, Source

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
    """A section `evals.NAME`: `image_to_text_r1`, …, `text_to_image_r10`, the shares of rows whose
    counterpart is among the first 1, 5 and 10; `recall`, the mean of all six; and the median ranks,
    from 1. A ranking at random has R@k of k / N.

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
        return {"image": images, "text": texts, **{k: batch[k] for k in ("tokens", "valid")}}

    def finish(found):
        _, same = np.unique(found["tokens"], axis=0, return_inverse=True)
        same = same.reshape(-1)
        values = {}
        for name, one, other in (
            ("image_to_text", found["image"], found["text"]),
            ("text_to_image", found["text"], found["image"]),
        ):
            places = ranks(one, other, same)
            values |= {f"{name}_r{k}": float(np.mean(places <= k)) for k in AT}
            values[f"{name}_median_rank"] = float(np.median(places))
        recalls = [value for key, value in values.items() if not key.endswith("rank")]
        return values | {"recall": float(np.mean(recalls))}

    return Evaluator(
        every, evaluate.collecting_evaluator(source, rows, finish, batch_size=batch_size)
    )


def ranks(queries: np.ndarray, answers: np.ndarray, same: np.ndarray) -> np.ndarray:
    """i64[N]: the place, from 1, of the best right answer to each query. Wrong answers of an equal
    score come first, so that a model whose vectors are all one finds nothing.

    Args:
      queries, answers: f[N, E].
      same: i[N]; an answer is right if this is the query's.
    """
    places = []
    for start in range(0, len(queries), CHUNK):
        part = slice(start, start + CHUNK)
        scores = queries[part] @ answers.T
        right = same[part, None] == same[None, :]
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        places.append(1 + (~right & ~(scores < best)).sum(axis=1))
    return np.concatenate(places)
