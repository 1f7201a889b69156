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
    """The first good trial, one that diverges, one whose warmup is too long, one that crashes, a
    good one."""
    return chain(
        [{"optim.lr": 1e-3, "seed": 0}],
        [{"optim.lr": 1e30}, {"optim.warmup": "500 steps"}, {"model.module": "toy_crash:Net"}],
        [{"optim.lr": 1e-3, "seed": 1}],
    )


def mistyped():
    return chain(over("optim.lr", (1e-3, 1e-2)), [{"optim.rate": 1}, {"seed": "two"}])


def out_of_range():
    return over("optim.lr", (1e-3, -1.0))


def of_rows():
    return over("data.train", ("train", "test"))


def space():
    return {"optim.lr": LogUniform(1e-5, 1e-1), "model.hidden": Choice(((8,), (64,)))}
