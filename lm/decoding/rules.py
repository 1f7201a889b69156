"""Rules that logits pass before a token is chosen: a penalty for repetition, a least length, tokens
and sequences that are forbidden, tokens that are forced.

    rules = make(repetition_penalty=1.2, forbidden=[[13], [40, 41]])
    logits = apply(rules, logits, prompt, written, step, end)

They are those of `transformers`, in its order. In sampling they act on logits, in a beam search of
two beams or more on log probabilities, as there; neither is normalized afterwards.

Letters: R rows (a hypothesis each), P positions of the prompts, V vocabulary, W tokens of the
longest forbidden sequence.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.errors import require


class Rules(NamedTuple):
    """What `make` returns: arrays, so that another value compiles nothing. None is no such rule.

    Attributes:
      repetition_penalty: f32[].
      forbidden: i32[n], tokens that are never written.
      sequences: i32[n, W], forbidden sequences of two tokens or more, on the right, behind -1.
      min_tokens: i32[].
      forced: i32[n], the first tokens of every continuation; -1 is any.
      forced_end: True or None.
    """

    repetition_penalty: jax.Array | np.ndarray | None = None
    forbidden: jax.Array | np.ndarray | None = None
    sequences: jax.Array | np.ndarray | None = None
    min_tokens: jax.Array | np.ndarray | None = None
    forced: jax.Array | np.ndarray | None = None
    forced_end: jax.Array | np.ndarray | None = None


NONE = Rules()


def make(
    *,
    repetition_penalty: float | None = None,
    min_tokens: int | None = None,
    forbidden: Sequence[Sequence[int]] = (),
    forced: Sequence[int] = (),
    forced_end: bool = False,
    end: int | None = None,
) -> Rules:
    """The rules.

    Args:
      repetition_penalty: logits of tokens that the text holds, its prompt included, are divided by
        it where positive and multiplied where negative (Keskar et al. 2019); 1 is no penalty.
      min_tokens: a text does not end before as many new tokens.
      forbidden: sequences of tokens that are never completed, from the prompt on; of one token,
        one that is never written.
      forced: the first new tokens, at no cost in a beam's score; -1 leaves the choice.
      forced_end: a row that reaches the number of tokens to write has `end` as the last of them.
      end: the token that ends a text, if one does.

    Raises:
      BadInput: if a setting is out of range, or contradicts another.
    """
    require(
        repetition_penalty is None or 0 < repetition_penalty < float("inf"),
        f"repetition-penalty: {repetition_penalty} is not a positive number",
    )
    require(min_tokens is None or min_tokens >= 0, f"min-tokens: {min_tokens} is negative")
    require(
        end is not None or not (min_tokens or forced_end),
        f"{'min-tokens' if min_tokens else 'forced-end'}: there is no token that ends a text",
    )
    require(all(len(each) for each in forbidden), "forbid: a sequence of no tokens")
    single = sorted({each[0] for each in forbidden if len(each) == 1})
    several = sorted({tuple(each) for each in forbidden if len(each) > 1})
    both = sorted({*single} & {*forced})
    require(not both, f"forced: {both} are forbidden tokens")
    longest = max(map(len, several), default=0)
    array = lambda value, dtype=np.int32: np.asarray(value, dtype)
    return Rules(
        array(repetition_penalty, np.float32) if repetition_penalty not in (None, 1) else None,
        array(single) if single else None,
        array([(*[-1] * (longest - len(each)), *each) for each in several]) if several else None,
        array(min_tokens) if min_tokens else None,
        array(forced) if len(forced) else None,
        array(True, bool) if forced_end else None,
    )


def window(rules: Rules) -> int:
    """How many tokens before a new one decide whether it completes a forbidden sequence."""
    return 0 if rules.sequences is None else rules.sequences.shape[1] - 1


def aligned(rules: Rules, prompts, lengths):
    """The prompts as `apply` takes them: on the right, behind -1; i32[B, P + W - 1].

    Args:
      rules: the rules.
      prompts: i32[B, P], padded on the right.
      lengths: i32[B].
    """
    width = prompts.shape[1] + window(rules)
    places = jnp.arange(width) - (width - lengths[:, None])
    tokens = jnp.take_along_axis(prompts, jnp.maximum(places, 0), axis=1)
    return jnp.where(places >= 0, tokens, -1)


def apply(rules: Rules, scores, prompts, written, step, end=None, final=False):
    """The logits, or log probabilities, of the next token after the rules: f32[R, V], those of
    tokens that they exclude -inf.

    Args:
      rules: the rules.
      scores: f32[R, V].
      prompts: i32[R, P], from `aligned`.
      written: i32[R, steps], the new tokens so far, and -1 behind them.
      step: their number.
      end: the token that ends a text, if one does.
      final: bool[R], or of all rows: whether no token can follow this one.
    """
    lowest = -jnp.inf
    if rules.repetition_penalty is not None:
        text, penalty = jnp.concatenate([prompts, written], axis=1), rules.repetition_penalty
        scores = jax.vmap(_penalized, (0, 0, None))(scores, text, penalty.astype(scores.dtype))
    if rules.sequences is not None:
        text, size = jnp.concatenate([prompts, written], axis=1), window(rules)
        start = prompts.shape[1] + step - size
        recent = jax.lax.dynamic_slice_in_dim(text, start, size, axis=1)[:, None]
        before, last = rules.sequences[:, :-1], rules.sequences[:, -1]
        complete = ((recent == before) | (before < 0)).all(axis=-1)  # bool[R, n]
        add = lambda row, complete: row.at[last].add(jnp.where(complete, lowest, 0))
        scores = jax.vmap(add)(scores, complete)
    tokens = jnp.arange(scores.shape[1])
    if rules.forbidden is not None:
        never = jnp.zeros(scores.shape[1], bool).at[rules.forbidden].set(True)
        scores = jnp.where(never, lowest, scores)
    if rules.min_tokens is not None:
        scores = jnp.where((tokens == end) & (step < rules.min_tokens), lowest, scores)
    if rules.forced is not None:
        forced = rules.forced[jnp.minimum(step, len(rules.forced) - 1)]
        active = (step < len(rules.forced)) & (forced >= 0)
        scores = jnp.where(active, jnp.where(tokens == forced, 0, lowest), scores)
    if rules.forced_end is not None:
        ends = jnp.where(tokens == end, 0, lowest)
        scores = jnp.where(jnp.reshape(final, (-1, 1)), ends, scores)
    return scores


def _penalized(scores, text, penalty):
    """The scores f32[V] of a row whose text is i32[T], with -1 where there is none."""
    own = scores[text]
    own = jnp.where(own < 0, own * penalty, own / penalty)
    # Tokens out of range are dropped; negative ones would count from the end.
    return scores.at[jnp.where(text < 0, len(scores), text)].set(own, mode="drop")
