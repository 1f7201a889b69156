"""A nasty little task that keeps the contract honest.

Two loss terms whose weights differ (half of the rows have no second target), batch norm, a
coefficient of the objective that is traced, dropout with a traced rate, random preparation in
training and, keyed by row, in evaluation, an auxiliary set that only an evaluator reads, an
evaluator that returns text and an array, and parameters of a file of its own.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import losses, tree
from common.data import loading
from common.evaluate import mean_evaluator
from common.nn.layers import Dense, Dropout, identity
from common.sections import call
from common.task import Evaluator, Task, row_keys

CLASSES = 3


class Net(nn.Module):
    """Dense, batch norm, dropout, two heads."""

    width: int = 16
    dropout: float | None = 0.1
    constrain: Callable = identity

    @nn.compact
    def __call__(self, x, train: bool = False):
        names = ("embed", "mlp")
        x = Dense(self.width, names=names, constrain=self.constrain, name="hidden")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        x = self.constrain(nn.relu(x), "batch", "mlp")
        x = Dropout(self.dropout)(x, train)
        return nn.Dense(CLASSES, name="label")(x), nn.Dense(1, name="value")(x)


PARTITION = (
    (r"hidden/kernel", ("embed", "mlp")),
    (r"(label|value)/kernel", ("mlp", None)),
)


def load(*, size: int = 203, resident: bool = True, workers: int = 0, file: str = "") -> dict:
    """The section `data`; `file`, an .npy of x, stands in for the training set's own."""

    def make(seed, n):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, 8)).astype(np.float32)
        label = (np.argmax(x[:, :CLASSES], axis=1)).astype(np.int32)
        value = (x[:, :1] * x[:, 1:2]).astype(np.float32)
        known = (rng.random(n) < 0.5).astype(np.float32)
        return {"x": x, "label": label, "value": value, "known": known}

    train = make(0, size)
    if file:
        train["x"] = np.load(file)
    return {
        "train": loading.from_arrays(train, resident),
        "test": loading.from_arrays(make(1, 101), False),
        "auxiliary": loading.from_arrays(make(2, 37), False),
        "workers": workers,
    }


def weights(*, value: float = 0.5) -> float:
    """The section `loss`: the coefficient of the second term."""
    return value


def scores(source, outputs, *, every: str = "5 steps", batch_size: int = 32) -> Evaluator:
    """The section `evals.scores`."""

    def terms(params, extra, batch, key):
        label, value = outputs(params, extra, batch, key)
        return {
            "loss": losses.softmax_cross_entropy(label, batch["label"], batch["valid"]),
            "accuracy": losses.accuracy(label, batch["label"], batch["valid"]),
            "squared": losses.squared_error(value, batch["value"], batch["valid"] * batch["known"]),
        }

    def finish(totals):
        means = losses.ratio(totals)
        return means | {"rmse": losses.root(means.pop("squared"))}

    return Evaluator(every, mean_evaluator(source, terms, finish, batch_size=batch_size))


def words(source, outputs, *, every: str = "10 steps", batch_size: int = 16) -> Evaluator:
    """The section `evals.words`: text and an array, from the auxiliary set."""

    def terms(params, extra, batch, key):
        label, _ = outputs(params, extra, batch, key)
        return {"confusion": losses.confusion_matrix(label, batch["label"], batch["valid"])}

    def finish(totals):
        confusion = totals["confusion"][0]
        return {"text": f"{int(np.trace(confusion))} of {int(confusion.sum())}", "table": confusion}

    return Evaluator(every, mean_evaluator(source, terms, finish, batch_size=batch_size))


def pretrained(path: str) -> dict:
    """Parameters of an .npz whose names are their paths."""
    return tree.unflatten(dict(np.load(path)))


def sections(config) -> dict[str, Callable]:
    return {
        "model": Net,
        "data": load,
        "loss": weights,
        "evals.scores": scores,
        "evals.words": words,
    }


def sources(config) -> dict:
    found = call(load, config["data"])
    found.pop("workers")
    return found


def make(config, sources, constrain) -> Task:
    model = Net(**config["model"], constrain=constrain)
    coefficient = call(weights, config["loss"])

    def init(key):
        variables = dict(model.init(key, jnp.zeros((1, 8))))
        return variables.pop("params"), variables

    def prepare(key, batch, train):
        noise = (
            jax.random.normal(key, batch["x"].shape)
            if train
            else jax.vmap(lambda k: jax.random.normal(k, (8,)))(row_keys(key, batch))
        )
        return batch | {"x": batch["x"] + 0.1 * noise}

    def loss(params, extra, batch, key):
        (label, value), extra = model.apply(
            {"params": params, **extra},
            batch["x"],
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        known = batch["valid"] * batch["known"]
        return {
            "label": losses.softmax_cross_entropy(label, batch["label"], batch["valid"]),
            "value": losses.squared_error(value, batch["value"], known),
        }, dict(extra)

    def outputs(params, extra, batch, key):
        return model.apply({"params": params, **extra}, prepare(key, batch, False)["x"])

    return Task(
        init=init,
        prepare=prepare,
        loss=loss,
        objective={"label": 1.0, "value": coefficient},
        sources=sources,
        evaluators={
            "scores": call(scores, config["evals"]["scores"], sources["test"], outputs),
            "words": call(words, config["evals"]["words"], sources["auxiliary"], outputs),
        },
        partition=PARTITION,
        rows_independent=False,
        pretrained=pretrained,
    )
