"""Rows of runs, the best of them, and whether the others differ, by runs made by hand."""

import itertools
import math
import random
import re

import numpy as np
import pytest
from scipy import stats

from common.errors import BadInput
from common.reports import reading, report
from common.reports.reading import FinishedRun
from common.reports.report import compare
from common.reports.statistics import Fold, paired
from common.runs import workdir

TEST, VALID = "eval/test/accuracy", "eval/valid/accuracy"


def run(seed: int, value, lr: float = 0.1, name: str = "", **more) -> FinishedRun:
    """A finished run: `more` are keys of the config, with two underscores for a point, and
    `valid`, the validation accuracy."""
    last = {"step": 20, TEST: value}
    if "valid" in more:
        last[VALID] = more.pop("valid")
    config = {"seed": seed, "optim.lr": lr, "train.duration": "20 steps"}
    config |= {key.replace("__", "."): value for key, value in more.items()}
    history = [last | {"step": 10, TEST: 0.0}, last]
    name = name or f"lr{lr}-{seed}"
    return FinishedRun(f"runs/{name}", name, config, seed, history, {"parameters": 7}, [])


def seeded(numbers) -> dict[int, float]:
    return dict(enumerate(map(float, numbers)))


# -------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_interval_is_that_of_the_paired_t_test(n):
    draw = np.random.default_rng(n)
    for shift in (0.0, 0.5, 3.0):
        a = draw.normal(size=n)
        b = a + shift + draw.normal(scale=0.3, size=n)
        found, known = paired(seeded(a), seeded(b)), stats.ttest_rel(a, b)
        low, high = known.confidence_interval(0.95)
        np.testing.assert_allclose([found.low, found.high], [low, high], rtol=1e-9)
        np.testing.assert_allclose(found.mean, (a - b).mean(), rtol=1e-9)
        assert found.distinguishable == (known.pvalue < 0.05)


def test_an_interval_as_wide_as_the_values_says_nothing():
    wide = paired({0: 0.9, 1: 0.7}, {0: 0.7, 1: 0.75})
    narrow = paired({0: 0.9, 1: 0.88}, {0: 0.91, 1: 0.88})
    assert wide.high - wide.low > wide.scale == pytest.approx(0.8)
    assert (wide.vague, narrow.vague) == (True, False)
    assert not paired(seeded([100.0, 101.0]), seeded([0.0, 0.0])).vague  # it excludes 0


def test_pairs_tell_apart_what_means_and_spreads_do_not():
    draw = np.random.default_rng(0)
    a = draw.normal(size=5)
    b = a + 0.1 + draw.normal(scale=0.01, size=5)
    assert paired(seeded(b), seeded(a)).distinguishable
    assert stats.ttest_ind(b, a).pvalue > 0.5


def test_only_seeds_that_both_have_are_compared():
    a, b = {0: 0.9, 1: 0.7, 2: 0.8, 5: 0.1}, {2: 0.6, 1: 0.4, 0: 0.9, 7: 0.0}
    both = {0, 1, 2}
    found = paired(a, b)
    assert found == paired({s: a[s] for s in both}, {s: b[s] for s in both})
    assert found.seeds == [0, 1, 2]


@pytest.mark.parametrize(
    ("a", "b", "mean"),
    [
        ({0: 0.9}, {1: 0.1}, None),
        ({0: 0.5, 1: 0.9}, {0: 0.25, 2: 0.1}, 0.25),
        ({0: 0.9, 1: 0.8}, {0: 0.8, 1: 0.7}, 0.1),  # the same but for rounding
        ({0: 0.9, 1: 0.8}, {0: 0.9, 1: 0.8}, 0.0),
        ({0: 0.0, 1: 0.0}, {0: 0.0, 1: 0.0}, 0.0),
    ],
)
def test_without_a_spread_nothing_is_distinguished(a, b, mean):
    found = paired(a, b)
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high, found.distinguishable) == (None, None, False)


# ------------------------------------------------------------------------------------ rows of runs


def test_nothing_depends_on_the_order_of_the_runs():
    draw = np.random.default_rng(0)
    runs = [run(s, draw.uniform(), lr) for lr in (0.1, 0.2, 0.3) for s in range(3)]
    runs += [run(0, np.nan, 0.4), run(1, np.nan, 0.4)]
    first = compare(runs, TEST)
    for seed in range(5):
        again = compare(random.Random(seed).sample(runs, len(runs)), TEST)
        assert again == first
        assert report.notes(again) == report.notes(first)
    assert [row.name for row in first.rows] != ["lr0.1", "lr0.2", "lr0.3"]  # drawn to be so
    assert first.varied == ["optim.lr"]
    means = [np.mean(list(row.values.values())) for row in first.rows]
    assert means == sorted(means, reverse=True)
    assert all(row.difference.mean < 0 for row in first.rows[1:])


def test_runs_are_of_one_row_if_only_the_seed_and_the_layout_differ():
    alike = [run(0, 0.5), run(1, 0.6, **{k.replace(".", "__") + "x": 1 for k in workdir.LAID_OUT})]
    assert len(compare(alike, TEST).rows) == 1
    assert set(workdir.MAY_CHANGE) - set(workdir.LAID_OUT) == {"train.duration"}
    for key, value in {"train__duration": "40 steps", "model__width": 8, "optim__lr": 1}.items():
        found = compare([*alike, run(2, 0.1, name="other", **{key: value})], TEST)
        assert len(found.rows) == 2
        assert found.varied == [key.replace("__", ".")]
    with pytest.raises(BadInput, match="runs/a and runs/b are the same run, seed 3"):
        compare([run(3, 0.5, name="a"), run(3, 0.5, name="b")], TEST)


def test_of_one_value_the_kind_counts_as_well():
    assert len(compare([run(0, 0.5, k=1), run(1, 0.5, name="b", k=True)], TEST).rows) == 2


def test_a_row_is_called_as_its_runs_without_their_numbers():
    pairs = {("cnn-0", "cnn-1"): "cnn", ("0", "1"): "0", ("a", "b"): "a", ("run_3", "run_4"): "run"}
    for names, name in pairs.items():
        runs = [run(seed, 0.5, name=names[seed]) for seed in (0, 1)]
        assert compare(runs, TEST).rows[0].name == name
    assert compare([run(0, 0.5, name="cnn-0")], TEST).rows[0].name == "cnn-0"
    with pytest.raises(BadInput, match="cnn: runs of two configs have this name"):
        compare([run(0, 0.5, name="cnn"), run(0, 0.5, 0.2, name="cnn")], TEST)


def test_a_row_of_a_folder_is_called_by_what_differs_there():
    def names(*runs, **how):
        return [row.name for row in compare(reading.named(runs, "sweep", **how), TEST).rows]

    runs = [run(s, -lr, lr, model__hidden=(64, 8), data__workers=s) for lr in (1e-4, 3.0)
            for s in (0, 1)]  # fmt: skip
    assert names(*runs) == ["optim.lr=0.0001", "optim.lr=3"]
    assert names(*runs, alone=False) == ["sweep optim.lr=0.0001", "sweep optim.lr=3"]
    assert names(*runs[:2]) == names(*runs[:2], alone=False) == ["sweep"]
    assert names(*runs[:2], run(0, -9, 1e-4, model__hidden=(32,), model__norm=None)) == [
        "model.hidden=(64,8)", "model.hidden=(32) model.norm=None"
    ]  # fmt: skip
    drawn = [run(0, -lr, lr) for lr in (0.123456, 0.123459)]  # alike in four digits
    assert names(*drawn) == ["optim.lr=0.123456", "optim.lr=0.123459"]


# ------------------------------------------------------------------------------------------- folds


def folded(number: int, value: float, count: int = 5, seed: int = 0, lr: float = 0.1):
    split = f"fold {number}/{count}"
    keys = {"data__train": f"train[not {split}]", "evals__test__split": f"train[{split}]"}
    return run(seed, value, lr, f"lr{lr}-{seed}{number}", **keys)


def test_folds_are_one_row_which_averages_them():
    values = {(seed, i): 0.1 * i + 0.01 * seed for seed in (0, 1) for i in range(1, 6)}
    runs = [folded(i, value, seed=seed) for (seed, i), value in values.items()]
    row = compare(runs, TEST).rows[0]
    assert row.values == {Fold(seed, i, 5): value for (seed, i), value in values.items()}
    of_folds = [0.1 * i + 0.005 for i in range(1, 6)]
    mean, deviation = report.average(row.values)
    assert (mean, deviation) == (pytest.approx(0.305), pytest.approx(np.std(of_folds, ddof=1)))
    assert report.missing_folds(row) == []
    found = compare([r for r in runs if r.member.number not in (2, 4)], TEST)
    assert report.missing_folds(found.rows[0]) == [2, 4]
    assert any("without fold 2, 4" in line for line in report.notes(found))
    with pytest.raises(BadInput, match="are the same run, seed 0"):
        compare([runs[0], runs[0]._replace(path="copy")], TEST)
    # Other folds, and the split without folds, are other rows.
    others = folded(1, 0.5, 4), run(0, 0.5, data__train="train")
    names = [reading.settings(r)["data.train"] for r in (runs[0], *others)]
    assert names == ["train[not fold */5]", "train[not fold */4]", "train"]
    assert run(3, 0.5, data__train="train[fold 1/5]").member == 3  # trains on one fold alone


def test_the_interval_of_folds_is_wider_by_the_rows_that_they_share():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 5))
    of = lambda values, seed: {Fold(seed, i + 1, 5): v for i, v in enumerate(values)}
    folds, seeds = paired(of(a, 0), of(b, 0)), paired(seeded(a), seeded(b))
    assert folds.seeds == [1, 2, 3, 4, 5]
    assert folds.mean == pytest.approx(seeds.mean)
    wider = (folds.high - folds.low) / (seeds.high - seeds.low)
    assert wider == pytest.approx(math.sqrt(1 + 5 / 4))  # Nadeau & Bengio 2003
    # A second seed that shifts both alike adds no folds.
    both = paired(of(a, 0) | of(a + 1, 1), of(b, 0) | of(b + 1, 1))
    np.testing.assert_allclose(both[1:4], folds[1:4])


# --------------------------------------------------------------------------------- which is better


def test_the_best_is_chosen_on_validation_where_there_is_such_an_evaluator():
    runs = [run(s, 0.9 - s, 0.1, valid=0.3) for s in (0, 1)]
    runs += [run(s, 0.8 - s, 0.2, valid=0.7) for s in (0, 1)]
    found = compare(runs, TEST)
    assert [row.name for row in found.rows] == ["lr0.2", "lr0.1"]
    assert found.rows[1].difference.mean == pytest.approx(0.1)
    assert found.rows[1].selecting == {0: 0.3, 1: 0.3}
    assert report.notes(found)[0] == f"best: lr0.2, by {VALID}"
    itself = compare(runs, TEST, TEST)
    assert [row.name for row in itself.rows] == ["lr0.1", "lr0.2"]
    note = f"best: lr0.1, by {TEST} itself: not an estimate for new data"
    assert report.notes(itself)[0] == note
    last = runs.pop()  # one without a validation set
    runs.append(run(last.seed, last.history[-1][TEST], 0.2))
    assert report.notes(compare(runs, TEST))[0] == note


@pytest.mark.parametrize(
    ("metric", "order"),
    [
        ("eval/test/nsp_accuracy", [9, 5, 1]),
        ("eval/test/f1", [9, 5, 1]),
        ("eval/test/loss", [1, 5, 9]),
        ("eval/test/perplexity", [1, 5, 9]),
        ("max eval/test/loss", [9, 5, 1]),
        ("min eval/test/anything", [1, 5, 9]),
    ],
)
def test_which_way_is_better_is_known_or_said(metric, order):
    key = metric.split()[-1]
    runs = [run(0, 0.5, lr) for lr in (5, 9, 1)]
    runs = [r._replace(history=[{"step": 1, key: r.config["optim.lr"]}]) for r in runs]
    assert [row.values[0] for row in compare(runs, metric).rows] == order


def test_what_cannot_be_known_is_asked_for():
    runs = [run(0, 0.5, lr) for lr in (1, 2)]
    runs = [r._replace(history=[{"step": 1, "a/b": 3.0, "eval/c/loss": 1.0}]) for r in runs]
    with pytest.raises(BadInput, match="--metric: .* Write 'max a/b' or 'min a/b'"):
        compare(runs, "a/b")
    with pytest.raises(BadInput, match="--select: .* Write 'max a/b' or 'min a/b'"):
        compare(runs, "eval/c/loss", "a/b")
    assert len(compare(runs[:1], "a/b").rows) == 1  # of one row there is none better
    with pytest.raises(BadInput, match="no 'a/c' in its log; valid: eval/c/loss$"):
        compare(runs, "a/c")


def test_a_run_that_ends_with_no_finite_number_is_left_out_by_name():
    others = [None, "text", np.nan, np.inf, [0.5]]
    runs = [run(0, 0.5), *(run(i + 1, value) for i, value in enumerate(others))]
    found = compare(runs, TEST, left_out={"runs/z": "not finished"})
    assert [list(row.values) for row in found.rows] == [[0]]
    assert found.left_out.keys() == {"runs/z", *(r.path for r in runs[1:])}
    line = report.notes(found)[-1]
    assert f"lr0.1-3 (its last {TEST} is not finite)" in line
    assert "z (not finished)" in line
    with pytest.raises(BadInput, match="no run to report; left out: lr0.1-1"):
        compare(runs[1:], TEST)


def test_how_many_comparisons_there_are_is_said():
    draw = np.random.default_rng(0)
    for rows in (1, 2, 4):
        runs = [run(s, draw.uniform(), lr) for lr in range(rows) for s in range(2)]
        found = " ".join(report.notes(compare([*runs, run(0, -1.0, 99)], TEST)))
        counted = re.search(r"(\d+) comparisons, not corrected", found)
        assert (int(counted[1]) if counted else 1) == max(rows - 1, 1)
        assert ("in brackets: 95% interval" in found) == (rows > 1)


def test_names_of_rows_are_one_each():
    lrs, sizes = (0.1, 0.2), (8, 16)
    runs = [run(0, 0.5, lr, model__width=n) for lr, n in itertools.product(lrs, sizes)]
    names = {row.name for row in compare(reading.named(runs, "sweep"), TEST).rows}
    assert names == {f"model.width={n} optim.lr={lr}" for lr in lrs for n in sizes}
