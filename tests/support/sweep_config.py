"""Sweeps of a short run on digits: good trials, and bad ones among them."""

from common.sweeps.sweep import Choice, LogUniform, chain, over, product
from configs.vision import digits


def get_config(arg=""):
    config = digits.get_config("mlp")
    config.train.duration = "120 steps"
    config.train.log_every = "10 steps"
    config.checkpoint.every = "40 steps"
    config.evals.test.every = "60 steps"
    return config


def sweep():
    return product(over("optim.lr", (1e-3, 1e-2)), over("seed", (0, 1)))


def bad():
    """The first good trial, one that diverges, out of range, one that crashes, no key, a good
    one."""
    return chain(
        [{"optim.lr": 1e-3, "seed": 0}],
        over("optim.lr", (1e30, -1.0)),
        [{"model.module": "toy_crash:Net"}, {"optim.rate": 1}],
        [{"optim.lr": 1e-3, "seed": 1}],
    )


def space():
    return {"optim.lr": LogUniform(1e-5, 1e-1), "model.hidden": Choice(((8,), (64,)))}
