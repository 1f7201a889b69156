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
    """`function(images, texts, valid, rows, *scalars)` on each device's rows."""
    rows = P(axes or None)
    specs = (rows,) * 4 + (P(),) * scalars
    return jax.shard_map(function, in_specs=specs, out_specs=rows)


def softmax(images, texts, scale, valid, rows, axes: Axes = ()):
    """The mean of both directions' cross-entropies, and whether each picture finds its text.

    Args:
      images, texts: f32[B, E] of length 1; row i of one belongs to row i of the other.
      scale: f32[], the inverse temperature.
      valid: f32[B], 0 on padding rows, which are neither queries nor candidates.
      rows: u32[B], of the set: a batch that spans the end of an epoch may hold a pair twice, which
        is then no wrong answer to itself.
      axes: of the current mesh that split the batch, from `split_axes`.

    Returns:
      ((f32[] sum over rows, f32[] valid rows), the same of the accuracy of pictures to texts).
    """

    def direction(own, others, at, scale, known, copies):
        logits = _logits(own, others, scale)
        logits = jnp.where((known > 0) & ~copies, logits, jnp.finfo(logits.dtype).min)
        target = jnp.take_along_axis(logits, at[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - target, logits.argmax(axis=1) == at

    def local(images, texts, valid, rows, scale):
        gather = partial(jax.lax.all_gather, axis_name=axes, tiled=True) if axes else lambda x: x
        first = jax.lax.axis_index(axes) * len(images) if axes else 0
        at = first + jnp.arange(len(images))
        known, theirs = gather(valid), gather(rows)
        copies = (rows[:, None] == theirs) & (at[:, None] != jnp.arange(len(theirs)))
        one, hit = direction(images, gather(texts), at, scale, known, copies)
        other, _ = direction(texts, gather(images), at, scale, known, copies)
        return jnp.where(valid > 0, (one + other) / 2, 0.0), hit * valid

    if axes:
        local = _shard(local, axes, 1)
    values, hits = local(images, texts, valid, rows, scale)
    weight = valid.sum()
    return (values.sum(), weight), (hits.sum(), weight)


def sigmoid(images, texts, scale, bias, valid, rows, axes: Axes = ()):
    """The cross-entropy of every pair's own decision, whether it belongs together: (sum over all
    pairs, valid rows), so that their ratio is a sum over texts and a mean over pictures, as
    published.

    Args:
      images, texts, scale, valid, rows, axes: as in `softmax`.
      bias: f32[], added to scores, or None.
    """
    bias = jnp.zeros_like(scale) if bias is None else bias

    @jax.checkpoint  # a chunk's scores are computed again, not kept
    def chunk(images, texts, valid, rows, others_valid, others_rows, scale, bias, same):
        logits = _logits(images, texts, scale) + bias
        own = same & jnp.eye(len(images), dtype=bool)
        copies = (rows[:, None] == others_rows) & ~own
        pairs = valid[:, None] * jnp.where(copies, 0, others_valid)
        sign = jnp.where(own, 1.0, -1.0).astype(logits.dtype)
        return (pairs * jax.nn.softplus(-sign * logits)).sum(axis=1)

    def local(images, texts, valid, rows, scale, bias):
        mine, numbers = (valid, rows), (scale, bias)
        total = chunk(images, texts, *mine, *mine, *numbers, jnp.bool_(True))
        if not axes:
            return total
        count = jax.lax.axis_size(axes)
        onward = [(i, (i + 1) % count) for i in range(count)]

        def meet(carry, _):
            total, *others = carry
            texts, *theirs = (jax.lax.ppermute(x, axis_name=axes, perm=onward) for x in others)
            met = chunk(images, texts, *mine, *theirs, *numbers, jnp.bool_(False))
            return (total + met, texts, *theirs), None

        (total, *_), _ = jax.lax.scan(meet, (total, texts, valid, rows), length=count - 1)
        return total

    if axes:
        local = _shard(local, axes, 2)
    return local(images, texts, valid, rows, scale, bias).sum(), valid.sum()
