"""Dropout with a traced rate; pooling against linen's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.nn.layers import Dropout, max_pool


@pytest.mark.parametrize("side", [4, 5, 7])
def test_max_pool_is_linens(side):
    x = jax.random.normal(jax.random.key(0), (2, side, side + 1, 3))
    np.testing.assert_array_equal(max_pool(x), nn.max_pool(x, (2, 2), (2, 2)))


def test_dropout_keeps_the_mean_and_drops_the_rate():
    x = jnp.ones((200, 200))
    run = jax.jit(
        lambda rate: Dropout(rate).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    )
    for rate in (0.0, 0.3, 0.9):
        y = run(rate)
        assert float((y == 0).mean()) == pytest.approx(rate, abs=0.01)
        assert float(y.mean()) == pytest.approx(1.0, abs=0.03)
    assert jnp.isfinite(run(1.0)).all()


def test_no_dropout_needs_no_key():
    x = jnp.ones(3)
    assert Dropout(None).apply({}, x, train=True) is x
    assert Dropout(0.5).apply({}, x, train=False) is x
