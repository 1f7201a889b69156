"""Masked-LM corruption, on the device, inside the step: tokens, whole words or spans.

A fixed number of positions is picked in every row, so that a model computes only their logits. A
row's randomness comes from its own key: it does not depend on the batch.

Letters: B batch, L positions, P picked positions, V vocabulary.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from common.errors import require
from lm.data.tokenizer import TextFacts

SPAN_STOP = 0.2  # SpanBERT's geometric lengths: the probability that a span ends after a word,
SPAN_MOST = 10  # conditioned on at most this many words; their mean is 3.8 words


class Masked(NamedTuple):
    """Rows with some tokens hidden.

    Attributes:
      tokens: i32[B, L], corrupted.
      picked: i32[B, P], the positions to predict.
      targets: i32[B, P], the original tokens at those positions.
      weights: f32[B, P]: 0 where a row had fewer positions to pick.
    """

    tokens: jax.Array
    picked: jax.Array
    targets: jax.Array
    weights: jax.Array


def predictions(rate: float, length: int) -> int:
    """P, the number of positions picked in a row of L = `length` tokens, unused ones included."""
    return max(1, round(rate * length))


def make_masking(
    facts: TextFacts,
    length: int,
    *,
    policy: Literal["token", "word", "span"] = "token",
    rate: float = 0.15,
    mask: float = 0.8,
    random: float = 0.1,
) -> Callable:
    """The section `masking`: a function (keys [B], tokens i32[B, L], segments i32[B, L]) -> Masked.

    Special tokens, those that users added included, and padding (segment 0) are never picked.

    Args:
      facts: of the tokenizer.
      length: L.
      policy: what is picked as a unit: "token" (Devlin et al. 2019); "word", with all its pieces
        (their whole-word masking); or "span", a geometric number of whole words, hidden together
        (Joshi et al. 2020). A word that would exceed the number of tokens to pick in its row is
        left out, and a span ends before it.
      rate: share of a row's tokens that are picked for prediction.
      mask: share of the picked tokens that the mask token replaces.
      random: share of the picked tokens that random tokens replace; those that neither `mask` nor
        `random` replaces stay as they are.

    Raises:
      BadInput: for a share out of range, or a tokenizer without a mask token.
    """
    require(0 < rate < 1, f"config.masking.rate: {rate} is not between 0 and 1")
    valid = 0 <= mask <= 1 and 0 <= random <= 1 and mask + random <= 1
    require(
        valid,
        f"config.masking: mask {mask} and random {random} must be shares that add up to at most 1",
    )
    special = facts.special
    require(
        special["mask"] is not None,
        "config.data.tokenizer: it has no mask token; use 'wordpiece'",
    )
    most = predictions(rate, length)
    ordinary = jnp.ones(facts.vocab_size, bool).at[jnp.array(facts.special_ids)].set(False)
    continues = jnp.asarray(facts.continues)

    def mask_row(key, tokens, segments):
        keys = jax.random.split(key, 4)
        candidate = (segments > 0) & ordinary[tokens]
        unit = jnp.arange(length)
        if policy != "token":
            # A word begins at a token that continues none, after a token that is no candidate, and
            # at the start of a document.
            before = lambda x, first: jnp.concatenate([jnp.full(1, first, x.dtype), x[:-1]])
            begins = ~continues[tokens] | ~before(candidate, False)
            begins |= segments != before(segments, -1)
            unit = jnp.cumsum(begins) - 1
        word = unit
        if policy == "span":
            unit = _spans(keys[3], length)[word]
        number = jnp.clip(jnp.round(rate * candidate.sum()).astype(jnp.int32), 1, most)
        priority = jax.random.uniform(keys[0], (length,))[unit]
        # Tokens of a unit share a priority, so they stay together; ties keep their order.
        _, order = jax.lax.top_k(jnp.where(candidate, -priority, -2.0), min(most + 1, length))
        words = jnp.where(candidate[order], word[order], -1)
        rank = jnp.arange(len(order))
        cut = words[jnp.minimum(number, len(order) - 1)]  # the word that does not fit
        cut = jnp.where(number < len(order), cut, -2)
        fits = (rank < number) & (words >= 0) & (words != cut)
        # A first word that is too long by itself is cut: else the row would have no targets.
        fits |= (rank < number) & (words >= 0) & (words == words[0]) & (words[0] == cut)
        picked, weights = order[:most], fits[:most].astype(jnp.float32)
        targets = tokens[picked]
        coin = jax.random.uniform(keys[1], (length,))
        coin = coin[unit[picked] if policy == "span" else picked]
        anything = jax.random.randint(keys[2], (most,), 0, facts.vocab_size)
        shown = jnp.where(coin < mask + random, anything, targets)
        shown = jnp.where(coin < mask, special["mask"], shown)
        shown = jnp.where(weights > 0, shown, targets)
        return tokens.at[picked].set(shown), picked, targets, weights

    def masked(keys, tokens, segments) -> Masked:
        tokens, segments = tokens.astype(jnp.int32), segments.astype(jnp.int32)
        return Masked(*jax.vmap(mask_row)(keys, tokens, segments))

    return masked


def _spans(key, length: int):
    """i32[L]: for word w of a row, the index of its span in a random partition."""
    longest = (1 - SPAN_STOP) ** SPAN_MOST
    uniform = jax.random.uniform(key, (length,), minval=longest)
    lengths = jnp.ceil(jnp.log(uniform) / math.log(1 - SPAN_STOP))
    ends = jnp.cumsum(jnp.clip(lengths, 1, SPAN_MOST).astype(jnp.int32))
    find = partial(jnp.searchsorted, side="right", method="compare_all")
    return find(ends, jnp.arange(length)).astype(jnp.int32)
