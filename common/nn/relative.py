"""Relative positions: a learned bias of attention's dot products for every bucket of distances
(T5: Raffel et al. 2020). Distances near 0 have a bucket each, longer ones share theirs.

Letters: B batch, L query positions, T positions of a cache, H heads, N buckets.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from common.errors import require
from common.nn.layers import looked_up


def buckets(count: int, furthest: int) -> np.ndarray:
    """i32[furthest + 1]: the bucket of each distance from 0; those beyond are as the last.

    Half of the buckets are for one distance each, and the others for ranges that widen
    geometrically up to `furthest`.

    Args:
      count: number of buckets.
      furthest: the distance from which on all are in the last bucket.
    """
    exact = count // 2
    distances = np.arange(furthest + 1)
    # In f32, as checkpoints were trained; the order of operations decides at the bounds.
    logs = np.log(np.maximum(distances, exact).astype(np.float32) / np.float32(exact))
    shares = logs / np.float32(math.log(furthest / exact))
    wide = exact + (shares * np.float32(count - exact)).astype(np.int32)
    return np.where(distances < exact, distances, np.minimum(wide, count - 1)).astype(np.int32)


class RelativePositions(nn.Module):
    """The bias of every head for the distance of a key from a query.

    Attributes:
      heads: H.
      count: N; half of them are for each direction, unless `causal`.
      furthest: the distance from which on all share a bucket.
      causal: whether later positions are never attended to, and need no buckets.
      init_std: standard deviation at initialisation. May be traced.
    """

    heads: int
    count: int
    furthest: int
    causal: bool
    init_std: float = 0.02

    def setup(self):
        """Creates `embedding` [N, H]."""
        init = nn.initializers.normal(self.init_std)
        self.embedding = self.param("embedding", init, (self.count, self.heads), jnp.float32)

    def _biases(self, distances):
        """i32[...], of a key's position minus the query's -> f32[..., H]."""
        count = self.count if self.causal else self.count // 2
        table = jnp.asarray(buckets(count, self.furthest))
        back = -distances if self.causal else jnp.abs(distances)
        numbers = table[jnp.clip(back, 0, self.furthest)]
        if not self.causal:
            numbers = numbers + count * (distances > 0)
        return looked_up(self.embedding, numbers)

    def __call__(self, length: int):
        """f32[1, H, L, L] of a sequence, also of one of several segments.

        Each distance is looked up once, and its biases are laid along a diagonal by reshaping,
        whose gradient is a sum; gathering L x L of them has a gradient that is slow to scatter.
        """
        around = 2 * length  # the distances 0, …, L - 1, then an idle one, then -(L - 1), …, -1
        index = jnp.arange(around)
        rows = self._biases(jnp.where(index < length, index, index - around)).T
        rows = jnp.broadcast_to(rows[:, None], (self.heads, length, around))
        # In rows of 2 L - 1, each begins one distance further back.
        rows = rows.reshape(self.heads, -1)[:, : length * (around - 1)]
        return rows.reshape(self.heads, length, around - 1)[None, :, :, :length]

    def at(self, positions, length: int):
        """f32[B, H, L, T] of queries at i32[B, L] over the T = `length` positions of a cache."""
        distances = jnp.arange(length) - positions[:, :, None]
        return self._biases(distances).transpose(0, 3, 1, 2)


def check(where: str, count: int, furthest: int) -> None:
    """Raises `BadInput` for numbers that are none of buckets; `where` begins their names."""
    require(
        count >= 4 and count % 4 == 0,
        f"{where}.buckets: {count} is not a positive multiple of 4, to be halved twice",
    )
    require(
        furthest > count // 2,
        f"{where}.furthest: {furthest} leaves no distances to the {count // 2} wide buckets",
    )
