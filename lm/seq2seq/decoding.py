"""Decoding by encoder-decoders: the target that a model writes for a source.

A model is a linen module with the methods `encode`, `decode` and `empty_cache` of
`lm.seq2seq.transformer.EncoderDecoder`.

Letters: B batch, S source positions, K beams, N best.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.errors import require
from common.nn.attention import Cache
from lm.decoding import beam, causal
from lm.decoding.beam import Best
from lm.decoding.rules import NONE, Rules


def check_model(model: nn.Module) -> None:
    """Raises `BadInput` unless a model can translate."""
    require(
        all(hasattr(model, name) for name in ("encode", "decode", "empty_cache")),
        f"config.model.module: {type(model).__name__} cannot translate: it has no encode, decode "
        "and empty_cache, as lm.seq2seq.transformer:EncoderDecoder has",
    )


def step_of(model: nn.Module):
    """The step of a model, as `lm.decoding.causal` has it, over the cache of `begun`."""

    def step(params, cache, tokens):
        apply = lambda *inputs, **rest: model.apply(
            {"params": params}, *inputs, **rest, method="decode"
        )
        if isinstance(cache, Cache):  # it holds what the decoder needs of the memory
            return apply(tokens[:, None], cache=cache)
        memory, own = cache
        states, segments = memory.value
        logits, own = apply(tokens[:, None], None, states, segments, cache=own)
        return logits, (memory, own)

    return step


def begun(model: nn.Module, params, source, source_segments, start, room: int):
    """The cache of a model that has read a source and written nothing, with room for `room` tokens.

    Args:
      model: see the module.
      params: the parameters.
      source, source_segments: i32[B, S].
      start: i32[B], the tokens that the decoder will read first.
      room: positions of the target.
    """
    variables = {"params": params}
    memory = model.apply(variables, source, source_segments, method="encode")
    dtype = getattr(model, "dtype", None) or jnp.result_type(*jax.tree.leaves(params))
    cache = model.empty_cache(source.shape[0], room, dtype)
    if not isinstance(cache, Cache):
        return causal.Shared((memory, source_segments)), cache
    # The first call keeps the memory's keys and values; the start is read again by the first step.
    inputs = start[:, None], None, memory, source_segments
    _, cache = model.apply(variables, *inputs, cache=cache, method="decode")
    return cache._replace(length=jnp.zeros_like(cache.length))


def translate(
    model: nn.Module,
    params,
    source,
    source_segments,
    *,
    start: int,
    end: int,
    steps: int,
    beams: int = 1,
    best: int = 1,
    length_penalty=1.0,
    rules: Rules = NONE,
) -> Best:
    """The best targets of sources; to be traced by the caller.

    Args:
      model, params: see the module.
      source: i32[B, S].
      source_segments: i32[B, S]: 1, or 0 for padding.
      start: the token that the decoder reads first.
      end: the token that ends a target.
      steps: the most tokens to write, the end included.
      beams, best, length_penalty, rules: as in `lm.decoding.beam.search`; one beam is greedy.
    """
    source, source_segments = (x.astype(jnp.int32) for x in (source, source_segments))
    first = jnp.full_like(source[:, 0], start)
    cache = begun(model, params, source, source_segments, first, steps)
    return beam.search(
        *(step_of(model), params, cache, first[:, None], jnp.ones_like(first)),
        steps=steps,
        beams=beams,
        best=best,
        length_penalty=length_penalty,
        rules=rules,
        end=end,
    )
