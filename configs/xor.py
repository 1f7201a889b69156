"""XOR, the smallest problem that a linear model cannot solve, by the two-layer sigmoid network of
Rumelhart, Hinton & Williams 1986: learned in a second or two, with most seeds."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
import numpy as np

from common import losses
from common.data import loading
from common.errors import choice, require
from common.evaluate import mean_evaluator
from common.nn.layers import identity
from common.sections import call
from common.task import Evaluator, Task

INPUTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
LABELS = np.array([[0], [1], [1], [0]], np.float32)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """There is one variant."""
    choice("--config xor.py", arg, ("",))
    return ml_collections.ConfigDict(
        {
            "task": "configs.xor",
            "seed": 0,
            "evals": {"all": {"every": "20%"}},
            "optim": {"name": "adamw", "lr": 0.05, "schedule": "constant", "warmup": "0 steps"},
            "train": {"batch_size": 4, "duration": "1000 steps", "log_every": "200 steps"},
            "checkpoint": {"every": "50%"},
        }
    )


class TwoLayers(nn.Module):
    """f32[B, 2] -> logits f32[B, 1].

    Attributes:
      width: of the hidden layer.
      constrain: pins activations to a mesh.
    """

    width: int = 4
    constrain: Callable = identity

    @nn.compact
    def __call__(self, x):
        hidden = nn.sigmoid(nn.Dense(self.width, name="hidden")(x))
        return nn.Dense(1, name="out")(self.constrain(hidden, "batch", None))


PARTITION = ((r"(hidden|out)/kernel", (None, None)),)


def load(*, copies: int = 1) -> dict:
    """The four examples, to learn and to evaluate.

    Args:
      copies: how often each of them is there.
    """
    require(copies > 0, f"config.data.copies: {copies} is not positive")
    arrays = {"x": np.tile(INPUTS, (copies, 1)), "y": np.tile(LABELS, (copies, 1))}
    source = loading.from_arrays(arrays)
    return {"train": source, "all": source}


def evaluator(source, terms, *, every: str = "20%", batch_size: int = 4) -> Evaluator:
    """A section `evals.all`: loss and accuracy.

    Args:
      every: how often to evaluate, as a duration.
      batch_size: rows evaluated at a time.
    """
    return Evaluator(every, mean_evaluator(source, terms, batch_size=batch_size))


def sections(config) -> dict:
    """{section: the function that it feeds}; see `common.task`."""
    return {"model": TwoLayers, "data": load, "evals.all": evaluator}


def sources(config) -> dict:
    """The four examples, twice."""
    return call(load, config["data"])


def make(config, sources, constrain) -> Task:
    """The task; see `common.task`."""
    model = TwoLayers(**config["model"], constrain=constrain)

    def init(key):
        return model.init(key, jnp.zeros((1, 2)))["params"], {}

    def terms(params, extra, batch, key):
        logits, valid = model.apply({"params": params}, batch["x"]), batch["valid"]
        right = (logits > 0) == (batch["y"] > 0)
        return {
            "loss": losses.sigmoid_cross_entropy(logits, batch["y"], valid),
            "accuracy": ((right[:, 0] * valid).sum(), valid.sum()),
        }

    return Task(
        init=init,
        prepare=lambda key, batch, train: batch,
        loss=lambda params, extra, batch, key: (terms(params, extra, batch, key), extra),
        objective={"loss": 1.0},
        sources=sources,
        evaluators={"all": call(evaluator, config["evals"]["all"], sources["all"], terms)},
        partition=PARTITION,
        rows_independent=True,
    )
