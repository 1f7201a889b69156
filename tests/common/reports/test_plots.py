"""Figures show every run, at its place."""

import numpy as np
import pytest

from common.reports import plots

TEST = "eval/test/accuracy"


def logged(value) -> list[dict]:
    return [{"step": s, "time/seconds": 60.0 * s, TEST: value * s / 2} for s in (1, 2)]


def test_a_few_rows_have_a_name_each_and_of_many_the_best():
    pytest.importorskip("matplotlib")
    for count in (3, 10, 11, 40):
        rows = {f"row {i}": [logged(1 - i / 100), logged(0.9 - i / 100)] for i in range(count)}
        axes = plots.learning_curves(rows, TEST).axes[0]
        named = [text.get_text() for text in axes.get_legend().get_texts()]
        assert named == list(rows)[: 5 if count > 10 else count]
        colours = [line.get_color() for line in axes.lines]
        assert colours[::2] == colours[1::2]
        assert len(set(colours)) == count
        for line in axes.lines[:2]:
            assert line.get_xdata().tolist() == [1, 2]


def test_numbers_over_more_than_a_factor_of_ten_are_logarithmic_and_words_are_categories():
    def kind(*values):
        _, log, names = plots.positions(values)
        return names or ("log" if log else "linear")

    assert kind(1, 2, 10.0) == kind(0, 1, 100) == kind(-1, 100) == kind(5) == "linear"
    assert kind(1e-4, 1e-2) == kind(1, 10.5) == "log"
    assert kind("b", "a", "b") == ["a", "b"]
    assert kind(True, False) == ["False", "True"]
    assert kind("10 epochs", "5%", "5 epochs") == ["5 epochs", "5%", "10 epochs"]
    assert kind(None, 0.5, 0.25) == ["0.25", "0.5", "None"]
    assert kind((64,), (8, 8)) == ["(8,8)", "(64)"]
    assert plots.positions(["b", "a", "b"]).at.tolist() == [1, 0, 1]


SETTINGS = [{"lr": lr, "name": name, "depth": 3} for lr in (1e-3, 1e-1) for name in ("x", "y")]
VALUES = [0.1, 0.2, 0.6, 0.9]


def test_a_panel_holds_every_run_and_the_means():
    pytest.importorskip("matplotlib")
    panels = plots.against(SETTINGS, VALUES, TEST).axes
    for axes, xs, means in (
        (panels[0], [1e-3, 1e-3, 1e-1, 1e-1], [0.15, 0.75]),
        (panels[1], [0, 1, 0, 1], [0.35, 0.55]),
        (panels[2], [3, 3, 3, 3], [0.45]),
    ):
        dots, line = axes.lines
        np.testing.assert_allclose(dots.get_xydata(), np.transpose([xs, VALUES]))
        np.testing.assert_allclose(line.get_ydata(), means)
        assert axes.get_xscale() == ("log" if xs[0] == 1e-3 else "linear")
    assert [axes.get_xlabel() for axes in panels] == list(SETTINGS[0])
    assert [text.get_text() for text in panels[1].get_xticklabels()] == ["x", "y"]
    assert panels[0].get_ylabel() == TEST
    drawn = plots.against([{"lr": 0.01 * i} for i in range(40)], [0.5] * 40, TEST).axes[0]
    assert len(drawn.lines) == 1  # dots: numbers drawn at random have no means


def test_a_line_of_parallel_coordinates_goes_through_its_values():
    pytest.importorskip("matplotlib")
    settings = [each | {"lr": lr} for each, lr in zip(SETTINGS, (1, 10, 100, 1), strict=True)]
    axes, bar = plots.parallel(settings, VALUES, TEST).axes
    lines = [line for line in axes.lines if len(line.get_ydata()) == 4]  # the others are axes
    heights = [line.get_ydata() for line in reversed(lines)]  # the first is on top
    known = np.transpose([[0, 0.5, 1, 0], [0, 1, 0, 1], [0] * 4, [0, 0.125, 0.625, 1]])
    np.testing.assert_allclose(heights, known, atol=1e-12)
    assert len({line.get_color() for line in lines}) == 4
    assert bar.get_ylabel() == TEST
