"""Fused attention kernels, which never materialise the attention map: cuDNN's on NVIDIA, Pallas
splash attention on TPUs.

Letters as in `common.nn.attention`.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp

from common.errors import require

TILE = 128  # lanes of a TPU; blocks of positions are multiples of it


def cudnn(query, key, value, mask=None, *, causal: bool, window: int | None, by: str = "cudnn"):
    """cuDNN attention, for NVIDIA GPUs (Ampere or later).

    Args:
      query: bf16[B, L, H, K].
      key, value: bf16[B, L, G, K].
      mask: bool[B or 1, L, 1, L], on top of `causal` and `window`; None hides nothing more.
      causal, window: as in `common.nn.attention.visibility`. A window requires causal.
      by: "xla" computes the same on any device, for tests.

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
    """Whether cuDNN is available and has a kernel for these shapes and dtypes, forward and
    backward. Checked for the GPU of this host; without one, for GPUs in general."""
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

    def forward_and_backward(query, key, value, mask):
        attend = functools.partial(cudnn, mask=mask, causal=causal, window=window)
        return jax.vjp(attend, query, key, value)[0]

    try:
        jax.eval_shape(forward_and_backward, *arrays)
    except (RuntimeError, NotImplementedError, ValueError):  # how jax reports that it has none
        return False
    return True


def splash(query, key, value, segments=None, *, causal: bool, window: int | None):
    """JAX's Pallas splash attention for TPUs, which skips fully masked blocks. On CPU it runs in
    interpret mode, slowly.

    Args:
      query: [B, L, H, K].
      key, value: [B, L, G, K].
      segments: i32[B, L] or None: a position sees only its own segment.
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
    reach = None if window is None else window - 1
    mask = kernels.FullMask((length, length))
    if causal or window is not None:
        mask = kernels.LocalMask((length, length), (reach, 0 if causal else reach), 0)
    block = next(size for size in (512, 256, TILE) if length % size == 0)
    names = "q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq"
    sizes = kernels.BlockSizes(**{f"block_{name}": block for name in names})
    heads_first = lambda y: y.swapaxes(1, 2)
    query = query / math.sqrt(query.shape[-1])

    def run(query, key, value, segments, interpret: bool):
        attend = kernels.make_splash_mha(
            mask=kernels.MultiHeadMask([mask] * query.shape[1]),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        ids = None if segments is None else kernels.SegmentIds(q=segments, kv=segments)
        return jax.vmap(attend)(query, key, value, ids)

    arrays = *map(heads_first, (query, key, value)), segments
    kernel = lambda interpret: functools.partial(run, interpret=interpret)
    return heads_first(jax.lax.platform_dependent(*arrays, cpu=kernel(True), default=kernel(False)))
