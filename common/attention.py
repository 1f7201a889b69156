"""Attention: positions, what sees what, grouped key heads, the cache of decoding.

What may be seen by what is one boolean mask, made once for all blocks (`visibility`).

Letters: B batch, L positions, S positions looked at, T positions of a cache, D width, H heads, G
heads of keys and values, K width of a head.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.layers import Dense, Dropout, identity, wanted

Implementation = Literal["xla", "cudnn"]
Dtype = Literal["bfloat16"]


# --------------------------------------------------------------------------------------- positions


def places(segments):
    """i32[B, L]: each position's place in its own segment, counted from 0.

    Args:
      segments: i32[B, L]; a segment is a run of equal numbers.
    """
    index = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32), segments.shape)
    first = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1
    )
    return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)


def sinusoids(positions, width: int, dtype=jnp.float32):
    """[..., D]: sines in the even columns and cosines in the odd ones (Vaswani et al. 2017).

    Args:
      positions: i32[...].
      width: D, even.
      dtype: of the result.
    """
    frequencies = 10000.0 ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
    angles = positions[..., None].astype(dtype) * frequencies
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, width)


def rotate(x, positions, theta):
    """Rotary position embedding (Su et al. 2021), pairing column i with i + K/2 as Llama does.

    Args:
      x: [B, L, H, K], K even.
      positions: i32[B, L].
      theta: the base of the wavelengths; may be traced.
    """
    half = x.shape[-1] // 2
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    frequencies = jnp.asarray(theta, dtype) ** (-jnp.arange(half, dtype=dtype) / half)
    angles = positions[:, :, None, None].astype(dtype) * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


# --------------------------------------------------------------------------------------- attention


class Cache(NamedTuple):
    """Keys and values of the positions seen so far: a value that goes in and comes out.

    Attributes:
      keys, values: a tuple over blocks of [B, T, G, K].
      length: i32[B], how many positions each row holds; what lies behind them is not looked at.
    """

    keys: tuple
    values: tuple
    length: jax.Array


def visibility(length: int, causal: bool, window: int | None, segments=None):
    """What sees what: bool[B or 1, 1, L, L], or None where everything does.

    Args:
      length: L.
      causal: a position sees itself and those in front of it.
      window: it sees only those at a distance below this.
      segments: i32[B, L] or None; it sees only its own segment. Padding is a segment like others.
    """
    distance = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    seen = None
    if causal:
        seen = (distance >= 0)[None, None]
    if window is not None:
        near = (jnp.abs(distance) < window)[None, None]
        seen = near if seen is None else seen & near
    if segments is not None:
        same = (segments[:, :, None] == segments[:, None, :])[:, None]
        seen = same if seen is None else seen & same
    return seen


def attention_map(query, key, mask, causal: bool):
    """Softmax of the scaled products: [B, H, L, S], at least f32.

    Args:
      query: [B, H, L, K].
      key: [B, H, S, K].
      mask: bool, broadcastable to [B, H, L, S], or None.
      causal: whether positions see only those in front of them.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bhlk,bhsk->bhls", query, key, preferred_element_type=dtype)
    logits = logits / math.sqrt(query.shape[-1])
    if causal:
        here = visibility(query.shape[2], True, None)
        mask = here if mask is None else mask & here
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(dtype).min / 2)
    return jax.nn.softmax(logits, axis=-1)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017), with fewer key heads if asked (Ainslie et al.
    2023).

    Attributes:
      heads: H.
      kv_heads: G, which divides H; None is H.
      bias: whether the four projections have biases.
      theta: base of rotary positions; None is none.
      dropout: rate on the attention map; None is none. May be traced.
      implementation: of `jax.nn.dot_product_attention`; None computes the map plainly, which is
        faster on CPU. So do dropout, and maps that are asked for.
      dtype: of the computation; None is that of the parameters.
      kernel_init, out_init: of the projections in, and of the one out.
      constrain: pins activations to a mesh.
    """

    heads: int
    kv_heads: int | None = None
    bias: bool = True
    theta: float | None = None
    dropout: float | None = None
    implementation: Implementation | None = None
    dtype: Dtype | None = None
    kernel_init: Callable = nn.initializers.normal(0.02)
    out_init: Callable = nn.initializers.normal(0.02)
    constrain: Callable = identity

    @nn.compact
    def __call__(self, x, positions, mask, causal: bool, train: bool, cache=None):
        """Returns ([B, L, D], cache).

        Args:
          x: [B, L, D].
          positions: i32[B, L], for rotary positions and the cache.
          mask: bool[B or 1, 1, L, S] or None.
          causal, train: flags.
          cache: None, or (keys, values) [B, T, G, K]: the new ones are written at `positions`, and
            the mask is over T.
        """
        width, groups = x.shape[-1], self.heads if self.kv_heads is None else self.kv_heads
        size = width // self.heads
        dense = partial(Dense, use_bias=self.bias, dtype=self.dtype, constrain=self.constrain)

        def project(name, heads):
            names = "embed", "heads"
            y = dense(heads * size, kernel_init=self.kernel_init, names=names, name=name)(x)
            y = y.reshape(*x.shape[:2], heads, size)
            return self.constrain(y, "batch", None, "heads", None)

        query, key = project("query", self.heads), project("key", groups)
        value = project("value", groups)
        if self.theta is not None:
            query, key = rotate(query, positions, self.theta), rotate(key, positions, self.theta)
        if cache is not None:
            write = jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=0))
            key = write(cache[0], key.astype(cache[0].dtype), positions[:, 0])
            value = write(cache[1], value.astype(cache[1].dtype), positions[:, 0])
            cache = key, value
        dropped = self.dropout is not None and train
        if self.implementation is None or dropped or wanted(self):
            heads_first = lambda y, repeats: jnp.repeat(y.swapaxes(1, 2), repeats, axis=1)
            query, repeats = heads_first(query, 1), self.heads // groups
            key, value = heads_first(key, repeats), heads_first(value, repeats)
            maps = attention_map(query, key, mask, causal)
            if wanted(self):
                self.sow("intermediates", "attention", maps)
            maps = Dropout(self.dropout)(maps, train).astype(value.dtype)
            y = jnp.einsum("bhls,bhsk->bhlk", maps, value).swapaxes(1, 2)
        else:
            y = jax.nn.dot_product_attention(
                query, key, value, mask=mask, is_causal=causal, implementation=self.implementation
            )
        y = y.reshape(*x.shape[:2], width)
        out = partial(dense, kernel_init=self.out_init, names=("heads", "embed"))
        return out(width, name="out")(y), cache
