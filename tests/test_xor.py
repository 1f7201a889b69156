"""XOR, the smallest problem that a linear model cannot solve, learned by a two-layer sigmoid
network."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from common import losses
from common.training import optim


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, name="out")(nn.sigmoid(nn.Dense(4, name="hidden")(x)))


def test_xor_is_learned_in_seconds():
    x = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]], jnp.float32)
    y = jnp.array([[0], [1], [1], [0]], jnp.float32)
    model = TwoLayers()
    to_steps = lambda text, where: int(text.split()[0])
    optimizer = optim.make_optimizer(1000, to_steps, {}, name="adamw", lr=0.05, schedule="constant")

    @jax.jit
    def train(key):
        params = model.init(key, x)["params"]

        def loss(params):
            total, weight = losses.sigmoid_cross_entropy(
                model.apply({"params": params}, x), y, jnp.ones(4)
            )
            return total / weight

        def step(carry, number):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params, number)
            return (jax.tree.map(jnp.add, params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(1000))
        return loss(params), model.apply({"params": params}, x)

    solved = 0
    for seed in range(5):
        loss, logits = train(jax.random.key(seed))
        solved += bool(loss < 0.05 and ((logits > 0) == (y > 0)).all())
    assert solved >= 4
