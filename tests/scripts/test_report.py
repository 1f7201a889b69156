"""The report of real runs: means over seeds, and the picture."""

import json
import statistics

import numpy as np
import pytest
from helpers import DIGITS, exit_code, load, result

from common import plots, train, workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of an MLP on digits, and one of another rate."""
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in {
        "mlp-0": {"seed": 0},
        "mlp-1": {"seed": 1},
        "fast": {"optim.lr": 0.01},
    }.items():
        short = {"train.duration": "40 steps", "evals.test.every": "20 steps"}
        train.run(load(f"{DIGITS}:mlp", **short, **overrides), str(folder / name), show=False)
    return folder


def test_a_line_is_the_mean_over_the_seeds(runs, capsys):
    paths = [str(runs / name) for name in ("mlp-0", "fast", "mlp-1")]
    assert exit_code("report", *paths, "--png", str(runs / "curves.png")) == 0
    lines = capsys.readouterr().out.splitlines()
    values = [result(runs / f"mlp-{seed}")["eval"]["test"]["accuracy"] for seed in (0, 1)]
    said = f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
    mlp, fast = (line for line in lines if line.startswith(("mlp", "fast")))
    assert mlp.startswith("mlp ")
    assert "0, 1" in mlp
    assert said in mlp
    assert f"{result(runs / 'fast')['eval']['test']['accuracy']:.4f}" in fast
    commit = json.loads((runs / "fast/environment.json").read_text())[0]["commit"]
    assert commit[:7] in fast
    assert (runs / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_goes_through_the_values_at_their_time(runs):
    history = workdir.read_log(runs / "fast")
    minutes, values = plots.curve(history, "eval/test/accuracy")
    assert values.tolist() == [h["eval/test/accuracy"] for h in history if "eval/test/loss" in h]
    clock = [line["time/seconds"] / 60 for line in history if "time/seconds" in line]
    assert (np.diff(minutes) > 0).all()
    assert min(clock) <= minutes[0] <= minutes[-1] <= max(clock)


def test_what_is_not_there_is_one_line(runs, tmp_path, capsys):
    assert exit_code("report", str(tmp_path)) == 2
    assert "no run there" in capsys.readouterr().err
    assert exit_code("report", str(runs / "fast"), "--metric", "eval/test/f2") == 2
    error = capsys.readouterr().err
    assert "eval/test/f1" in error
    assert len(error.splitlines()) == 1
