"""A causal model as decoding sees it: a step, and a cache.

    step(params, cache, tokens i32[B]) -> (logits f32[B, V] of the tokens that follow, cache)

The cache is a pytree whose leaves lead with the batch: keys and values, the state of a recurrent
network, what an encoder made of a source. Decoding begins with a cache that holds a prompt without
its last token, which the first step reads. A linen module with the methods `decode` and
`empty_cache` of `lm.gpt.GPT` has such a step, recurrent networks among them.

Letters: B batch, P positions of the longest prompt, K beams, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nn.attention import Cache
from lm.decoding import checks


class Shared(NamedTuple):
    """A part of a cache that is the same for all hypotheses of a row, such as what an encoder made
    of the source: beams never reorder it.

    Attributes:
      value: a pytree whose leaves lead with the batch.
    """

    value: Any


def step_of(model: nn.Module) -> Callable:
    """The step of a model: (params, cache, tokens i32[B]) -> (logits f32[B, V], cache)."""

    def step(params, cache, tokens):
        return model.apply({"params": params}, tokens[:, None], cache, method="decode")

    return step


def prefilled(model: nn.Module, params, prompts, lengths, room: int):
    """A cache with `room` positions that holds prompts without their last tokens.

    Args:
      model: with the methods `decode` and `empty_cache`. If its cache has a `length`, the number of
        positions that each row holds, prompts are read at once, else token by token.
      params: the parameters.
      prompts: i32[B, P], padded on the right.
      lengths: i32[B].
      room: at least P.
    """
    dtype = getattr(model, "dtype", None) or jnp.result_type(*jax.tree.leaves(params))
    cache = model.empty_cache(prompts.shape[0], room, dtype)
    if hasattr(cache, "length"):
        _, cache = model.apply({"params": params}, prompts, cache, method="decode")
        return cache._replace(length=lengths - 1)
    step = step_of(model)

    def read(cache, inputs):
        place, tokens = inputs
        _, further = step(params, cache, tokens)
        kept = partial(_where, place < lengths - 1)
        return jax.tree.map(kept, further, cache), None

    places = jnp.arange(prompts.shape[1] - 1)
    return jax.lax.scan(read, cache, (places, prompts[:, :-1].T))[0]


def last_of(prompts, lengths):
    """The last token of each prompt, i32[B]."""
    return jnp.take_along_axis(prompts, lengths[:, None] - 1, axis=1)[:, 0]


def room_of(model: nn.Module, lengths, steps: int):
    """i32[B]: how many of `steps` tokens a model has positions for after prompts of these
    lengths."""
    left = checks.room(model, lengths)
    return jnp.full_like(lengths, steps) if left is None else jnp.minimum(left, steps)


def spread(tree, beams: int):
    """Each row K = `beams` times: leaves [B, ...] -> [B K, ...]."""

    def repeat(x):
        x = jnp.broadcast_to(x[:, None], (x.shape[0], beams, *x.shape[1:]))
        return x.reshape(-1, *x.shape[2:])

    return jax.tree.map(repeat, tree)


def picked(cache, parents):
    """The cache after hypotheses go on from others of their row.

    Args:
      cache: of B K rows. `Shared`, and an attention cache's keys and values of one, stay as they
        are.
      parents: i32[B, K], the beams of the same row that are continued.
    """

    def pick(x):
        if isinstance(x, Shared):
            return x
        if isinstance(x, Cache):
            own = {"keys": x.keys, "values": x.values, "length": x.length}
            return x._replace(**jax.tree.map(pick, own))
        beams = gathered(x.reshape(*parents.shape, *x.shape[1:]), parents)
        return beams.reshape(x.shape)

    return jax.tree.map(pick, cache, is_leaf=lambda x: isinstance(x, Shared | Cache))


def gathered(x, at):
    """For each row of x, [B, N, ...], its elements `at`, i32[B, M]: [B, M, ...]."""
    return jax.vmap(lambda row, at: row.at[at].get(mode="promise_in_bounds"))(x, at)


def _where(kept, new, old):
    """`new` in the rows where `kept`, bool[B]."""
    return jnp.where(kept.reshape(-1, *[1] * (new.ndim - 1)), new, old)
