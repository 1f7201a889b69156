"""Speculative decoding: a small model drafts tokens, and the large one checks them all in one pass
(Leviathan et al. 2023, Chen et al. 2023).

    out = speculative.generate(model, params, draft, draft_params, tokens, lengths, key, steps=64)
    out.lengths / out.passes                                   # tokens a pass of the large model

The text is that of the large model alone: the same tokens if greedy, up to rounding; samples of the
same distribution if not. A drafted token x is accepted with probability min(1, p(x) / q(x)), for
its probabilities p by the model and q by the draft; at the first that is not, a token is drawn from
the distribution in proportion to max(p - q, 0) instead, and behind the last that is, one from p.

Rows accept different numbers of tokens, so each has its own length in both caches; entries beyond
it are left over from tokens that were not accepted, are never attended, and are overwritten.

Letters: B batch, P positions of the longest prompt, A tokens drafted ahead, V vocabulary.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.errors import require
from common.nn.layers import split_like
from lm.decoding import causal, checks
from lm.decoding.sampling import probabilities


class Speculated(NamedTuple):
    """Continuations of prompts.

    Attributes:
      tokens, lengths: as of `lm.generate.Written`.
      passes: i32[B], the forward passes of the large model that each row took, without the one that
        reads the prompts.
    """

    tokens: jax.Array
    lengths: jax.Array
    passes: jax.Array


class _State(NamedTuple):
    """Attributes:
    round: number of passes so far.
    written: i32[B, steps + A + 1]; entries from `count` on are left over.
    count: i32[B], tokens of each row, its `end` included.
    going: bool[B].
    last, before: i32[B], the last token, which no cache holds, and the drafted one before it.
    cache: the model's, which holds all before `last`.
    drafting: the draft's cache, which may lack `before`, too.
    passes: i32[B].
    """

    round: jax.Array
    written: jax.Array
    count: jax.Array
    going: jax.Array
    last: jax.Array
    before: jax.Array
    cache: Any
    drafting: Any
    passes: jax.Array


def check(model: nn.Module, draft: nn.Module, ahead: int) -> None:
    """Raises `BadInput` unless one model can draft for another."""
    require(ahead > 0, f"draft-tokens: {ahead} is not positive")
    for each in (model, draft):
        checks.check_model(each)
        require(
            hasattr(each, "extend"),
            f"draft: {type(each).__name__} cannot check or draft tokens: it has no method extend, "
            "as lm.gpt:GPT has",
        )
        scaling = getattr(each, "rope_scaling", ())
        require(
            scaling[:1] not in (("dynamic",), ("longrope",)),
            f"draft: rotary positions that are stretched by the text's length {scaling[:1]} depend "
            "on how many tokens are read at once",
        )
    own, other = model.vocab_size, draft.vocab_size
    require(own == other, f"draft: its vocabulary has {other} tokens, the model's {own}")


def generate(
    model: nn.Module,
    params,
    draft: nn.Module,
    draft_params,
    prompts,
    lengths,
    key: jax.Array,
    *,
    steps: int,
    ahead: int = 4,
    temperature=None,
    top_k: int | None = None,
    top_p=None,
    min_p=None,
    end: int | None = None,
    index=None,
) -> Speculated:
    """Continues prompts as `lm.generate.generate` does, in fewer passes of the large model.

    A row's text depends on its prompt, its index, the key and `ahead` alone, and its first tokens
    not on `steps`. Compiled once per shapes, models, `steps`, `ahead` and `top_k`.

    Args:
      model, params: the large model, with the method `extend` of `lm.gpt.GPT`.
      draft, draft_params: the small one, with the same vocabulary.
      ahead: A.
      Others: as of `lm.generate.generate`. The same key draws other samples than there.

    Raises:
      BadInput: as there, or if the draft does not fit the model (`check`).
    """
    check(model, draft, ahead)
    checks.check_settings(steps, temperature, top_k, top_p, min_p)
    for each in (model, draft):
        checks.check_prompts(each, prompts, lengths, steps)
    index = jnp.arange(len(prompts)) if index is None else index
    cuts = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    sizes, models = {"steps": steps, "ahead": ahead}, (model, params, draft, draft_params)
    return _generate(*models, prompts, lengths, key, index, **sizes, **cuts, end=end)


@partial(jax.jit, static_argnames=("model", "draft", "steps", "ahead", "top_k"))
def _generate(
    model, params, draft, draft_params, prompts, lengths, key, index, *, steps, ahead, end, **cuts
) -> Speculated:
    rows, width = prompts.shape
    prompts, lengths = prompts.astype(jnp.int32), lengths.astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, split_like(index, prompts))
    spread = lambda logits: probabilities(logits, **cuts)
    read = partial(model.apply, {"params": params}, method="extend")
    propose = partial(draft.apply, {"params": draft_params}, method="extend")
    drawn = _likeliest if cuts["temperature"] is None else _drawn
    limit = jnp.minimum(*(causal.room_of(each, lengths, steps) for each in (model, draft)))

    def drafted(now, state, held):
        """(tokens i32[B, A], their distributions f32[B, A, V], the draft's cache)."""
        # One new token, or two where the draft has not read the one before.
        behind = held - state.drafting.length
        pair = jnp.stack([state.before, state.last], axis=1)
        pair = jnp.where(behind[:, None] > 0, pair, pair[:, ::-1])
        logits, cache = propose(pair, state.drafting)
        logits = jnp.take_along_axis(logits, behind[:, None, None], axis=1)[:, 0]
        tokens, shares = [], []
        for place in range(ahead):
            if place:
                logits, cache = propose(tokens[-1][:, None], cache)
                logits = logits[:, 0]
            cache = cache._replace(length=held + 1 + place)
            shares.append(spread(logits))
            tokens.append(drawn(now, place, shares[-1]))
        return jnp.stack(tokens, axis=1), jnp.stack(shares, axis=1), cache

    def advance(state: _State) -> _State:
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, state.round)
        held = lengths - 1 + state.count
        tokens, q, drafting = drafted(now, state, held)
        logits, cache = read(jnp.concatenate([state.last[:, None], tokens], axis=1), state.cache)
        p = jax.vmap(spread, 1, 1)(logits)

        chances = jax.vmap(lambda key: jax.random.uniform(key, (ahead,)))(_folded(now, ahead))
        right = chances < acceptance(p[:, :-1], q, tokens)
        accepted = jnp.sum(jnp.cumprod(right, axis=1), axis=1, dtype=jnp.int32)
        at = accepted[:, None, None]
        other = leftover(p[:, :-1], q)
        following = jnp.concatenate([other, p[:, -1:]], axis=1)
        following = jnp.take_along_axis(following, at, axis=1)[:, 0]
        next_token = drawn(now, ahead + 1, following)

        places = jnp.arange(ahead + 1)
        new = jnp.pad(tokens, ((0, 0), (0, 1)))
        new = jnp.where(places == accepted[:, None], next_token[:, None], new)
        size = jnp.minimum(accepted + 1, limit - state.count)
        ended = jnp.zeros(rows, bool)
        if end is not None:
            ends = (new == end) & (places < size[:, None])
            ended = ends.any(axis=1)
            size = jnp.where(ended, jnp.argmax(ends, axis=1).astype(jnp.int32) + 1, size)
        going = state.going
        count = jnp.where(going, state.count + size, state.count)
        put = jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=0))
        written = jnp.where(going[:, None], put(state.written, new, state.count), state.written)
        kept = lengths - 1 + count
        return _State(
            round=state.round + 1,
            written=written,
            count=count,
            going=going & ~ended & (count < limit),
            last=jnp.where(going, next_token, state.last),
            before=jnp.where(going, tokens[:, -1], state.before),
            cache=cache._replace(length=kept),
            drafting=drafting._replace(length=jnp.minimum(kept, held + ahead)),
            passes=state.passes + going,
        )

    room = width + steps + ahead + 1
    zeros = split_like(jnp.zeros(rows, jnp.int32), prompts)
    state = _State(
        round=jnp.zeros((), jnp.int32),
        written=split_like(jnp.zeros((rows, steps + ahead + 1), jnp.int32), prompts),
        count=zeros,
        going=split_like(jnp.ones(rows, bool), prompts),
        last=causal.last_of(prompts, lengths),
        before=zeros,
        cache=causal.prefilled(model, params, prompts, lengths, room),
        drafting=causal.prefilled(draft, draft_params, prompts, lengths, room),
        passes=zeros,
    )
    state = jax.lax.while_loop(lambda state: state.going.any(), advance, state)
    tokens, counts = state.written[:, :steps], state.count
    if end is not None:
        last = jnp.take_along_axis(tokens, jnp.maximum(counts - 1, 0)[:, None], axis=1)[:, 0]
        counts = counts - (last == end)
    there = jnp.arange(steps) < counts[:, None]
    tokens = jnp.where(there, tokens, 0 if end is None else end)
    return Speculated(tokens, counts, state.passes)


# ------------------------------------------------------------------------------- the distributions


def acceptance(p, q, tokens):
    """The probability with which each drafted token is accepted: min(1, p / q), f32[B, A].

    Args:
      p, q: f32[B, A, V], the distributions of the model and of the draft.
      tokens: i32[B, A], drawn from q.
    """
    of = lambda x: jnp.take_along_axis(x, tokens[..., None], axis=-1)[..., 0]
    return jnp.minimum(of(p) / of(q), 1)


def leftover(p, q):
    """The distribution of a token in place of one that was not accepted: max(p - q, 0), normalized;
    shaped as p. Where p equals q, nothing is ever refused, and it is p."""
    rest = jnp.maximum(p - q, 0)
    total = rest.sum(axis=-1, keepdims=True)
    return jnp.where(total > 0, rest / jnp.where(total > 0, total, 1), p)


def _folded(keys, number: int):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _likeliest(keys, number: int, shares):
    return jnp.argmax(shares, axis=-1).astype(jnp.int32)


def _drawn(keys, number: int, shares):
    """One token of each row's distribution f32[B, V]: i32[B]."""
    draw = jax.vmap(jax.random.categorical)
    return draw(_folded(keys, number), jnp.log(shares)).astype(jnp.int32)
