"""Runs begun by older versions go on: workdirs kept as they were written, stopped half way.

tests/saved/eab57ef.tar.xz holds three runs of 12 steps with the checkpoint of step 6, made at
commit eab57ef, before `common` had rooms, and in expected.json what they came to there.
"""

import json
import tarfile

import language_config
import pytest
from helpers import ROOT, exit_code

from common.laws.measure import train_losses
from common.runs import checkpoint, log, workdir
from common.training import saved, train
from common.training.program import prepare


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the runs, their corpus beside them."""
    folder = tmp_path_factory.mktemp("saved")
    with tarfile.open(ROOT / "tests/saved/eab57ef.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    corpus = language_config.write(folder / "corpus")
    for name in ("mlm", "clm"):
        path = folder / name / "config.json"
        path.write_text(path.read_text().replace("folder:CORPUS", corpus))
    return folder


# Parameters in rows that only pad a table, which they counted.
PADDED = {"digits": 0, "mlm": 1120, "clm": 1504}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mlm", "clm")]


@pytest.mark.parametrize("name", ["digits", *SLOW])
def test_a_run_of_an_older_version_goes_on(runs, name, monkeypatch, tmp_path):
    monkeypatch.setenv("TOUCHSTONE_DATA", str(tmp_path))
    expected = json.loads((runs / "expected.json").read_text())[name]
    assert "kind" not in str(workdir.read_config(runs / name)["evals"])  # older than that key
    made = prepare(saved.read_config(runs / name))
    state, step = checkpoint.Checkpoints(runs / name).restore(made.like)
    later = train_losses(made, 6, state)[0] if name == "digits" else []
    with workdir.Lock(runs / name) as lock:
        result = train.run_program(made, runs / name, lock, show=False)
    count = expected["parameters"] - PADDED[name]
    assert (result["steps"], result["parameters"]) == (12, count)
    losses = {x["step"]: x["train/loss"] for x in log.read_lines(runs / name) if "train/loss" in x}
    # Not bits: they were computed on another machine. Lines held the loss of their own step.
    before = {int(k): v for k, v in expected["loss"].items()}
    common = [k for k in before if k <= step]
    assert [losses[k] for k in common] == pytest.approx([before[k] for k in common], rel=1e-4)
    if later:
        assert later[2::3] == pytest.approx([before[9], before[12]], rel=1e-4)
        means = sum(later[:3]) / 3, sum(later[3:]) / 3
        assert (losses[9], losses[12]) == pytest.approx(means, rel=1e-4)
    for key, values in expected["eval"].items():
        assert result["eval"][key]["loss"] == pytest.approx(values["loss"], rel=1e-4)


def test_its_own_command_is_taken_and_another_is_refused(runs, capsys):
    same = ("--config", f"{ROOT}/configs/vision/digits.py:mlp", "--workdir", str(runs / "digits"))
    keys = ("model.hidden=(8,)", "train.duration=12 steps", "checkpoint.every=6 steps")
    keys += ("checkpoint.keep_latest=3", "train.log_every=3 steps", "evals.test.every=6 steps")
    words = [f"--config.{key}" for key in keys]
    assert exit_code("train", *same, *words) == 0
    assert exit_code("train", *same, *words, "--config.seed=1") == 2
    assert "config.seed was 0 and is 1" in capsys.readouterr().err
