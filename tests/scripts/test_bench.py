"""Contests of speed: who takes part, what is measured, and that all do the same work."""

import io
import json
import statistics
import sys

import pytest
from helpers import exit_code, script

import contest

CONTESTS = pytest.mark.measure("contests")  # minutes of other libraries' work


def test_every_other_round_goes_backwards():
    said = []
    jobs = [lambda name=name: said.append(name) or float(len(said)) for name in "abc"]
    assert contest.in_turn(jobs, 3) == [[1, 6, 7], [2, 5, 8], [3, 4, 9]]
    assert "".join(said) == "abccbaabc"


def test_a_ratio_is_of_one_round():
    """A machine that slows down for all of them changes no ratio."""
    ours, theirs = [1.0, 1.0, 5.0, 1.0], [2.0, 2.0, 10.0, 4.0]
    found = contest.ratio(theirs, ours)
    assert found["ratio"] == 2.0
    assert found["quartiles"] == statistics.quantiles([2.0, 2.0, 2.0, 4.0], n=4)[::2]
    assert contest.ratio(ours[:1], theirs[:1]) == {"ratio": 0.5, "quartiles": [0.5, 0.5]}


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr(sys, "stdout", said := io.StringIO())
    monkeypatch.setattr(sys, "argv", ["", "keras_cnn", '{"batch_size": 2, "backend": "jax"}'])
    script("contender").main()
    row = {"name": "keras on jax", **json.loads(said.getvalue())}
    assert row["missing"] == "keras"
    assert "keras on jax: keras is missing: pip install" in script("bench").text({"rows": [row]})


def test_a_contender_that_fails_says_why():
    with (
        pytest.raises(contest.BadInput, match="^no: TypeError: .*batch"),
        contest.ready(contest.Contender("no", "flax_cnn", {"batch": 1})),
    ):
        pass


def test_a_contender_that_is_killed_is_named():
    with contest.ready(contest.Contender("product", "matmul", {})) as one:
        assert contest.work(one) > 0
        one.process.kill()
        with pytest.raises(contest.BadInput, match="product: its process ended with -9"):
            contest.work(one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    ["cnn", *(pytest.param(case, marks=CONTESTS) for case in ("resnet18", "vit", "bert", "gpt"))],
)
def test_contenders_train_the_same_network(case, capsys):
    """One of another size would win by that. Vocabularies are padded, and heads have biases."""
    assert exit_code("bench", case, "--rounds", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    ours, *others = found["rows"]
    assert others
    for row in others:
        assert row["parameters"] == pytest.approx(ours["parameters"], rel=0.02)
        assert row["units"] == ours["units"]
        assert row["flops"] == ours["flops"]
        assert row["ratio"] > 0
    assert 0 < ours["flops_per_second"] < 1.2 * found["peak_flops_per_second"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "input",
        *(pytest.param(c, marks=CONTESTS) for c in ("generate", "overhead", "start", "sweep")),
    ],
)
def test_a_case_prints_a_table_and_draws(case, capsys, tmp_path):
    picture = tmp_path / "speed.png"
    assert exit_code("bench", case, "--rounds", "1", "--png", str(picture)) == 0
    table = capsys.readouterr().out
    assert "of ours" in table
    assert "GFLOP a step" not in table  # as nothing counts them
    # Torchvision must fit torch to the build: it is an extra of its own, which CI does without.
    assert "missing" not in table.replace(
        "torchvision is missing: pip install -e '.[bench-files]'", ""
    )
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
@CONTESTS
def test_cost_grows_as_the_model_says(tmp_path):
    bench = script("bench")
    bench.GROWTH = {"batch": (1, 2), "width": (64,)}
    rows = bench.growth(1, cpu=True)
    assert [row["size"] for row in rows] == [1, 2, 64]
    assert rows[1]["flops"] == 2 * rows[0]["flops"]
    bench.growth_figure(rows, 1e11).savefig(tmp_path / "growth.png")


def test_an_unknown_case_is_one_line(capsys):
    assert exit_code("bench", "overhaed") == 2
    assert "did you mean 'overhead'" in capsys.readouterr().err
