"""Beam search: the likeliest continuations among those that a beam of hypotheses meets.

    best = beam.generate(model, params, tokens, lengths, steps=64, beams=4, best=2, end=end)
    best.tokens[:, 0]                                      # the best of each row

The search is that of `transformers` with `early_stopping=False`. Each step extends the K hypotheses
of a row by every token and looks at the 2 K extensions of the highest sums of log probabilities.
Those among the first K that end, with `end` or because no more may be written, are finished; the
first K that do not end go on. A finished hypothesis of n tokens, its end included and its prompt
not, has the score

    sum of log probabilities / n ** length_penalty

and a row is done once K are finished and its likeliest hypothesis, with the length that it has now,
would not score higher than the worst of them. With a positive penalty a longer one still might:
that is a heuristic. One beam is greedy decoding, and done with the first end.

Letters: B batch, P positions of the longest prompt, K beams, V vocabulary, N best.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.errors import require
from common.nn.layers import split_like
from lm.decoding import causal, checks
from lm.decoding import rules as logit_rules
from lm.decoding.rules import NONE, Rules


class Best(NamedTuple):
    """The best continuations of each row, best first.

    Attributes:
      tokens: i32[B, N, steps]; after the end of one, `end` tokens, or 0, fill it up.
      lengths: i32[B, N], the number of tokens before its end.
      scores: f32[B, N], see the module; -inf if there are less than N.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array


class _Hypotheses(NamedTuple):
    """Tokens i32[B, K, steps], -1 where there are none yet, and scores f32[B, K]."""

    tokens: jax.Array
    scores: jax.Array


class _State(NamedTuple):
    """The search after `step` tokens; `open` bool[B], whether a row is not done."""

    step: jax.Array
    last: jax.Array
    running: _Hypotheses
    finished: _Hypotheses
    open: jax.Array
    cache: object


def check(beams: int, best: int = 1, length_penalty=1.0) -> None:
    """Raises `BadInput` if a setting is out of range."""
    require(beams > 0, f"beams: {beams} is not positive")
    require(0 < best <= beams, f"best: {best} of {beams} beams; it is in [1, {beams}]")
    traced = isinstance(length_penalty, jax.core.Tracer)
    finite = traced or abs(length_penalty) < float("inf")
    require(finite, f"length-penalty: {length_penalty} is no number")


def generate(
    model: nn.Module,
    params,
    prompts,
    lengths,
    *,
    steps: int,
    beams: int,
    best: int = 1,
    length_penalty=1.0,
    rules: Rules = NONE,
    end: int | None = None,
) -> Best:
    """The best continuations of prompts, in one compiled program with a cache.

    Rows know nothing of each other. Compiled once per shapes, `model`, `steps`, `beams` and `best`.

    Args:
      model, params, prompts, lengths, steps, end: as of `lm.generate.generate`. Where lengths are
        traced, a row whose positions end before `steps` ends with them.
      beams, best, length_penalty, rules: as of `search`.

    Raises:
      BadInput: as `lm.generate.generate`.
    """
    checks.check_model(model)
    checks.check_settings(steps)
    checks.check_prompts(model, prompts, lengths, steps)
    check(beams, best, length_penalty)
    given = {"length_penalty": length_penalty, "rules": rules, "end": end}
    return _generate(model, params, prompts, lengths, steps=steps, beams=beams, best=best, **given)


@partial(jax.jit, static_argnames=("model", "steps", "beams", "best"))
def _generate(model, params, prompts, lengths, *, steps, **settings) -> Best:
    prompts, lengths = prompts.astype(jnp.int32), lengths.astype(jnp.int32)
    cache = causal.prefilled(model, params, prompts, lengths, prompts.shape[1] + steps)
    limit = causal.room_of(model, lengths, steps)
    inputs = causal.step_of(model), params, cache, prompts, lengths
    return search(*inputs, steps=steps, limit=limit, **settings)


def search(
    step,
    params,
    cache,
    prompts,
    lengths,
    *,
    steps: int,
    beams: int,
    best: int = 1,
    length_penalty=1.0,
    rules: Rules = NONE,
    end: int | None = None,
    limit=None,
) -> Best:
    """The best continuations, by any step; to be traced by the caller.

    Args:
      step, params: see `lm.decoding.causal`.
      cache: of B rows, which holds the prompts without their last tokens.
      prompts: i32[B, P], padded on the right; a decoder's begin is one of one token.
      lengths: i32[B], at least 1.
      steps: the most tokens to write.
      beams: K, the hypotheses that are continued.
      best: N, how many of the finished ones are returned.
      length_penalty: the exponent; larger favours longer texts, 0 counts log probabilities alone.
        May be traced.
      rules: what log probabilities pass; see `lm.decoding.rules.make`. With one beam they act on
        logits, as in greedy decoding.
      end: token that ends a text; None is none. May be traced.
      limit: i32[B], the most tokens of each row, at least 1; None is `steps`.
    """
    rows, like = prompts.shape[0], prompts
    limit = jnp.full(rows, steps) if limit is None else limit
    limit = split_like(limit, like)
    context = logit_rules.aligned(rules, prompts, lengths)
    context = causal.spread(split_like(context, like), beams)

    def following(logits, state):
        """Log probabilities of the next token of each hypothesis, [B, K, V]."""
        logits = split_like(logits, context)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        written = state.running.tokens.reshape(rows * beams, steps)
        final = causal.spread(state.step == limit - 1, beams)
        ruled = lambda x: logit_rules.apply(rules, x, context, written, state.step, end, final)
        if beams == 1:
            return jax.nn.log_softmax(ruled(logits)).reshape(rows, 1, -1)
        return ruled(jax.nn.log_softmax(logits)).reshape(rows, beams, -1)

    def advance(state: _State) -> _State:
        logits, cache = step(params, state.cache, state.last.reshape(-1))
        likely = following(logits, state)
        size, count = likely.shape[-1], state.step + 1
        sums = (likely + state.running.scores[:, :, None]).reshape(rows, -1)
        sums, at = jax.lax.top_k(sums, min(2 * beams, sums.shape[1]))
        parents, last = at // size, (at % size).astype(jnp.int32)
        tokens = causal.gathered(state.running.tokens, parents).at[:, :, state.step].set(last)
        ends = jnp.broadcast_to((count >= limit)[:, None], at.shape)
        ends = ends if end is None else ends | (last == end)

        first = jnp.arange(at.shape[1]) < beams
        done = ends & first & state.open[:, None]
        scores = jnp.where(done, sums / count.astype(sums.dtype) ** length_penalty, -jnp.inf)
        finished = _best(beams, state.finished, _Hypotheses(tokens, scores))

        scores, on = jax.lax.top_k(jnp.where(ends, -jnp.inf, sums), beams)
        running = _Hypotheses(causal.gathered(tokens, on), scores)
        cache = causal.picked(cache, causal.gathered(parents, on))
        least = finished.scores.min(axis=1)
        hope = scores[:, 0] / count.astype(sums.dtype) ** length_penalty
        still = (hope > least) & (count < limit)
        if beams == 1:
            still &= least == -jnp.inf
        last = causal.gathered(last, on)
        return _State(count, last, running, finished, state.open & still, cache)

    lead = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)
    wide = jax.eval_shape(step, params, cache, lengths)[0].dtype
    lead = jnp.broadcast_to(lead, (rows, beams)).astype(jnp.promote_types(wide, jnp.float32))
    blank = split_like(jnp.full((rows, beams, steps), -1, jnp.int32), like)
    last = causal.last_of(prompts, lengths)
    state = _State(
        step=jnp.zeros((), jnp.int32),
        last=causal.spread(last, beams).reshape(rows, beams),
        running=_Hypotheses(blank, split_like(lead, like)),
        finished=_Hypotheses(blank, split_like(jnp.full_like(lead, -jnp.inf), like)),
        open=split_like(jnp.ones(rows, bool), like),
        cache=causal.spread(cache, beams),
    )
    finished = jax.lax.while_loop(lambda state: state.open.any(), advance, state).finished
    return _presented(_Hypotheses(*(x[:, :best] for x in finished)), end)


def _best(beams: int, *parts: _Hypotheses) -> _Hypotheses:
    """The K best of several; of equals, the earlier."""
    tokens, scores = (jnp.concatenate(each, axis=1) for each in zip(*parts, strict=True))
    scores, at = jax.lax.top_k(scores, beams)
    return _Hypotheses(causal.gathered(tokens, at), scores)


def _presented(best: _Hypotheses, end) -> Best:
    """The hypotheses with their ends cut off."""
    ended = best.tokens < 0
    if end is not None:
        ended |= best.tokens == end
    lengths = jnp.sum(jnp.cumsum(ended, axis=-1) == 0, axis=-1, dtype=jnp.int32)
    places = jnp.arange(best.tokens.shape[-1]) < lengths[..., None]
    tokens = jnp.where(places, best.tokens, 0 if end is None else end)
    return Best(tokens, jnp.where(best.scores == -jnp.inf, 0, lengths), best.scores)
