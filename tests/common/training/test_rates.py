"""The range test: its suggestion on losses that are known, and a run of the toy."""

import math
import pathlib

import numpy as np
import pytest
from helpers import ROOT, TOY, exit_code, load

from common.config import plain
from common.errors import BadInput
from common.laws import report
from common.training import rates


def test_the_suggestion_is_where_the_loss_falls_fastest():
    steps = np.geomspace(1e-6, 10, 141)  # twenty a decade
    fall = 2 - 1.5 / (1 + np.exp(-(np.log10(steps) + 3) * 4))  # fastest at 1e-3
    rise = np.where(steps > 0.1, 8 * np.log10(np.maximum(steps, 0.1) / 0.1), 0)
    noise = np.random.default_rng(0).normal(0, 0.05, len(steps))
    found = rates.tested(steps, fall + rise + noise)
    assert 5e-4 < found.suggested < 2e-3
    assert found.suggested < found.lowest < 0.3
    assert found.diverged
    ended = rates.tested(steps[:101], np.append((fall + noise)[:100], math.nan))
    assert ended.diverged
    assert ended.suggested == pytest.approx(found.suggested, rel=0.5)
    assert np.isfinite(ended.smooth).all()


@pytest.mark.parametrize("losses", [np.ones(50), np.linspace(1, 2, 50), [math.nan], [1, math.inf]])
def test_a_loss_that_does_not_fall_suggests_nothing(losses):
    losses = np.asarray(losses, float)
    assert rates.tested(np.geomspace(1e-3, 1, len(losses)), losses).suggested is None


@pytest.mark.slow
def test_the_first_steps_are_those_of_training_and_it_ends_where_the_loss_diverges():
    seen = []
    found = rates.range_test(load(TOY), 1e-3, 1e6, 40, lambda *line: seen.append(line))
    assert found.diverged
    assert len(found.losses) < 40
    assert found.rates[:2] == pytest.approx([1e-3, 1e-3 * 1e9 ** (1 / 39)])
    assert [loss for _, _, loss in seen] == pytest.approx(list(found.losses), nan_ok=True)


def test_rates_that_do_not_rise_are_refused():
    for low, high, steps, message in (
        (1.0, 0.1, 20, "the rates 1 to 0.1 do not rise"),
        (0.0, 0.1, 20, "the rates 0 to 0.1"),
        (1e-60, 0.1, 20, "the rates 1e-60 to 0.1 do not rise within 1.2e-38 to 3.4e"),
        (0.1, 1e60, 20, "the rates 0.1 to 1e"),
        (0.1, 1.0, 1, "1 steps: a range test has 10"),
    ):
        with pytest.raises(BadInput, match=message):
            rates.range_test(load(TOY), low, high, steps)


@pytest.mark.slow
def test_a_term_without_weight_does_not_end_the_test(tmp_path, monkeypatch):
    text = pathlib.Path(ROOT, "tests/support/toy_prices.py").read_text()
    term, objective = '{"squared": (', 'objective={"squared": 1.0}'
    assert text.count(term) == text.count(objective) == 1
    rare = 'rare = batch["valid"] * (batch["x"][:, 0] > 99)'
    rare += '\n        return {"rare": (jnp.sum(rare * error**2), rare.sum()), '
    text = text.replace(objective, 'objective={"squared": 1.0, "rare": 1.0}')
    text = text.replace(f"return {term}", rare + term[1:])
    (tmp_path / "prices_without_weight.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    config = report.bare("prices_without_weight", ["--config.evals.test.batch_size=16"])
    found = rates.range_test(plain(config), 1e-4, 1e-3, 10)
    assert len(found.losses) == 10
    assert np.isfinite(found.losses).all()


@pytest.mark.slow
def test_the_script_shows_a_suggestion_and_overwrites_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--config", TOY, "--low=1e-4", "--steps=30", "--png=rates.png"
    assert exit_code("lr_range", *words) == 0
    assert "try --config.optim.lr=" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["rates.png"]
    drawn = (tmp_path / "rates.png").read_bytes()
    assert exit_code("lr_range", *words) == 2
    assert "--png: rates.png exists" in capsys.readouterr().err
    assert (tmp_path / "rates.png").read_bytes() == drawn
