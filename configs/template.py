"""A task of your own in one file, with its config: copy it, change it, run it.

    cp configs/template.py mine.py
    python scripts/train.py --config mine.py --workdir runs/mine --config.optim.lr=0.003
    python -m common.laws --config mine.py

This one learns which of three spirals a point is on. What each function promises is in
common/README.md under "The contract", and in common/task.py.
"""

import pathlib
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
import numpy as np

from common import losses
from common.data import loading
from common.evaluate import mean_evaluator
from common.nn.layers import identity
from common.sections import call
from common.task import Evaluator, Task


def get_config(arg=""):
    return ml_collections.ConfigDict(
        {
            "task": pathlib.Path(__file__).stem,
            "optim": {"lr": 0.01},
            "train": {"batch_size": 64, "duration": "10 epochs"},
        }
    )


class Net(nn.Module):
    """f32[B, 2] -> logits f32[B, 3]. The fields are the keys of config.model."""

    width: int = 64
    constrain: Callable = identity  # pins activations to the mesh, by the names of PARTITION

    @nn.compact
    def __call__(self, points):
        x = points
        for name in ("hidden", "deeper"):
            x = self.constrain(nn.relu(nn.Dense(self.width, name=name)(x)), "batch", "mlp")
        return nn.Dense(3, name="head")(x)


# How parameters may be divided over devices: path regex -> a name per dimension.
PARTITION = ((r"(hidden|deeper)/kernel", (None, "mlp")), (r"head/kernel", ("mlp", None)))


def load(*, size: int = 3000, noise: float = 0.3) -> dict:
    """The sets, from the keys of config.data: the last sixth of the points is `test`."""
    rng, labels = np.random.default_rng(0), np.arange(size) % 3
    radius = rng.uniform(0.2, 2.0, size)
    angle = 2 * radius + labels * 2 * np.pi / 3 + noise * rng.normal(size=size)
    points = radius * np.stack([np.cos(angle), np.sin(angle)])
    arrays = {"point": points.T.astype(np.float32), "label": labels.astype(np.int32)}
    part = lambda rows: loading.from_arrays({name: a[rows] for name, a in arrays.items()})
    return {"train": part(slice(size * 5 // 6)), "test": part(slice(size * 5 // 6, None))}


def evaluator(source, terms, *, every: str = "1 epoch", batch_size: int = 256) -> Evaluator:
    """Exact means over a set, from the keys of config.evals.test."""
    return Evaluator(every, mean_evaluator(source, terms, batch_size=batch_size))


def sections(config) -> dict:
    return {"model": Net, "data": load, "evals.test": evaluator}


def sources(config) -> dict:
    return call(load, config["data"])


def make(config, sources, constrain) -> Task:
    model = Net(**config["model"], constrain=constrain)

    def init(key):
        return model.init(key, jnp.zeros((1, 2)))["params"], {}

    def terms(params, extra, batch, key):
        rows = model.apply({"params": params}, batch["point"]), batch["label"], batch["valid"]
        return {"loss": losses.softmax_cross_entropy(*rows), "accuracy": losses.accuracy(*rows)}

    return Task(
        init=init,
        prepare=lambda key, batch, train: batch,
        loss=lambda params, extra, batch, key: (terms(params, extra, batch, key), extra),
        objective={"loss": 1.0},
        sources=sources,
        evaluators={"test": call(evaluator, config["evals"]["test"], sources["test"], terms)},
        partition=PARTITION,
        rows_independent=True,
    )
