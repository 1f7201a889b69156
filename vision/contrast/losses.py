"""Contrastive losses over the global batch, on any mesh.

Both couple all rows: a picture is told from the texts of all others. `softmax` gathers the vectors
of the other side on every device, which then holds its rows of the scores (Radford et al. 2021).
`sigmoid` never has more than a chunk of them (Zhai et al. 2023): each device keeps its pictures,
and chunks of texts pass around the ring of all devices that split the batch, so that after as many
steps as there are devices every picture has met every text.

Letters: B global batch, E width of a vector, b rows of a device, n devices in the ring.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

Axes = tuple[str, ...]


def split_axes(rules) -> Axes:
    """The axes of the current mesh (`jax.set_mesh`) that split a batch; () without a mesh.

    Args:
      rules: rows (logical name, mesh axis or axes), as `config.mesh.rules`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = dict(rules).get("batch", ())
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    return tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)


def _logits(rows, columns, scale):
    """[b, B], f32 or wider: scaled products of unit vectors."""
    dtype = jnp.promote_types(rows.dtype, jnp.float32)
    return scale * jnp.einsum("ae,be->ab", rows, columns, preferred_element_type=dtype)


def _shard(function, axes: Axes, scalars: int):
    """`function(images, texts, valid, *scalars)` on each device's rows."""
    rows = P(axes or None)
    specs = (rows,) * 3 + (P(),) * scalars
    return jax.shard_map(function, in_specs=specs, out_specs=rows)


def softmax(images, texts, scale, valid, axes: Axes = ()):
    """The mean of both directions' cross-entropies, and whether each picture finds its text.

    Args:
      images, texts: f32[B, E] of length 1; row i of one belongs to row i of the other.
      scale: f32[], the inverse temperature.
      valid: f32[B], 0 on padding rows, which are neither asked for nor among the answers.
      axes: of the current mesh that split the batch, from `split_axes`.

    Returns:
      ((f32[] sum over rows, f32[] valid rows), the same of the accuracy of pictures to texts).
    """

    def direction(own, others, others_valid, at, scale):
        logits = _logits(own, others, scale)
        logits = jnp.where(others_valid > 0, logits, jnp.finfo(logits.dtype).min)
        target = jnp.take_along_axis(logits, at[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - target, logits.argmax(axis=1) == at

    def local(images, texts, valid, scale):
        gather = partial(jax.lax.all_gather, axis_name=axes, tiled=True) if axes else lambda x: x
        first = jax.lax.axis_index(axes) * len(images) if axes else 0
        at = first + jnp.arange(len(images))
        known = gather(valid)
        one, hit = direction(images, gather(texts), known, at, scale)
        other, _ = direction(texts, gather(images), known, at, scale)
        return jnp.where(valid > 0, (one + other) / 2, 0.0), hit * valid

    if axes:
        local = _shard(local, axes, 1)
    values, hits = local(images, texts, valid, scale)
    weight = valid.sum()
    return (values.sum(), weight), (hits.sum(), weight)


def sigmoid(images, texts, scale, bias, valid, axes: Axes = ()):
    """The cross-entropy of every pair's own decision, whether it belongs together: (sum over all
    pairs, valid rows), so that their ratio is a sum over texts and a mean over pictures, as
    published.

    Args:
      images, texts, scale, valid, axes: as in `softmax`.
      bias: f32[], added to scores, or None.
    """
    bias = jnp.zeros_like(scale) if bias is None else bias

    @jax.checkpoint  # a chunk's scores are computed again, not kept
    def chunk(images, texts, valid, others_valid, scale, bias, same):
        logits = _logits(images, texts, scale) + bias
        sign = jnp.where(same & jnp.eye(len(images), dtype=bool), 1.0, -1.0).astype(logits.dtype)
        pairs = valid[:, None] * others_valid[None, :]
        return (pairs * jax.nn.softplus(-sign * logits)).sum(axis=1)

    if not axes:
        values = chunk(images, texts, valid, valid, scale, bias, jnp.bool_(True))
        return values.sum(), valid.sum()

    def local(images, texts, valid, scale, bias):
        count = jax.lax.axis_size(axes)
        onward = [(i, (i + 1) % count) for i in range(count)]
        total = chunk(images, texts, valid, valid, scale, bias, jnp.bool_(True))

        def meet(carry, _):
            total, texts, others_valid = carry
            move = partial(jax.lax.ppermute, axis_name=axes, perm=onward)
            texts, others_valid = move(texts), move(others_valid)
            met = chunk(images, texts, valid, others_valid, scale, bias, jnp.bool_(False))
            return (total + met, texts, others_valid), None

        (total, _, _), _ = jax.lax.scan(meet, (total, texts, valid), length=count - 1)
        return total

    values = _shard(local, axes, 2)(images, texts, valid, scale, bias)
    return values.sum(), valid.sum()
