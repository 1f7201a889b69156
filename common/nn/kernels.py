"""Attention by the chips' own kernels, which never have the map in memory: cuDNN's on NVIDIA, and
Pallas' splash attention on TPUs.

Letters as in `common.nn.attention`.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp

from common.errors import require

TILE = 128  # lanes of a TPU, which blocks of positions are multiples of


def cudnn(query, key, value, mask=None, *, causal: bool, window: int | None, by: str = "cudnn"):
    """Attention by cuDNN, for programs on NVIDIA (Ampere or later).

    Args:
      query: bf16[B, L, H, K].
      key, value: bf16[B, L, G, K].
      mask: bool[B or 1, L, 1, L]: what is seen of what `causal` and `window` let be seen; None is
        all of it.
      causal, window: as in `common.nn.attention.visibility`. A window goes with causal alone.
      by: "xla" computes the same on any device, which tests need.

    Returns:
      bf16[B, L, H, K].
    """
    return jax.nn.dot_product_attention(
        *(query, key, value),
        mask=None if mask is None else mask.swapaxes(1, 2),
        is_causal=causal,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=by,
    )


def cudnn_takes(query, key, value, mask=None, *, causal: bool, window: int | None) -> bool:
    """Whether cuDNN is here and has a kernel for arguments of these shapes and dtypes, forward and
    backward; asked of the GPU that is here, or of any if there is none."""
    if query.dtype != jnp.bfloat16:
        return False
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (query, key, value, mask))
    return _cudnn_takes(*shapes, causal, window)


@functools.cache
def _cudnn_takes(query, key, value, mask, causal: bool, window: int | None) -> bool:
    gpus = [device for device in jax.devices() if device.platform == "gpu"]
    if any(re.fullmatch(r"[1-7]\.\d", device.compute_capability) for device in gpus):
        return False  # older than Ampere
    arrays = [x and jax.ShapeDtypeStruct(*x) for x in (query, key, value, mask)]

    def both_ways(query, key, value, mask):
        attend = functools.partial(cudnn, mask=mask, causal=causal, window=window)
        return jax.vjp(attend, query, key, value)[0]

    try:
        jax.eval_shape(both_ways, *arrays)
    except (RuntimeError, NotImplementedError, ValueError):  # which jax raises where it has none
        return False
    return True


def splash(query, key, value, segments=None, *, causal: bool, window: int | None):
    """Attention by jax's Pallas kernel for TPUs, which passes over blocks in which nothing is seen.
    On a CPU it is interpreted, slowly.

    Args:
      query: [B, L, H, K].
      key, value: [B, L, G, K].
      segments: i32[B, L] or None: what has another number is not seen.
      causal, window: as in `common.nn.attention.visibility`.

    Returns:
      [B, L, H, K].

    Raises:
      BadInput: unless 128 divides L.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    length = query.shape[1]
    where = "config.model.implementation: splash"
    require(length % TILE == 0, f"{where} needs a multiple of {TILE} positions, not {length}")
    sides = None if window is None else window - 1
    seen = kernels.FullMask((length, length))
    if causal or window is not None:
        seen = kernels.LocalMask((length, length), (sides, 0 if causal else sides), 0)
    block = next(size for size in (512, 256, TILE) if length % size == 0)
    names = "q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq"
    sizes = kernels.BlockSizes(**{f"block_{name}": block for name in names})
    heads_first = lambda y: y.swapaxes(1, 2)
    query = query / math.sqrt(query.shape[-1])

    def run(query, key, value, segments, interpret: bool):
        attend = kernels.make_splash_mha(
            mask=kernels.MultiHeadMask([seen] * query.shape[1]),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        ids = None if segments is None else kernels.SegmentIds(q=segments, kv=segments)
        return jax.vmap(attend)(query, key, value, ids)

    arrays = *map(heads_first, (query, key, value)), segments
    on = lambda interpret: functools.partial(run, interpret=interpret)
    return heads_first(jax.lax.platform_dependent(*arrays, cpu=on(True), default=on(False)))
