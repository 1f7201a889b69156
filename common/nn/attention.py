"""Attention: to the own sequence or to a memory; positions, masks, grouped key heads, the cache
for decoding.

The mask is a boolean array (`visibility`), which the compiler computes once for all blocks; fused
kernels take the rule itself instead.

Letters: B batch, L query positions, S key positions, T positions in a cache, D width, H heads, G
key/value heads, K width of a head.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.errors import require
from common.nn import kernels, rope
from common.nn.layers import Dense, Dropout, Dtype, Names, identity, on_parts, wanted

Implementation = Literal["plain", "splash"]


# --------------------------------------------------------------------------------------- positions


def places(segments):
    """i32[B, L]: the index of each position within its segment, from 0.

    Args:
      segments: i32[B, L]; a segment is a run of equal ids.
    """
    length = segments.shape[1]
    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), segments.shape)
    first = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1
    )
    starts = jnp.where(first, index, 0)
    if isinstance(length, int):
        return index - jax.lax.cummax(starts, axis=1)
    # In an export with symbolic sizes: StableHLO has no cumulative maximum over them.
    before = index[:, :, None] >= index[:, None, :]
    return index - jnp.where(before, starts[:, None, :], 0).max(axis=2)


# --------------------------------------------------------------------------------------- attention


class Cache(NamedTuple):
    """Keys and values of the positions so far, passed in and returned updated.

    Attributes:
      keys, values: a tuple over blocks of [B, T, G, K].
      length: i32[B], the number of positions that each row holds; those beyond are never attended.
      memory_keys, memory_values: a tuple over blocks of [B, S, G, K], of a decoder's memory; () of
        a model without one, and before the first call.
      memory_segments: i32[B, S] of that memory, or None.
    """

    keys: tuple
    values: tuple
    length: jax.Array
    memory_keys: tuple = ()
    memory_values: tuple = ()
    memory_segments: jax.Array | None = None


class Memory(NamedTuple):
    """A second sequence that the positions of the first attend to: an encoder's output.

    Attributes:
      states: [B, S, D]; None if a cache has its keys and values.
      segments: i32[B, S] or None: a position sees the memory of its own segment alone. A row
        without segments is segment 1.
    """

    states: jax.Array | None
    segments: jax.Array | None = None


def visibility(length: int, causal: bool, window: int | None, segments=None):
    """The attention mask: bool[B or 1, 1, L, L], or None if every position sees every other.

    Args:
      length: L.
      causal: a position sees itself and earlier ones only.
      window: it sees only positions at a distance below this; None is no limit.
      segments: i32[B, L] or None; it sees only its own segment. Padding is just another segment.
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


def for_cudnn(length: int, causal: bool, window: int | None, segments=None) -> tuple:
    """`visibility` in cuDNN's terms: (mask, {"causal", "window"}) for `kernels.cudnn`. Causality,
    and a causal window without segments, become flags, by which the kernel skips blocks; anything
    else becomes the boolean mask."""
    window_as_flag = causal and segments is None
    mask = visibility(length, False, None if window_as_flag else window, segments)
    mask = mask if mask is None else mask.swapaxes(1, 2)
    return mask, {"causal": causal, "window": window if window_as_flag else None}


def cached_visibility(positions, length: int, window: int | None):
    """bool[B, 1, L, T]: the mask of new positions over a cache; each sees itself and earlier ones.

    Args:
      positions: i32[B, L].
      length: T.
      window: as in `visibility`.
    """
    distance = positions[:, :, None] - jnp.arange(length)
    seen = distance >= 0
    return (seen if window is None else seen & (distance < window))[:, None]


def memory_visibility(segments, memory: Memory):
    """The mask of attention to a memory: bool[B, 1, L or 1, S], or None if it hides nothing.

    Args:
      segments: i32[B, L] or None, see `Memory`.
      memory: its segments count.
    """
    if memory.segments is None:
        return None
    own = 1 if segments is None else segments[:, None, :, None]
    return memory.segments[:, None, None, :] == own


def attention_map(query, key, mask, scaled: bool = True, position_bias=None):
    """Softmax of the scaled dot products: [B, H, L, S], f32 or wider.

    Args:
      query: [B, H, L, K].
      key: [B, H, S, K].
      mask: bool, broadcastable to [B, H, L, S], or None.
      scaled: whether the products are divided by sqrt(K).
      position_bias: added to them, broadcastable to [B, H, L, S]; None is nothing.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bhlk,bhsk->bhls", query, key, preferred_element_type=dtype)
    if scaled:
        logits = logits / math.sqrt(query.shape[-1])
    if position_bias is not None:
        logits = logits + position_bias.astype(dtype)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(dtype).min / 2)
    return jax.nn.softmax(logits, axis=-1)


def plain(query, key, value, mask=None, on_map: Callable = identity, **logits):
    """Attention that materialises its map: [B, L, H, K].

    Args:
      query: [B, L, H, K].
      key, value: [B, S, G, K].
      mask: bool, broadcastable to [B, H, L, S], or None.
      on_map: applied to the map, [B, H, L, S], before it weights the values.
      logits: `scaled` and `position_bias` of `attention_map`.
    """
    repeats = query.shape[2] // key.shape[2]
    heads_first = lambda y, repeats: jnp.repeat(y.swapaxes(1, 2), repeats, axis=1)
    query = heads_first(query, 1)
    key, value = heads_first(key, repeats), heads_first(value, repeats)
    maps = on_map(attention_map(query, key, mask, **logits)).astype(value.dtype)
    return jnp.einsum("bhls,bhsk->bhlk", maps, value).swapaxes(1, 2)


# Logical names of the kernels of `Attention`.
ATTENTION_NAMES: dict[str, Names] = {
    "query": ("embed", "heads"),
    "key": ("embed", "heads"),
    "value": ("embed", "heads"),
    "out": ("heads", "embed"),
}


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017), optionally with grouped keys and values (Ainslie
    et al. 2023).

    Attributes:
      heads: H.
      kv_heads: G, which divides H; None is H.
      causal: whether a position sees only itself and earlier ones.
      window: it sees only positions at a distance below this; None is no limit.
      head_width: K; None is D / H.
      qk_norm: whether each head's query and key pass an RMSNorm over K, with a learned scale each,
        before they are rotated (Henry et al. 2020, Dehghani et al. 2023).
      norm_eps: its epsilon.
      bias: whether the four projections have biases; "qkv", only those of query, key and value.
      theta: base of rotary positions; None disables them.
      rope_scaling: how rotary wavelengths are stretched; see `common.nn.rope`.
      rotary_width: how many columns of a head are rotated, the first ones (GPT-J: Wang &
        Komatsuzaki 2021); None is all.
      dropout: rate on the attention map; None disables it. May be traced.
      scaled: whether dot products are divided by sqrt(K). If not, the query's kernel starts
        1 / sqrt(K) as large (T5: Raffel et al. 2020).
      implementation: "splash", a TPU kernel for long sequences, see `kernels`; "plain"; None is
        cuDNN's kernel for bfloat16 on NVIDIA (Ampere or later), and plain elsewhere. Dropout,
        captured attention maps, a cache, a bias by position and products that are not scaled
        always take plain; attention to a memory does not take splash.
      dtype: of the computation; None takes that of the parameters.
      kernel_init, out_init: initializers of the input projections and of the output one.
      constrain: pins the sharding of activations.
    """

    heads: int
    kv_heads: int | None = None
    causal: bool = False
    window: int | None = None
    head_width: int | None = None
    qk_norm: bool = False
    norm_eps: float = 1e-6
    bias: bool | Literal["qkv"] = True
    theta: float | None = None
    rope_scaling: tuple = ()
    rotary_width: int | None = None
    dropout: float | None = None
    scaled: bool = True
    implementation: Implementation | None = None
    dtype: Dtype | None = None
    kernel_init: Callable = nn.initializers.normal(0.02)
    out_init: Callable = nn.initializers.normal(0.02)
    constrain: Callable = identity

    @nn.compact
    def __call__(
        self, x, positions, segments, train: bool, cache=None, memory=None, position_bias=None
    ):
        """Returns ([B, L, D], cache).

        Args:
          x: [B, L, D].
          positions: i32[B, L], for rotary positions and the cache.
          segments: i32[B, L] or None: a position sees only its own segment. Not with a cache,
            except to choose in a memory.
          train: whether dropout is active.
          cache: None, or (keys, values) [B, T, G, K]: new ones are written at `positions` and see
            all earlier ones. With a memory, its (keys, values) [B, S, G, K], or () to compute and
            return them.
          memory: a `Memory` to attend to; None is x itself.
          position_bias: [B or 1, H, L, S], added to the dot products; None is nothing.
        """
        width, groups = x.shape[-1], self.heads if self.kv_heads is None else self.kv_heads
        size = width // self.heads if self.head_width is None else self.head_width
        dense = partial(Dense, dtype=self.dtype, constrain=self.constrain)

        def project(name, heads, inputs):
            names = ATTENTION_NAMES[name]
            init, bias = self.kernel_init, self.bias is not False
            if name == "query" and not self.scaled:
                init = lambda *way: self.kernel_init(*way) / math.sqrt(size)
            y = dense(heads * size, bias, kernel_init=init, names=names, name=name)(inputs)
            y = y.reshape(*inputs.shape[:2], heads, size)
            return self.constrain(y, "batch", None, "heads", None)

        known = bool(cache) and memory is not None
        query = project("query", self.heads, x)
        if known:
            key, value = cache
        else:
            inputs = x if memory is None else memory.states
            key, value = (project(name, groups, inputs) for name in ("key", "value"))
        if self.qk_norm:
            norm = partial(nn.RMSNorm, epsilon=self.norm_eps, dtype=self.dtype)
            query = norm(name="query_norm")(query)
            key = key if known else norm(name="key_norm")(key)
        if self.theta is not None:
            waves = self.theta, self.rope_scaling, self.rotary_width
            query, key = (rope.rotate(y, positions, *waves) for y in (query, key))
        if cache is not None and memory is None:
            write = jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=0))
            key = write(cache[0], key.astype(cache[0].dtype), positions[:, 0])
            value = write(cache[1], value.astype(cache[1].dtype), positions[:, 0])
        if cache is not None:
            cache = key, value
        unusual = cache is not None or position_bias is not None or not self.scaled
        dropped = self.dropout is not None and train
        fused = not (dropped or wanted(self) or self.is_initializing() or unusual)
        if fused and self.implementation == "splash" and memory is None:
            platform = getattr(self.constrain, "platform", "tpu")
            supported = platform in ("tpu", "cpu")
            require(supported, f"config.model.implementation: splash is for TPUs, not a {platform}")
            attend = partial(kernels.splash, causal=self.causal, window=self.window)
            y = self._on_parts(attend, query, key, value, segments)
        elif fused and self.implementation is None:
            y = self._by_device(query, key, value, segments, memory)
        else:
            if memory is not None:
                mask = memory_visibility(segments, memory)
            elif cache is None:
                mask = visibility(x.shape[1], self.causal, self.window, segments)
            else:
                mask = cached_visibility(positions, key.shape[1], self.window)

            def on_map(maps):
                if wanted(self):
                    self.sow("intermediates", "attention", maps)
                return Dropout(self.dropout)(maps, train)

            logits = {"scaled": self.scaled, "position_bias": position_bias}
            y = plain(query, key, value, mask, on_map, **logits)
        y = y.reshape(*x.shape[:2], self.heads * size)
        out = partial(dense, kernel_init=self.out_init, names=ATTENTION_NAMES["out"])
        return out(width, self.bias is True, name="out")(y), cache

    def _on_parts(self, attend, query, key, value, seen):
        """Runs `attend(query, key, value, seen)` on each device's rows and heads, where `seen` is
        segments [B, L], a mask [B or 1, L, 1, S] or None."""
        names = "batch", None, "heads", None
        arrays = [x for x in (query, key, value, seen) if x is not None]
        return on_parts(self.constrain, attend, names, key.shape, *arrays)

    def _by_device(self, query, key, value, segments, memory):
        """cuDNN's attention on NVIDIA if it supports these arguments, else plain attention."""
        if memory is not None:
            mask = memory_visibility(segments, memory)
            default, flags = partial(plain, mask=mask), {"causal": False, "window": None}
            mask = mask if mask is None else mask.swapaxes(1, 2)
        else:
            rule = query.shape[1], self.causal, self.window, segments
            default = partial(plain, mask=visibility(*rule))
            mask, flags = for_cudnn(*rule)
        if not kernels.cudnn_takes(query, key, value, mask, **flags):
            return default(query, key, value)
        attend = partial(kernels.cudnn, **flags)
        cuda = lambda *arrays: self._on_parts(attend, *arrays, mask)
        return jax.lax.platform_dependent(query, key, value, cuda=cuda, default=default)
