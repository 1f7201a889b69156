"""Exact means over the steps between two lines of the log.

The compiled step adds its Terms to running sums f32[2, N]: every sum and weight in one array, as
unevaluated pairs high + low of 48 bits. They are added a step at a time, in order, and a checkpoint
between two lines keeps them, so a mean depends neither on how steps are grouped into calls nor on
where a run was cut. Not for evaluation, which adds up on the host (`common.evaluate`).

Letters: N numbers in the Terms of a step.
"""

import jax
import jax.numpy as jnp
import numpy as np

from common.task import Terms


def zeros(like: Terms) -> np.ndarray:
    """f32[2, N]: the sums of no step, for Terms of these shapes."""
    return np.zeros((2, sum(leaf.size for leaf in jax.tree.leaves(like))), np.float32)


def add(sums: jax.Array, terms: Terms) -> jax.Array:
    """Adds a step's Terms to the sums f32[2, N].

    Each addition is a TwoSum (Knuth 1969, section 4.2.2), whose error goes into the low parts;
    sums that are not finite have none.
    """
    # A barrier, so that the step computes the same bits as without sums.
    leaves = jax.lax.optimization_barrier(jax.tree.leaves(terms))
    new = jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves])
    high, low = sums
    total = high + new
    part = total - high
    low = low + ((high - (total - part)) + (new - part))
    high = total + low
    exact = jnp.isfinite(high)
    return jnp.stack([jnp.where(exact, high, total), jnp.where(exact, low - (high - total), 0)])


def totals(sums, like: Terms) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name: (sum, weight)} in float64, of sums f32[2, N] on the host."""
    high, low = np.asarray(sums, np.float64)
    leaves, form = jax.tree.flatten(like)
    parts = np.split(high + low, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(form, shaped)


def means(sums, like: Terms) -> dict[str, np.ndarray]:
    """{name: f32 mean} of sums f32[2, N] on the host; NaN where no weight has been added."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return {name: np.float32(s / w) for name, (s, w) in totals(sums, like).items()}


def to_json(sums, like: Terms) -> dict:
    """Sums f32[2, N] as JSON values, exactly."""
    return {"terms": _layout(like), "sums": np.asarray(sums).tolist()}


def from_json(saved: dict, like: Terms) -> np.ndarray:
    """The inverse of `to_json`: f32[2, N]. Zeros if nothing was saved, as in checkpoints of older
    versions, or the task's terms have changed: the next mean then begins where the run resumes."""
    if saved.get("terms") != _layout(like):
        return zeros(like)
    return np.asarray(saved["sums"], np.float32)


def _layout(like: Terms) -> dict:
    return {name: [list(s.shape), list(w.shape)] for name, (s, w) in like.items()}
