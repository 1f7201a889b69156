"""Answers as spans of a text: the likeliest ones by a model's logits, and scores by SQuAD's rules.

Letters: B rows, L positions, D longest span, N spans.
"""

import collections
import re
import string
from collections.abc import Sequence

import jax
import jax.numpy as jnp

PUNCTUATION = str.maketrans("", "", string.punctuation)


def likeliest(start, end, context, longest: int, count: int = 1):
    """The spans with the highest sums of a start and an end logit, exactly, the highest first;
    among equal ones that which begins first, then the shorter.

    Args:
      start, end: f32[B, L] logits.
      context: i32[B, 2]: the positions of the text that answers, a half-open range.
      longest: D, the most positions in a span.
      count: N.

    Returns:
      (sums f32[B, N], first positions i32[B, N], last positions i32[B, N]); a sum is -inf where the
      text has fewer spans.
    """
    length = start.shape[1]
    longest = min(longest, length)
    at = jnp.arange(length)
    inside = (at >= context[:, :1]) & (at < context[:, 1:])
    start, end = jnp.where(inside, start, -jnp.inf), jnp.where(inside, end, -jnp.inf)
    padded = jnp.pad(end, ((0, 0), (0, longest)), constant_values=-jnp.inf)
    sums = start[:, :, None] + padded[:, at[:, None] + jnp.arange(longest)]
    best, place = jax.lax.top_k(sums.reshape(sums.shape[0], -1), min(count, length * longest))
    first = place // longest
    return best, first, first + place % longest


# ------------------------------------------------------------------------------------------ scores


def normalised(text: str) -> str:
    """An answer as SQuAD compares it: in lower case, without punctuation (ASCII's) and articles,
    and with single spaces."""
    text = text.lower().translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def scores(answer: str, right: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1 of the words) of an answer, each the best over all that are right
    (Rajpurkar et al. 2016). "" is no answer: right, with both scores 1, if and only if there is
    none (Rajpurkar et al. 2018).

    Args:
      answer: a text.
      right: answers that are right; empty if there is none.
    """
    ours = normalised(answer)
    known = [text for text in map(normalised, right) if text] or [""]
    return float(ours in known), max(_f1(ours.split(), text.split()) for text in known)


def _f1(ours: list[str], right: list[str]) -> float:
    if not ours or not right:
        return float(ours == right)
    shared = (collections.Counter(ours) & collections.Counter(right)).total()
    return 2 * shared / (len(ours) + len(right))
