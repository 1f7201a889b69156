"""Stacked trials are the runs that they would be alone; what ends one leaves the others alone."""

import shutil

import jax
import numpy as np
import pytest
from helpers import DIGITS, TOY, load, result, same, timeless

from common.errors import BadInput, NotFinite
from common.sweeps import population
from common.training import program, train

# What is traced differs: of the optimizer, the model, the objective; and the seed.
NUMBERS = (
    {"optim.lr": 0.05, "model.dropout": 0.1, "loss.value": 0.5, "seed": 3},
    {"optim.lr": 0.1, "model.dropout": 0.4, "loss.value": 0.25, "seed": 4},
    {"optim.lr": 1e-9, "model.dropout": 0.0, "loss.value": 0.5, "seed": 3},
    {"optim.lr": 1e30, "model.dropout": 0.1, "loss.value": 0.5, "seed": 3},
    {"optim.lr": -1.0, "model.dropout": 0.1, "loss.value": 0.5, "seed": 3},
)
STOP = {
    "optim.name": "sgd",  # Adam enlarges what rounding differs by
    "train.stop.metric": "min eval/scores/loss",
    "train.stop.patience": 1,
    "train.stop.min_delta": 1e-3,
    "checkpoint.keep_latest": 4,
}


@pytest.fixture(scope="module", params=[1, pytest.param(3, marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    """(configs, folder, outcomes): on eight devices five trials, of which one stops early, one
    diverges and one is out of range."""
    root = tmp_path_factory.mktemp("population")
    calls = {"train.steps_per_call": request.param, "train.log_every": "2 steps"}
    configs = [load(TOY, **STOP, **calls, **numbers) for numbers in NUMBERS]
    folders = [root / str(k) for k in range(len(configs))]
    return configs, root, population.run(configs, folders)


def test_each_trial_ends_in_its_own_way(trained):
    _, root, outcomes = trained
    assert [type(found) for found in outcomes] == [dict, dict, dict, NotFinite, BadInput]
    assert outcomes[0] == result(root / "0")
    assert outcomes[0]["steps"] == outcomes[1]["steps"] == 20
    assert outcomes[2]["steps"] < 20  # it learns nothing
    assert "loss or update is not finite" in str(outcomes[3])
    assert not (root / "3/result.json").exists()
    assert "config.optim.lr" in str(outcomes[4])
    assert not (root / "4").exists()


# The numbers of the others are not those that the stacked program is made with, which are 0's.
@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.slow), 1, 2])
def test_a_stacked_trial_is_the_run_that_it_would_be_alone(trained, tmp_path, number):
    configs, root, outcomes = trained
    alone = train.run(configs[number], tmp_path, show=False)
    assert alone["steps"] == outcomes[number]["steps"]
    lines = list(zip(timeless(root / str(number)), timeless(tmp_path), strict=True))
    for stacked, single in lines:
        assert stacked.keys() == single.keys()
        for key in single.keys() - {"eval/words/text", "eval/words/table", "digests"}:
            if key.endswith("accuracy"):  # of 101 rows: one that is near the border is seen
                continue
            np.testing.assert_allclose(stacked[key], single[key], rtol=1e-4, atol=1e-6)
    # Without this, a population that ignores its numbers would agree as well.
    assert timeless(root / "0")[0] != timeless(root / "1")[0]


def test_trials_that_are_behind_are_waited_for(trained, tmp_path):
    configs, root, outcomes = trained
    for k, kept in ((0, 5), (1, 10), (2, 20)):
        shutil.copytree(root / str(k), tmp_path / str(k))
        (tmp_path / f"{k}/result.json").unlink()
        for path in (tmp_path / f"{k}/checkpoints").iterdir():
            if int(path.name) > kept:
                shutil.rmtree(path)
        assert (tmp_path / f"{k}/checkpoints/{min(kept, outcomes[k]['steps'])}").exists()
    again = population.run(configs[:3], [tmp_path / str(k) for k in range(3)])
    assert [one["digest"] for one in again] == [one["digest"] for one in outcomes[:3]]
    for k in range(3):  # also the means of the lines that step 5 is between
        same(tmp_path / str(k), root / str(k))


def test_what_cannot_be_stacked_is_said():
    for overrides, words in (
        ({"data.resident": False}, "not resident"),
        ({"mesh.fsdp": 2}, "shards the parameters"),
    ):
        assert words in population.obstacle(program.prepare(load(TOY, **overrides)))
    assert population.obstacle(program.prepare(load(TOY), jax.devices()[:1])) is None
    cnn = program.prepare(load(f"{DIGITS}:cnn"), jax.devices()[:1])
    assert "convolutions" in population.obstacle(cnn)


@pytest.mark.slow
def test_what_cannot_be_stacked_is_trained_one_after_the_other(tmp_path):
    short = {"data.resident": False, "train.duration": "6 steps"}
    configs = [load(TOY, **short, **numbers) for numbers in (NUMBERS[0], NUMBERS[3], NUMBERS[1])]
    said = []
    outcomes = population.run(configs, [tmp_path / str(k) for k in range(3)], said.append)
    assert [type(found) for found in outcomes] == [dict, NotFinite, dict]
    assert "one after the other, as the training set is not resident" in said[0]
    alone = train.run(configs[2], tmp_path / "alone", show=False)
    assert alone["digest"] == outcomes[2]["digest"] == result(tmp_path / "2")["digest"]
