"""The template: a copy of it trains and holds the laws, and it is what common/README.md shows."""

import re
import shutil
import sys

import jax
import pytest
from helpers import ROOT, load

from common import imports
from common.laws import checks, report, rows
from common.training import train

TEMPLATE = ROOT / "configs/template.py"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A copy of the template under a name of its own."""
    monkeypatch.setattr(imports, "_OWN", [])
    monkeypatch.setattr(sys, "path", sys.path[:])
    return shutil.copy(TEMPLATE, tmp_path / f"mine_{len(sys.modules)}.py")


@pytest.mark.slow
def test_a_copy_trains_and_holds_the_laws_that_train_nothing(mine, tmp_path):
    config = load(str(mine), **{"train.duration": "3 epochs"})
    result = train.run(config, tmp_path / "run", show=False)
    assert result["eval"]["test"]["accuracy"] > 0.9
    checks.no_dead_knob(config)
    checks.parameters_are_plain(config)
    rows.rows_are_independent(config)


@pytest.mark.slow
def test_a_copy_holds_every_law(mine, capsys):
    assert report.main(["--config", str(mine), "--config.data.size=300"]) == 0
    assert f"{len(report.LAWS)} of {len(report.LAWS)} laws hold" in capsys.readouterr().out
    assert jax.device_count() == 8


def test_it_is_short_and_the_readme_shows_a_part_of_it():
    text = TEMPLATE.read_text()
    code = [line for line in text.split('"""', 2)[2].splitlines() if line.strip()]
    assert len(code) <= 66
    shown = re.search(r"```py\n(.*?)```", (ROOT / "common/README.md").read_text(), re.DOTALL)[1]
    assert shown in text
