"""Configs: every knob is known, checked, overridable and on record."""

import json
import subprocess
import sys
from typing import Literal

import ml_collections
import pytest
from helpers import DIGITS, ROOT, TOY, load

from common import config as configs
from common import errors
from common.errors import BadInput
from common.sections import complete
from common.training import duration, program


def toy_section(
    runtime,
    *,
    rate: float,
    name: Literal["a", "bee"] = "a",
    sizes: tuple[int, ...] = (1, 2),
    limit: float | None = None,
    on: bool = False,
):
    return rate, name, sizes, limit, on


def completed(**section) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict({"seed": 0, "toy": section})
    complete(config, {"toy": toy_section})
    return config


@pytest.mark.parametrize("own", [{}, {"limit": None}])  # as configs of runs spell it
def test_defaults_are_filled_in_and_integers_become_floats(own):
    config = completed(rate=1, **own)
    assert configs.plain(config)["toy"] == {
        "rate": 1.0, "name": "a", "sizes": (1, 2), "limit": None, "on": False,
    }  # fmt: skip
    assert isinstance(config.toy.rate, float)
    config.lock()
    changes = {"toy.limit": "0.5", "toy.sizes": "(3,)", "toy.on": "true"}
    configs._override(config, changes, {"toy": toy_section})
    assert (config.toy.limit, config.toy.sizes, config.toy.on) == (0.5, (3,), True)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "toy.rate: required"),
        ({"rate": 1.0, "nmae": "a"}, "toy.nmae: unknown key; did you mean 'name'"),
        ({"rate": "fast"}, "toy.rate: 'fast' is not float"),
        ({"rate": True}, "toy.rate: True is not float"),
        ({"rate": 1.0, "name": "be"}, "toy.name: unknown 'be'; did you mean 'bee'"),
        ({"rate": 1.0, "sizes": (1, "b")}, r"toy.sizes: \(1, 'b'\) is not a tuple \(int, …\)"),
        ({"rate": 1.0, "limit": "x"}, "toy.limit: 'x' is not float or None"),
    ],
)
def test_bad_sections_are_one_clear_line(section, message):
    with pytest.raises(BadInput, match=message) as error:
        completed(**section)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"optim.lrr": 1}, "optim.lrr: unknown key; did you mean 'optim.lr'"),
        ({"optim.direction.b3": 1}, "did you mean 'optim.direction.b2'"),
        ({"optm.lr": 1}, "did you mean 'optim.lr'"),
        ({"nonsense": 1}, "nonsense: unknown key"),
        ({"optim.lr": "x"}, "optim.lr: 'x' does not fit: the value there is 0.003"),
        ({"model.padding": "SMAE"}, "did you mean 'SAME'"),
        ({"task": "vision.classfy"}, "there is no module 'vision.classfy'"),
        ({"task": "json"}, "'json' has no sections"),
        ({"model.module": "vision.cnn:CNM"}, "vision.cnn:CNM"),
        ({"optim.name": "adam"}, "did you mean 'adamw'"),
    ],
)
def test_bad_overrides_name_the_nearest_key(override, message):
    with pytest.raises(BadInput, match=message) as error:
        load(DIGITS, **override)
    assert "\n" not in str(error.value)


def test_a_name_of_megabytes_is_not_compared_as_a_whole(monkeypatch):
    compared = []
    near = lambda name, valid, **_: compared.append(name) or []
    monkeypatch.setattr(errors.difflib, "get_close_matches", near)
    assert errors.nearest("k" * 10_000_000, ["key"]) == "valid: key"
    assert len(compared[0]) < 1000


def test_every_section_refuses_a_key_that_it_lacks():
    config = load(DIGITS)
    for where in program.sections(config):
        with pytest.raises(BadInput, match="unknown key"):
            load(DIGITS, **{f"{where}.xyzzy": 1})


def test_choosing_another_function_brings_its_own_defaults():
    config = load(DIGITS, **{"optim.name": "lion", "optim.direction.b2": 0.95})
    assert config["optim"]["direction"] == {"b1": 0.9, "b2": 0.95}
    config = load(DIGITS, **{"model.module": "vision.cnn:MLP"})
    assert config["model"]["hidden"] == (128,)
    assert "kernel" not in config["model"]
    # Also where the file leaves the choice to the default, as the toy's does.
    assert set(load(TOY, **{"optim.name": "sgd"})["optim"]["direction"]) == {"momentum", "nesterov"}


def test_an_evaluator_is_added_or_dropped_by_an_override():
    config = load(DIGITS, **{"evals.test": None, "evals.extra.split": "train[:10]"})
    assert list(config["evals"]) == ["extra"]
    default = load(DIGITS)["evals"]["test"]
    assert config["evals"]["extra"].keys() == default.keys()
    assert config["evals"]["extra"]["split"] == "train[:10]"
    kind = "common.evaluators.calibration"
    config = load(DIGITS, **{"evals.a b, ü.kind": kind, "evals.a b, ü.bins": 3})
    assert list(config["evals"]) == ["a b, ü", "test"]
    assert (config["evals"]["a b, ü"]["bins"], config["evals"]["a b, ü"]["split"]) == (3, "test")
    # In order: what was said of it before is dropped, what comes later adds it again.
    words = ["--config.evals.test.per_class=true", "--config.evals.test=None"]
    loaded = lambda *more: configs.load(DIGITS, [*words, *more], program.sections)
    assert not loaded().evals
    assert loaded("--config.evals.test.batch_size=8").evals.test.per_class is False
    assert not loaded("--config.evals.new.split=test", "--config.evals.new=None").evals
    assert list(loaded("--config.evals=None", "--config.evals.new.split=test").evals) == ["new"]


def test_a_required_key_of_a_kind_can_be_given_with_it(tmp_path, monkeypatch):
    (tmp_path / "strict_kind.py").write_text(
        "def evaluator(source, *, split: str, every: str, batch_size: int = 8):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    added = {"evals.new.split": "test", "evals.new.kind": "strict_kind"}
    with pytest.raises(BadInput, match=r"evals\.new\.every: required, but not set"):
        load(DIGITS, **added)
    config = load(DIGITS, **added | {"evals.new.every": "1 epoch"})
    assert config["evals"]["new"]["every"] == "1 epoch"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"evals.tset": None}, "no such evaluator; did you mean 'test'"),
        ({"evals.tset.batch_sise": 4}, "unknown key; did you mean 'evals.t..t.batch_size'"),
        ({"evals.new.kind": "no_such"}, "there is no module 'no_such'"),
        ({"evals.a/b.split": "test"}, "the key 'a/b' is not a name of an evaluator"),
        ({"evals..split": "test"}, "the key '' is not a name of an evaluator"),
        ({"evals.test": 3}, "evals.test: '3' does not fit: only None does, which drops it"),
        ({"evals.test": "none"}, r"only None does.*one by one, --config\.evals\.test\.split=test"),
        ({"evals.a=b.split": "test"}, "evals.a: 'b.split=test' .* evaluators hold no '='"),
        ({"evals.new.split": None}, "evals.new.split: cannot be None"),
        ({"evals": 3}, r"evals: '3' does not fit: .* --config\.evals\.NAME\.split=test"),
    ],
)
def test_an_evaluator_that_cannot_be_added_or_dropped_is_one_line(override, message):
    with pytest.raises(BadInput, match=message):
        load(DIGITS, **override)


def test_a_new_evaluator_with_nearly_the_name_of_another_is_said(caplog):
    load(DIGITS, **{"evals.tset.split": "test", "evals.other.split": "test"})
    assert [record.getMessage() for record in caplog.records] == [
        "--config.evals.tset: a new evaluator, beside 'test'"
    ]


def test_an_optional_key_can_be_set_and_unset():
    assert load(DIGITS, **{"optim.clip": 1})["optim"]["clip"] == 1.0
    vit = f"{ROOT}/configs/vision/imagenet_vit.py"
    assert load(vit)["optim"]["clip"] == 1.0
    assert load(vit, **{"optim.clip": None})["optim"]["clip"] is None
    with pytest.raises(BadInput, match="optim.lr: cannot be None"):
        load(vit, **{"optim.lr": None})


def test_annotations_of_other_peoples_modules_are_not_in_the_way(tmp_path, monkeypatch):
    (tmp_path / "their_model.py").write_text(
        "from __future__ import annotations\n"
        "from collections.abc import Sequence\n"
        "import flax.linen as nn\n"
        "class Net(nn.Module):\n"
        "    num_classes: int = 1000\n"
        "    widths: Sequence[int] = (8,)\n"
        "    PARTITION = ((r'Dense_0/kernel', (None, None)), (r'out/kernel', (None, None)))\n"
        "    @nn.compact\n"
        "    def __call__(self, x, train=False):\n"
        "        x = nn.relu(nn.Dense(self.widths[0])(x.reshape(len(x), -1)))\n"
        "        return nn.Dense(self.num_classes, name='out')(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = load(DIGITS, **{"model.module": "their_model:Net", "model.widths": "(4,)"})
    assert "num_classes" not in config["model"]
    made = program.prepare(config)
    assert made.like.params["out"]["kernel"].shape == (4, 10)


def test_json_keeps_a_config():
    config = load(DIGITS, **{"optim.multipliers": "(('head/.*', 2.0),)"})
    assert configs.from_json(configs.to_json(config)) == config
    json.loads(configs.to_json(config))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("300 steps", 300), ("1 step", 1), ("2 epochs", 20), ("1e3 examples", 10), ("5%", 10),
     ("0.001 epochs", 1), ("0 steps", 0)],
)  # fmt: skip
def test_durations(text, expected):
    assert duration.steps(text, where="x", batch_size=100, size=1000, total=200) == expected


@pytest.mark.parametrize(
    "text", ["", "3", "epochs", "-1 steps", "3 weeks", "1.2.3 steps", "0 steps"]
)
def test_bad_durations(text):
    with pytest.raises(BadInput, match="where"):
        duration.steps(text, where="where", batch_size=100, size=1000, total=200, low=1)


def test_traced_numbers_are_the_floats_that_a_step_reads():
    numbers = configs.traced(load(DIGITS, **{"loss.label_smoothing": 0.1}))
    assert {"seed", "optim.lr", "optim.direction.b1", "loss.label_smoothing"} <= set(numbers)
    assert "train.average" not in numbers
    changed = configs.substitute(load(DIGITS), {"optim.lr": "traced"})
    assert changed["optim"]["lr"] == "traced"


def test_an_error_in_a_config_file_is_one_line_and_its_cause_is_kept(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def get_config(arg):\n    return 1 / 0\n")
    with pytest.raises(BadInput, match=r"broken\.py, line 2: ZeroDivisionError: division") as error:
        load(str(path))
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_importing_common_imports_neither_images_nor_text():
    code = (
        "import sys, common.training.train, common.laws, common.planning.describe;"
        "bad = [m for m in sys.modules if m.split('.')[0] in"
        " ('vision', 'lm', 'configs', 'tensorflow', 'torch', 'tensorflow_datasets')];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_config_made_in_python_is_not_changed():
    values = {"task": "vision.classify", "train": {"duration": "1 epoch"}}
    for given in (ml_collections.ConfigDict(values), values):
        assert configs.in_full(given, program.sections)["train"]["average"] is None
        assert set(given["train"]) == {"duration"}
