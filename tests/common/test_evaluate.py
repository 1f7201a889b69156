"""Sums in float64, whatever the batches."""

import jax.numpy as jnp
import numpy as np

from common import evaluate


def test_totals_are_added_in_float64():
    term = {"x": (jnp.float32(1.0), jnp.float32(1.0))}
    totals = evaluate.add({"x": (np.float64(2**25), np.float64(0))}, term)
    assert totals["x"] == (2**25 + 1, 1)  # float32 would lose the one
    assert evaluate.add(totals, None) is totals
