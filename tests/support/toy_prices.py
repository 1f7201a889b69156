"""Prices from three numbers by a small network: a task as a newcomer writes it."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from common.data import loading
from common.evaluate import mean_evaluator
from common.sections import call
from common.task import Evaluator, Task


class Net(nn.Module):
    hidden: int = 16

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, name="out")(nn.tanh(nn.Dense(self.hidden, name="in")(x)))[:, 0]


def load(*, size: int = 100) -> dict:
    x = np.random.default_rng(0).normal(size=(size + 30, 3)).astype(np.float32)
    y = np.sin(x).sum(axis=1)
    return {
        "train": loading.from_arrays({"x": x[:size], "y": y[:size]}),
        "test": loading.from_arrays({"x": x[size:], "y": y[size:]}),
    }


def evaluator(source, terms, *, every: str = "1 epoch", batch_size: int = 10) -> Evaluator:
    return Evaluator(every, mean_evaluator(source, terms, batch_size=batch_size))


def sections(config):
    return {"model": Net, "data": load, "evals.test": evaluator}


def sources(config):
    return call(load, config["data"])


def make(config, sources, constrain) -> Task:
    model = Net(**config["model"])

    def init(key):
        return model.init(key, jnp.zeros((1, 3)))["params"], {}

    def loss(params, extra, batch, key):
        error = model.apply({"params": params}, batch["x"]) - batch["y"]
        return {"squared": (jnp.sum(batch["valid"] * error**2), batch["valid"].sum())}, extra

    def test(params, extra, batch, key):
        return loss(params, extra, batch, key)[0]

    return Task(
        init=init,
        prepare=lambda key, batch, train: batch,
        loss=loss,
        objective={"squared": 1.0},
        sources=sources,
        evaluators={"test": call(evaluator, config["evals"]["test"], sources["test"], test)},
        partition=((r"in/kernel", ("embed", "mlp")), (r"out/kernel", ("mlp", None))),
        rows_independent=True,
    )
