"""The algebra of sweeps, and trials: their names, who shares a program, which are finished."""

import collections
import itertools
import json
import math
import re

import pytest
from helpers import DIGITS, ROOT, TOY

from common.config import changed
from common.errors import BadInput
from common.sweeps import trials
from common.sweeps.sweep import (
    Choice,
    Integers,
    LogUniform,
    chain,
    over,
    plain_space,
    product,
    sample,
    zipit,
)

A, B = list(over("a", (1, 2, 3))), list(over("b", "xyz"))


def test_a_product_has_every_pair_once_and_the_last_changes_fastest():
    found = [(trial["a"], trial["b"]) for trial in product(A, B)]
    assert found == [(a, b) for a in (1, 2, 3) for b in "xyz"]
    assert list(product(A, [{}])) == A
    assert list(product()) == [{}]
    nested = [dict(t) for t in product(product(A, B), over("c", (0, 1)))]
    assert nested == list(product(A, product(B, over("c", (0, 1)))))


def test_zipit_pairs_and_chain_appends():
    assert list(zipit(A, B)) == [{"a": a, "b": b} for a, b in zip((1, 2, 3), "xyz", strict=True)]
    assert list(chain(A, B)) == A + B
    with pytest.raises(BadInput, match=r"different lengths: \[3, 2\]"):
        zipit(A, B[:2])


@pytest.mark.parametrize("pair", [product, zipit])
def test_a_key_is_set_once(pair):
    with pytest.raises(BadInput, match="sets a twice"):
        list(pair(A, A))


def test_a_sample_is_a_function_of_seed_number_and_key():
    space = {"lr": LogUniform(1e-4, 1e-1), "n": Integers(-1, 3), "c": Choice(("x", None))}
    long = list(sample(200, space))
    assert list(sample(50, space)) == long[:50]
    assert [trial["lr"] for trial in sample(200, {"lr": space["lr"]})] == [t["lr"] for t in long]
    assert list(sample(50, space, seed=1)) != long[:50]
    # These are the values on any machine: a sweep that was begun elsewhere goes on.
    assert long[0] == {"lr": 0.00050338, "n": 2, "c": "x"}
    json.dumps(long)


def test_samples_are_spread_as_they_should_be():
    space = {"lr": LogUniform(1e-4, 1e-1), "n": Integers(-1, 3), "c": Choice(("x", "y"))}
    found = list(sample(3000, space))
    decades = collections.Counter(math.floor(math.log10(trial["lr"])) for trial in found)
    assert set(decades) == {-4, -3, -2}
    for counts, kinds in (
        (decades, 3),
        (collections.Counter(trial["n"] for trial in found), 5),
        (collections.Counter(trial["c"] for trial in found), 2),
    ):
        expected = 3000 / kinds
        assert len(counts) == kinds
        # chi-squared: beyond 30 for at most four degrees of freedom is one in 200,000
        assert sum((n - expected) ** 2 / expected for n in counts.values()) < 30


@pytest.mark.parametrize(
    "space",
    [
        {"lr": LogUniform(0.0, 1.0)},
        {"n": Integers(3, 2)},
        {"n": Integers(0, 2.5)},
        {"n": Integers(0.0, 3)},
        {"c": Choice(())},
    ],
)
def test_a_space_with_nothing_in_it_is_refused(space):
    for use in (lambda: sample(1, space), lambda: plain_space(space)):  # the latter for Optuna
        with pytest.raises(BadInput, match=next(iter(space))):
            use()


# ------------------------------------------------------------------------------------------- trials


def test_trials_are_named_by_their_overrides_and_refused_one_by_one(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        f"exec(open({TOY!r}).read())\n"
        "from common.sweeps.sweep import LogUniform\n"
        "def sweep():\n"
        "    yield {'optim.lr': 1e-3, 'seed': 0}\n"
        "    yield {'optim.lr': 'fast'}\n"
        "    yield {'init.path': 'a/b c'}\n"
        "    yield {}\n"
        "def space():\n"
        "    return {'optim.lr': LogUniform(1e-3, 1e-1)}\n"
        "def twice():\n"
        "    return [{'seed': 1}, {'seed': 1}]\n"
    )
    found = trials.of(str(path), ["--config.train.batch_size=80"])
    assert [trial.index for trial in found] == [0, 1, 2, 3]
    assert found[0].name == "optim.lr=0.001,seed=0"
    assert found[0].config["optim"]["lr"] == 0.001
    assert {trial.config["train"]["batch_size"] for trial in found if trial.config} == {80}
    assert found[0].words == (
        "--config.train.batch_size=80",
        "--config.optim.lr=0.001",
        "--config.seed=0",
    )
    assert "optim.lr" in found[1].refused
    assert found[1].config is None
    assert found[2].name.startswith("init.path=a_b_c-")
    assert found[3].name == "base"

    sampled = trials.of(str(path), name="space", count=3)
    assert [trial.overrides for trial in sampled] == list(
        sample(3, {"optim.lr": LogUniform(1e-3, 1e-1)})
    )
    for name, count, words in (
        ("space", None, "--trials: required"),
        ("twice", None, "yields a trial twice: seed=1"),
        ("other", None, "defines no other"),
        ("sweep", 0, "not a positive number"),
    ):
        with pytest.raises(BadInput, match=words):
            trials.of(str(path), name=name, count=count)


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ({"optim.lr": 1}, {"optim.lr": 1.0}, r"optim\.lr=1 and optim\.lr=1\.0"),
        (
            {"optim.lr": 1.0, "seed": 0},
            {"seed": 0, "optim.lr": 1.0},
            r"seed=0 and seed=0,optim\.lr=1\.0",
        ),
        ({"model.hidden": 8}, {"model.hidden": (8,)}, r"hidden=8 and model\.hidden=\(8,\)"),
        ({}, {"seed": 0}, "base and seed=0"),
    ],
)
def test_one_config_is_not_two_trials(first, second, names, tmp_path):
    path = tmp_path / "config.py"
    listed = [{"seed": 1}, first, second]
    path.write_text(f"exec(open({DIGITS!r}).read())\ndef sweep():\n    return {listed}\n")
    with pytest.raises(BadInput, match=f"yields a trial twice: .*{names} are the same config"):
        trials.of(f"{path}:mlp")


def test_names_tell_long_and_odd_overrides_apart():
    long = [{"data.folder": "/x" * 200 + str(k)} for k in range(2)]
    long += [{"data.folder": "ü語" * 200 + str(k)} for k in range(2)]
    odd = [{"a": "x/y"}, {"a": "x:y"}, {"a": "\ud800"}, {"a": "x y\n\0"}]
    names = [trials.folder_name(overrides) for overrides in (*long, *odd)]
    assert len(set(names)) == 8
    assert all(len(name.encode()) < 200 and "/" not in name for name in names)


def test_numbers_of_numpy_and_jax_are_overrides(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        f"exec(open({str(DIGITS)!r}).read())\n"
        "import numpy as np, jax.numpy as jnp\n"
        "from common.sweeps.sweep import Choice, Integers, LogUniform\n"
        "def sweep():\n"
        "    yield {'optim.lr': np.float32(0.1), 'seed': np.arange(3)[1]}\n"
        "    yield {'optim.lr': jnp.float32(1e-3), 'model.hidden': (np.int64(16), jnp.int32(8))}\n"
        "    yield {'optim.lr': np.array(0.25), 'data.resident': np.bool_(False)}\n"
        "    yield {'evals.test': None, 'evals.new.split': 'train[:10]'}\n"
        "    yield {'model.hidden': np.ones(2)}\n"
        "    yield {'evals.new': {'split': 'test'}}\n"
        "def space():\n"
        "    return {'optim.lr': LogUniform(np.float32(0.1), np.float32(0.2)),"
        " 'seed': Integers(np.int64(1), np.int64(3)),"
        " 'train.average': Choice((np.float32(0.9),))}\n"
        "def wrong():\n    return 1 / 0\n"
        "def late():\n    yield {}\n    raise KeyError('x')\n"
        "def numbers():\n    return [1]\n"
        "def nothing():\n    pass\n"
        "import itertools\n"
        "def endless():\n    return ({'seed': k} for k in itertools.count())\n"
        "def odd():\n    return {'seed': (1, 2)}\n"
    )
    found = trials.of(f"{path}:mlp")
    assert [trial.name for trial in found[:3]] == [
        "optim.lr=0.1,seed=1",
        "optim.lr=0.001,model.hidden=(16,_8)-" + found[1].name[-8:],
        "optim.lr=0.25,data.resident=False",
    ]
    assert not any(trial.refused for trial in found[:4])
    assert found[0].config["optim"]["lr"] == 0.1
    assert found[1].config["model"]["hidden"] == (16, 8)
    assert list(found[3].config["evals"]) == ["new"]
    assert "is an array, of shape (2,)" in found[4].refused
    assert "is a section; write its keys, such as evals.new.KEY" in found[5].refused
    sampled = trials.of(f"{path}:mlp", name="space", count=2)
    assert json.dumps([trial.overrides for trial in sampled])
    assert sampled[0].config["train"]["average"] == 0.9
    kinds = {"optim.lr": float, "seed": int, "train.average": tuple}
    for key, spec in trials.space(f"{path}:mlp", "space").items():
        assert {type(value) for value in spec} == {kinds[key]}
    for name, words in (
        ("odd", "seed: .* is no part of a space; write LogUniform, Integers or Choice"),
        ("wrong", r"config\.py, line \d+: ZeroDivisionError"),
        ("late", r"config\.py, line \d+: KeyError: 'x'"),
        ("numbers", r"numbers\(\) .* yields 1; a trial is a dict"),
        ("endless", r"endless\(\) of .* yields more than 10,000 trials; say how many: --trials"),
        ("nothing", r"config\.py.*TypeError: 'NoneType' object is not iterable"),
    ):
        with pytest.raises(BadInput, match=words):
            trials.of(f"{path}:mlp", name=name)


def test_trials_share_a_program_if_only_numbers_differ():
    grid = product(
        over("optim.lr", (0.1, 0.2)), over("seed", (0, 1)), over("model.hidden", ((8,), (16,)))
    )
    file = DIGITS
    base = trials.of(f"{file}:mlp", name="sweep", count=1)[0]
    module = trials.config.experiment(f"{file}:mlp")[0]
    every = [trials.one(module.get_config, "mlp", k, o, ()) for k, o in enumerate(grid)]
    groups = trials.groups(every)
    assert [[t.index for t in group] for group in groups] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    small = trials.groups(every, most=3)
    assert [[t.index for t in group] for group in small] == [[0, 2, 4], [6], [1, 3, 5], [7]]
    assert len(trials.groups([*every, base])) == 3


def test_what_needs_no_data_is_refused_before_a_trial_begins_and_nothing_else():
    names = "vision/digits", "lm/gpt2_small", "lm/crammed_bert"  # of several schedules
    found = [trials.of(str(ROOT / f"configs/{name}.py"), name=None) for name in names]
    trials.check(itertools.chain(*found))
    (one,) = found[0]
    for key, value in (("optim.clip", -1.0), ("train.accumulate", 3), ("optim.freeze", ("(",)),
                       ("train.stop.patience", 0), ("train.duration", "forever"),
                       ("evals.test.every", "often"), ("optim.warmup", "1 hour"),
                       ("checkpoint.best", "max eval/tset/accuracy")):  # fmt: skip
        made = one._replace(config=changed(one.config, **{key: value}))
        with pytest.raises(BadInput, match=rf"^trial 0, base: config\.{re.escape(key)}: "):
            trials.check([made])
