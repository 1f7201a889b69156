"""Sampling: tokens one by one from the logits of the next, after temperature, top-k, top-p and
min-p; or the likeliest.

Letters: B batch, P positions of the longest prompt, V vocabulary, k candidate tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.nn.layers import split_like
from lm.decoding import causal
from lm.decoding import rules as logit_rules
from lm.decoding.rules import NONE, Rules


class Written(NamedTuple):
    """Continuations of prompts.

    Attributes:
      tokens: i32[B, steps]; after the end of a row, `end` tokens fill it up.
      lengths: i32[B], the number of tokens before each row's end.
    """

    tokens: jax.Array
    lengths: jax.Array


def write(
    step,
    params,
    cache,
    prompts,
    lengths,
    keys,
    *,
    steps: int,
    temperature=None,
    top_k: int | None = None,
    top_p=None,
    min_p=None,
    rules: Rules = NONE,
    end=None,
    limit=None,
) -> Written:
    """Continuations by any step; to be traced by the caller.

    Args:
      step, params: see `lm.decoding.causal`.
      cache: of B rows, which holds the prompts without their last tokens: these are fed first, so
        that the first iteration is like all others.
      prompts: i32[B, P], padded on the right.
      lengths: i32[B], at least 1.
      keys: [B], a random key for each row.
      steps: the most tokens to write.
      temperature, top_k, top_p, min_p, rules, end: as in `lm.generate.generate`.
      limit: i32[B], the most tokens of each row, for `rules`; None is `steps`.
    """
    ruled = _ruled(rules, prompts, lengths, steps if limit is None else limit, end)

    def advance(carry):
        count, last, written, cache = carry
        logits, cache = step(params, cache, last)
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, count)
        logits = ruled(logits, written.tokens, count)
        token = draw(now, logits, temperature, top_k, top_p, min_p)
        going = written.lengths == count
        if end is not None:
            token = jnp.where(going, token, end)
            going &= token != end
        written = Written(written.tokens.at[:, count].set(token), written.lengths + going)
        return count + 1, token, written, cache

    def unfinished(carry):
        count, _, written, _ = carry
        return (count < steps) & (written.lengths == count).any()

    rows = prompts.shape[0]
    blank = jnp.full((rows, steps), 0 if end is None else end, jnp.int32)
    written = split_like(blank, prompts), split_like(jnp.zeros(rows, jnp.int32), prompts)
    first = 0, causal.last_of(prompts, lengths), Written(*written), cache
    return jax.lax.while_loop(unfinished, advance, first)[2]


def _ruled(rules: Rules, prompts, lengths, limit, end):
    """(logits, tokens written so far, their number) -> the logits after the rules."""
    if all(rule is None for rule in rules):
        return lambda logits, tokens, count: logits
    context = split_like(logit_rules.aligned(rules, prompts, lengths), prompts)

    def ruled(logits, tokens, count):
        so_far = jnp.where(jnp.arange(tokens.shape[1]) < count, tokens, -1)
        final = jnp.broadcast_to(count == limit - 1, lengths.shape)
        logits = split_like(logits, prompts)
        return logit_rules.apply(rules, logits, context, so_far, count, end, final)

    return ruled


def draw(keys, logits, temperature=None, top_k: int | None = None, top_p=None, min_p=None):
    """Samples one token per row, i32[B]: applies temperature, then top-k, top-p and min-p.

    Args:
      keys: [B], one per row.
      logits: f32[B, V].
      temperature, top_k, top_p, min_p: as in `lm.generate.generate`.
    """
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if temperature is None:
        return best
    logits, ids = candidates(logits, temperature, top_k, top_p, min_p)
    drawn = jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    if ids is not None:
        drawn = jnp.take_along_axis(ids, drawn[:, None], axis=1)[:, 0]
    return jnp.where(_cold(temperature), best, drawn)


def probabilities(logits, temperature=None, top_k: int | None = None, top_p=None, min_p=None):
    """The distribution that `draw` samples from, f32[B, V]; arguments as there."""
    one_hot = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
    if temperature is None:
        return one_hot
    kept, ids = candidates(logits, temperature, top_k, top_p, min_p)
    spread = jax.nn.softmax(kept, axis=-1)
    if ids is not None:
        place = lambda row, ids: jnp.zeros(logits.shape[-1], row.dtype).at[ids].set(row)
        spread = jax.vmap(place)(spread, ids)
    return jnp.where(_cold(temperature), one_hot, spread)


def candidates(logits, temperature, top_k: int | None = None, top_p=None, min_p=None):
    """(logits f32[B, k] of the tokens that may be drawn, -inf for those cut off; their ids
    i32[B, k], or None if all are there in their order)."""
    logits, ids = logits / jnp.where(_cold(temperature), 1, temperature), None
    if top_k is not None or top_p is not None:
        # Sorted by likelihood, a token is kept if those before it do not add up to top_p.
        logits, ids = jax.lax.top_k(logits, min(top_k or logits.shape[-1], logits.shape[-1]))
    if top_p is not None:
        shares = jax.nn.softmax(logits, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        logits = jnp.where(before < top_p, logits, -jnp.inf)
    if min_p is not None:
        least = logits.max(axis=-1, keepdims=True) + jnp.log(min_p)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits, ids


def _cold(temperature):
    return jnp.asarray(temperature) <= 0
