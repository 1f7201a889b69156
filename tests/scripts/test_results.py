"""The table of results is what its runs reached, and its lines are of configs that there are."""

import re
import shutil
import statistics

import pytest
from helpers import ROOT, exit_code, result, script

from common import config

README = ROOT / "configs/README.md"


def test_every_line_of_the_table_is_of_a_config():
    found = [m["config"] for m in script("results").LINE.finditer(README.read_text())]
    assert len(found) >= 5
    for path in found:
        module, arg = config.experiment(str(ROOT / path))
        assert module.get_config(arg).task


@pytest.mark.slow
def test_a_line_is_what_its_runs_reached(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    readme = tmp_path / "README.md"
    shutil.copy(README, readme)
    before = readme.read_text().splitlines()
    words = "--workdir", str(tmp_path / "runs"), "--readme", str(readme), "--only", "digits.py:cnn"
    assert exit_code("results", *words) == 0
    after = readme.read_text().splitlines()
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    ((old, new),) = changed
    runs = [tmp_path / f"runs/vision_digits_cnn/seed={seed}" for seed in range(3)]
    values = [result(run)["eval"]["test"]["accuracy"] for run in runs]
    assert f"| {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} |" in new
    assert new.split("|")[1] == old.split("|")[1]
    assert re.search(r"\| \d+ to \d+ s \| [0-9a-f]{7}", new)
    # Nothing is trained again.
    assert exit_code("results", *words) == 0
    assert "3 of 3 runs are finished" in capsys.readouterr().err
    assert readme.read_text().splitlines() == after


def test_what_is_not_in_the_table_is_one_line(tmp_path, capsys):
    words = "--workdir", str(tmp_path), "--readme", str(README), "--only", "nothing"
    assert exit_code("results", *words) == 2
    assert capsys.readouterr().err.count("\n") == 1
