"""XOR, the smallest problem that a linear model cannot solve, learned by a two-layer sigmoid
network."""

import jax
import jax.numpy as jnp
import pytest
from helpers import finish, result, start

from common import losses
from common.training import optim
from configs import xor


def test_xor_is_learned_in_seconds():
    x, y, model = jnp.asarray(xor.INPUTS), jnp.asarray(xor.LABELS), xor.TwoLayers()
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


@pytest.mark.slow
def test_it_is_a_config(tmp_path):
    finish(start("train", "--config", "configs/xor.py", "--workdir", str(tmp_path / "run")))
    found = result(tmp_path / "run")["eval"]["all"]
    assert found["accuracy"] == 1
    assert found["loss"] < 0.05
