"""Curves keep what there is to see, and one diverged run does not flatten the others."""

import math

import numpy as np
import pytest

from common.reports import curves

GOOD = [2.3 * 0.9 ** np.arange(40) + 0.1 * k for k in range(1, 5)]  # losses that fall


def test_a_curve_goes_through_the_values_at_their_time():
    history = [{"step": 0, "time/seconds": 0.0}, {"step": 5, "loss": 2.0, "text": "a"},
               {"step": 10, "loss": "NaN", "time/seconds": 60.0}, {"step": 20, "loss": 1.0,
                "time/seconds": 240.0}]  # fmt: skip
    curve = curves.of(history, "loss")
    assert curve.steps.tolist() == [5, 10, 20]
    np.testing.assert_allclose(curve.values, [2, np.nan, 1])
    np.testing.assert_allclose(curve.minutes, [0.5, 1, 4])
    np.testing.assert_allclose(curves.along(curve, "epochs", 10), [0.5, 1, 2])
    assert np.isnan(curves.of([{"step": 1, "loss": 1.0}], "loss").minutes).all()
    assert len(curves.of([], "loss").steps) == 0


def test_an_epoch_has_as_many_steps_as_the_duration_tells():
    for text, steps in (("10 epochs", 22.5), ("1 epoch", 225), ("225 steps", None), ("", None),
                        ("e epochs", None), ("0 epochs", None)):  # fmt: skip
        assert curves.epoch_steps({"train.duration": text}, 225) == steps


def test_keys_are_those_with_numbers_and_begin_with_the_ones_that_are_reported():
    numbers = "train/loss", "train/norm", "eval/b/loss", "eval/a/loss", "eval/b/f1", "time/seconds"
    line = dict.fromkeys(numbers, 0.5) | {"step": 1, "eval/b/table": [[1]], "eval/a/nan": "NaN"}
    assert curves.keys([[line]], ["eval/b/f1", "eval/c/f1"]) == [
        "eval/b/f1", "eval/b/loss", "train/loss", "train/norm", "eval/a/loss"
    ]  # fmt: skip


def test_a_thinned_curve_keeps_its_ends_and_its_extremes():
    draw = np.random.default_rng(0)
    values = draw.normal(size=5000)
    values[2000:2600] = np.nan
    values[[1234, 3210]] = 50, -50
    whole = curves.Curve(np.arange(5000.0), np.arange(5000.0) / 7, values)
    thin = curves.thinned(whole, 100)
    assert len(thin.steps) <= 100
    assert {0, 1234, 3210, 4999} <= set(thin.steps)
    assert np.isnan(thin.values).any()  # the gap
    for column, mine in zip(whole, thin, strict=True):
        np.testing.assert_array_equal(mine, column[thin.steps.astype(int)])
    assert curves.thinned(whole, 5000) is whole


def test_a_band_is_the_mean_and_the_deviation_of_the_steps_that_all_share():
    a = curves.Curve(np.array([1.0, 2, 4]), np.array([1.0, 2, 4]), np.array([0.1, 0.2, 0.4]))
    b = curves.Curve(np.array([2.0, 3, 4]), np.array([4.0, 6, 8]), np.array([0.4, 9, 0.8]))
    band = curves.band([a, b])
    assert band.curve.steps.tolist() == [2, 4]
    np.testing.assert_allclose(band.curve.values, [0.3, 0.6])
    np.testing.assert_allclose(band.curve.minutes, [3, 6])
    np.testing.assert_allclose(band.high - band.curve.values, [0.1414214, 0.2828427], rtol=1e-5)
    np.testing.assert_allclose(band.high + band.low, 2 * band.curve.values)
    assert curves.band([a]) is None
    assert curves.band([a, curves.of([], "loss")]) is None


@pytest.mark.parametrize("end", [1e6, -1e6, math.nan, 1e38])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_diverged_run_is_off_the_axis_and_moves_it_nowhere(end, count):
    good = GOOD[:count]
    bad = np.linspace(2.3, end, 40)
    for at in range(count + 1):
        both = [*good[:at], bad, *good[at:]]
        if count == 1 and end < 0:
            continue  # of two losses the lower one is taken for the ordinary one
        assert curves.off_axis(both, -1) == [k == at for k in range(count + 1)]
        assert curves.window(both, -1) == curves.window(good, -1)


def test_every_ordinary_run_ends_on_the_axis_which_leaves_out_the_first_steps():
    low, high = curves.window(GOOD, -1)
    assert all(low < values[-1] < high for values in GOOD)
    assert high < 1.9 < GOOD[0][0]
    assert curves.off_axis([*GOOD, GOOD[0] + 2], -1) == [False] * 5  # a poor one is no diverged one
    accuracies = [np.array([0.1, 0.9, 0.95]), np.array([0.1, 0.1, 0.1])]
    assert curves.off_axis(accuracies, 1) == [False, False]
    assert curves.off_axis([np.array([0.1]), np.array([1.0])], -1) == [False, False]


@pytest.mark.parametrize("runs", [[], [[]], [[math.nan]], [[math.nan] * 3, []]])
def test_without_a_number_there_is_an_axis_all_the_same(runs):
    assert curves.window([np.array(run, float) for run in runs]) == (0.0, 1.0)


def test_constant_values_have_room():
    for value in (0.0, 5.0, -3.0):
        low, high = curves.window([np.full(4, value)])
        assert low < value < high
