"""A line of the log holds the exact means over the steps since the line before it."""

import shutil
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIGITS, load, timeless

from common.runs import workdir
from common.runs.record import Record, from_json, to_json
from common.training import interval, train
from common.training.program import prepare


def test_sums_are_exact_beyond_32_bits():
    rng = np.random.default_rng(0)
    floats = np.float32(rng.normal(size=(300, 3)) * 10.0 ** rng.integers(-6, 7, (300, 3)))
    counts = np.float32(rng.integers(0, 1 << 23, 300))
    like = {"a": (floats[0], counts[0])}

    def body(sums, terms):
        return interval.add(sums, {"a": terms}), ()

    run = jax.jit(lambda sums, *terms: jax.lax.scan(body, sums, terms)[0])
    start = jnp.asarray(interval.zeros(like))
    sums = run(run(start, floats[:7], counts[:7]), floats[7:], counts[7:])
    assert np.array_equal(sums, run(start, floats, counts))  # however they are grouped
    total, weight = interval.totals(sums, like)["a"]
    assert int(weight) == sum(map(int, counts)) > 1 << 24
    for column, value in zip(floats.T, total, strict=True):
        exact = sum(map(Fraction, map(float, column)))
        size = sum(abs(x) for x in map(Fraction, map(float, column)))
        assert abs(Fraction(float(value)) - exact) < size / 2**44
    saved = interval.to_json(sums, like)
    assert np.array_equal(interval.from_json(saved, like), sums)
    assert not interval.from_json(saved, {"b": like["a"]}).any()


def test_a_mean_is_the_sum_of_sums_over_that_of_weights():
    like = {"a": (np.float32(0), np.float32(0))}
    sums = interval.zeros(like)
    assert np.isnan(interval.means(sums, like)["a"])
    for total, weight in ((1.0, 1.0), (9.0, 3.0)):
        sums = interval.add(jnp.asarray(sums), {"a": (jnp.float32(total), jnp.float32(weight))})
    assert interval.means(sums, like)["a"] == 2.5


@pytest.mark.parametrize("added", [np.inf, -np.inf, np.nan, 3e38])
def test_a_sum_that_is_not_finite_stays_what_it_is(added):
    like = {"a": (np.float32(0), np.float32(0))}
    sums = jnp.asarray(interval.zeros(like))
    for value in (1e-3, added, added, 1.0):
        sums = interval.add(sums, {"a": (jnp.float32(value), jnp.float32(1))})
    wanted = np.float32(np.inf) if added == 3e38 else added  # it overflows
    assert np.array_equal(interval.means(sums, like)["a"], wanted, equal_nan=True)


@pytest.fixture(scope="module", params=[1, pytest.param(3, marks=pytest.mark.slow)])
def made(request):
    config = {
        "train.duration": "10 steps", "train.log_every": "4 steps", "checkpoint.every": "3 steps",
        "checkpoint.keep_latest": 9, "train.batch_size": 40, "train.steps_per_call": request.param,
    }  # fmt: skip
    return prepare(load(f"{DIGITS}:mlp", **config), jax.devices()[:1])


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    return run(made, tmp_path_factory.mktemp("interval") / "run")


def run(made, folder):
    with workdir.Lock(folder) as lock:
        train.run_program(made, folder, lock, show=False)
    return folder


def trained(folder) -> list[dict]:
    return [line for line in timeless(folder) if "train/loss" in line]


def test_a_line_is_the_mean_of_its_steps(made, folder, tmp_path):
    every = run(made._replace(plan=made.plan._replace(log_every=1)), tmp_path / "every")
    single, means = trained(every), trained(folder)
    assert [line["step"] for line in means] == [4, 8, 10]
    for steps, line in zip((single[:4], single[4:8], single[8:]), means, strict=True):
        assert line["train/learning_rate"] == steps[-1]["train/learning_rate"]
        for name in ("loss", "accuracy", "gradient_norm", "update_norm"):
            mean = np.mean([step[f"train/{name}"] for step in steps])
            assert line[f"train/{name}"] == np.float32(mean)
            assert len({step[f"train/{name}"] for step in steps}) > 1


@pytest.mark.parametrize("kept", [3, 6, 9])
def test_a_cut_between_two_lines_changes_no_mean(made, folder, tmp_path, kept):
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut/result.json").unlink()
    for path in (tmp_path / "cut/checkpoints").iterdir():
        if int(path.name) > kept:
            shutil.rmtree(path)
    assert timeless(run(made, tmp_path / "cut")) == timeless(folder)


def test_records_of_older_versions_are_read():
    old = Record({"a": [[2], "float32", 1]}, 3, {"config.seed": 0}, {})
    assert "beside" not in to_json(old)
    assert from_json(to_json(old)) == old
    assert from_json(to_json(old._replace(beside={"x": [1.5]}))).beside == {"x": [1.5]}
