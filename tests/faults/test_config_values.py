"""Values of a config that nothing can be made of: one line that names the key, exit code 2."""

import json
import os
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from faults import refused
from helpers import DIGITS, ROOT, exit_code, load

from common import config as configs
from common import imports, values
from common.errors import BadInput

# (override of configs/vision/digits.py:mlp, what the line says)
OVERRIDES = [
    # Durations, and numbers of steps.
    ("train.duration=1e400 steps", r"train\.duration: '1e400 steps' is more than 2,147,483,647"),
    ("train.duration=5e9 steps", r"train\.duration: '5e9 steps' is more than 2,147,483,647"),
    ("train.duration=2147483648 steps", r"train\.duration: .* more than 2,147,483,647 steps"),
    ("train.duration=1e400 epochs", r"train\.duration: .* more than"),
    ("train.duration=99999999999999999999999 examples", r"train\.duration: .* more than"),
    ("train.duration=1e-400 epochs", r"train\.duration: '1e-400 epochs' is 0 steps"),
    ("train.duration=. steps", r"train\.duration: '\. steps' is not a duration: '\.' is not a num"),
    ("train.duration=", r"train\.duration: '' is not a duration"),
    ("evals.test.every=1e400 epochs", r"evals\.test\.every: .* more than"),
    ("optim.warmup=1e400 steps", r"optim\.warmup: .* more than"),
    ("optim.lookahead=1e400 steps", r"optim\.lookahead: .* more than"),
    ("train.log_every=1e400%", r"train\.log_every: .* more than"),
    ("train.log_every=5e9 steps", r"train\.log_every: .* more than"),
    ("checkpoint.every=1e400 examples", r"checkpoint\.every: .* more than"),
    ("train.steps_per_call=5000000000", r"train\.steps_per_call: 5000000000 is not in 1 to"),
    ("train.stop.patience=100000000000000000000", r"stop\.patience: 1000.* more than 64 bits"),
    ("runtime.profile=0:99999999999999999999", r"runtime\.profile: .*'10:20'"),
    ("runtime.profile=0:9999999999", r"runtime\.profile: no run has 9,999,999,999 steps"),
    ("runtime.profile=5", r"runtime\.profile: '5'; write the steps as '10:20'"),
    # Numbers out of range.
    ("optim.lr=nan", r"optim\.lr: nan is not a finite number"),
    ("optim.lr=-inf", r"optim\.lr: -inf is not a finite number"),
    ("optim.lr=1e400", r"optim\.lr: inf is not a finite number"),
    ("optim.lr=1e39", r"optim\.lr: 1e\+39 is out of the range of a 32-bit float"),
    ("optim.lr=1e-60", r"optim\.lr: 1e-60 is out of the range of a 32-bit float"),
    ("optim.direction.eps=nan", r"optim\.direction\.eps: nan is not a finite number"),
    ("optim.final=inf", r"optim\.final: inf is not a finite number"),
    ("model.dropout=nan", r"model\.dropout: nan is not a finite number"),
    ("loss.label_smoothing=nan", r"loss\.label_smoothing: nan is not a finite number"),
    ("train.average=nan", r"train\.average: nan is not a finite number"),
    ("train.stop.min_delta=nan", r"train\.stop\.min_delta: nan is not a finite number"),
    ("seed=-1", r"config\.seed: -1 is not in \[0, 2\^32\)"),
    ("seed=4294967296", r"config\.seed: 4294967296 is not in \[0, 2\^32\)"),
    ("seed=", r"--config\.seed: '' does not fit"),
    ("train.batch_size=0", r"train\.batch_size: 0 is not a positive number of examples up to"),
    ("train.batch_size=-1", r"train\.batch_size: -1 is not a positive number"),
    ("train.batch_size=3000000000", r"train\.batch_size: 3000000000 is not a positive number"),
    ("train.batch_size=100000000000000000000", r"train\.batch_size: 1000.* more than 64 bits"),
    ("evals.test.batch_size=0", r"evals\.test\.batch_size: 0 is not a positive number"),
    ("evals.test.batch_size=4294967296", r"evals\.test\.batch_size: 4294967296 is not a positive"),
    ("data.workers=10000000000", r"data\.workers: 10000000000 is not in 0 to 1024"),
    ("data.workers=-1", r"data\.workers: -1 is not in 0 to 1024"),
    ("runtime.cpu_devices=0", r"runtime\.cpu_devices: 0 is not in 1 to 4096"),
    ("runtime.cpu_devices=10000000000", r"runtime\.cpu_devices: 10000000000 is not in 1 to 4096"),
    ("mesh.data=10000000000", r"config\.mesh: 10000000000 x"),
    ("checkpoint.keep_latest=100000000000000000000", r"keep_latest: 1000.* more than 64 bits"),
    # Sizes that make no model.
    ("model.hidden=(0,)", r"model\.hidden: 0 is not positive"),
    ("model.hidden=(-1,)", r"model\.hidden: -1 is not positive"),
    ("model.hidden=(100000000000000000000,)", r"model\.hidden: 1000.* more than 64 bits"),
    ("model.hidden=(1000000000000,)", r"model\.hidden: .*1000000000000 is too large a size"),
    ("augment.resized_crop=100000000000", r"augment\.resized_crop: 100000000000 is not in \[1, "),
    ("augment.crop_padding=1000000000", r"augment\.crop_padding: 1000000000 is not in \[0, "),
    ("augment.rand_augment_layers=1000000000", r"rand_augment_layers: 1000000000 is not in \[0, "),
    # Names.
    ("task=", r"config\.task: '' is not an import path; write 'vision\.classify'"),
    ("task=.", r"config\.task: '\.' is not an import path"),
    ("task=vision.", r"config\.task: 'vision\.' is not an import path"),
    ("task=a b", r"config\.task: 'a b' is not an import path"),
    ("task=vision", r"config\.task: 'vision' has no sections"),
    ("task=vision.classify.x", r"config\.task: there is no module 'vision\.classify\.x'"),
    ("model.module=", r"model\.module: '' is not 'package\.module:Class'"),
    ("model.module=vision.cnn", r"model\.module: 'vision\.cnn' is not 'package\.module:Class'"),
    ("model.module=vision.cnn:", r"model\.module: 'vision\.cnn:' is not 'package\.module:Class'"),
    ("model.module=:MLP", r"model\.module: ':MLP' is not 'package\.module:Class'"),
    ("model.module=vision.cnn:MLP.x", r"model\.module: 'vision\.cnn:MLP\.x' is not"),
    ("model.module=.cnn:MLP", r"model\.module: '\.cnn' is not an import path"),
    ("model.module=vision:MLP", r"model\.module: 'vision:MLP': no such class"),
    ("model.module=vision.cnn:MPL", r"model\.module: .* no such class; did you mean 'MLP'"),
    ("model.module=vision.cnn:math", r"model\.module: 'vision\.cnn:math' is not a linen module"),
    ("evals.test.kind=.", r"evals\.test\.kind: '\.' is not an import path"),
    ("evals.test.kind=no_such_module", r"evals\.test\.kind: there is no module 'no_such_module'"),
    ("optim.name=", r"optim\.name: unknown ''"),
    ("optim.freeze=('(',)", r"optim\.freeze: '\(' is not a regular expression"),
    ("optim.multipliers=(('[', 1.0),)", r"optim\.multipliers: '\[' is not a regular expression"),
    ("data.name=", r"data\.name: unknown ''"),
    ("data.name=a\0b", r"data\.name: 'a\\x00b' holds a character that no text has"),
    ("runtime.cache=/dev/null", r"runtime\.cache: /dev/null is a device, not a folder"),
    ("=3", r"unknown argument '--config\.=3'"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "says"), OVERRIDES, ids=[o for o, _ in OVERRIDES])
def test_an_override_that_fits_nothing_is_one_line(override, says, capsys):
    words = "--config", f"{DIGITS}:mlp", "--dry-run", f"--config.{override}"
    refused(capsys, "train", *words, says=says)


# (field of a model, what the line says)
FIELDS = [
    ("vision.cnn:CNN", "widths=(0,)", r"model\.widths: 0 is not positive"),
    ("vision.cnn:CNN", "kernel=-3", r"model\.kernel: -3 is not positive"),
    ("vision.cnn:CNN", "kernel=100", r"too many for images of 8 x 8 pixels"),
    ("vision.resnet:ResNet", "stages=(1000000000,1,1,1)", r"model\.stages: .*at most 10000 blocks"),
    ("vision.resnet:ResNet", "stem_width=0", r"stem of width 0"),
    ("vision.vit:ViT", "layers=1000000000", r"model\.layers: 1000000000 is too many"),
    ("vision.vit:ViT", "heads=0", r"model\.heads: 0 is not positive"),
    ("vision.airbench:Airbench", "widths=(1,1,1,1,1)", r"model\.widths: 5 blocks are too many"),
    ("vision.airbench:Airbench", "whitening=50", r"makes no model .* with whitening=50: .*"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("optim.name=muon", "optim.direction.ns_steps=0"), r"ns_steps: 0 is not in 1 to 100"),
        (
            ("optim.name=muon", "optim.direction.ns_steps=1000000000"),
            r"ns_steps: 1000000000",
        ),
        (
            ("evals.test.kind=common.evaluators.calibration", "evals.test.bins=100000000000"),
            r"bins = 100000000000 is not positive, or more than 65,536",
        ),
    ],
)
def test_a_number_of_a_chosen_section_is_in_range(words, says, capsys):
    words = (f"--config.{word}" for word in words)
    refused(capsys, "train", "--config", f"{DIGITS}:mlp", "--dry-run", *words, says=says)


@pytest.mark.parametrize(("module", "field", "says"), FIELDS)
def test_fields_that_make_no_model_are_one_line(module, field, says, capsys):
    words = f"--config.model.module={module}", f"--config.model.{field}"
    refused(capsys, "train", "--config", f"{DIGITS}:mlp", "--dry-run", *words, says=says)


NET = """import flax.linen as nn
class Net(nn.Module):
    num_classes: int
    width: int = 4
    PARTITION = ((r".*", (None, None)),)
    @nn.compact
    def __call__(self, x, train=False):
        {}
        return nn.Dense(self.num_classes)(nn.Dense(self.width)(x.reshape(len(x), -1)))
"""
# (name, text of a user's module, further words, what the line says)
MODULES = [
    ("syntax", "def (:\n", (), r"cannot be imported: .*their_syntax\.py, line 1: SyntaxError"),
    ("raises", "x = 1\n1 / 0\n", (), r"their_raises\.py, line 2: ZeroDivisionError"),
    ("exits", "import sys\nsys.exit(3)\n", (), r"their_exits\.py, line 2: SystemExit: 3"),
    ("lacks", "import nonsense_y\n", (), r"'their_lacks' needs the module 'nonsense_y'"),
    ("function", "def Net(): pass\n", (), r"'their_function:Net' is not a linen module"),
    ("mistake", NET.format("x + y"), (), r"their_mistake\.py, line 8: NameError: name 'y'"),
    ("negative", NET.format("pass"), ("--config.model.width=-3",), r"with width=-3: .*line 9"),
    ("empty", NET.format("pass"), ("--config.model.width=0",), r"with width=0: .*line 9"),
]


@pytest.mark.parametrize(("name", "text", "words", "says"), MODULES, ids=[m[0] for m in MODULES])
def test_a_mistake_in_ones_own_model_names_its_line(
    name, text, words, says, capsys, tmp_path, monkeypatch
):
    (tmp_path / f"their_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    words = f"--config.model.module=their_{name}:Net", *words
    refused(capsys, "train", "--config", f"{DIGITS}:mlp", "--dry-run", *words, says=says)


def test_modules_beside_the_config_and_in_the_current_folder_are_imported(
    tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.setattr(imports, "_OWN", [])
    monkeypatch.setattr(sys, "path", sys.path[:])
    beside, current = tmp_path / "beside", tmp_path / "current"
    for folder in (beside, current):
        folder.mkdir()
        (folder / "both_have_it.py").write_text(NET.format("pass"))
    (beside / "net_beside.py").write_text(NET.format("pass"))
    (beside / "neighbour_x.py").write_text("LR = 0.125\n")
    for name in ("vision", "json", "time"):  # never in place of ours and the standard library's
        (current / f"{name}.py").write_text(NET.format("pass"))
    (current / "vision").mkdir()
    (current / "vision/mine.py").write_text(NET.format("pass"))
    (current / "net_current.py").write_text(NET.format("pass"))
    (current / "kind_x.py").write_text(
        "def evaluator(source, *, split='test', every='1 epoch', batch_size=8):\n    pass\n"
    )
    path = written(beside, f"import neighbour_x\n{BASE}c['optim']['lr'] = neighbour_x.LR{RETURN}")
    monkeypatch.chdir(current)
    assert load(path)["optim"]["lr"] == 0.125
    for name in ("net_beside:Net", "net_current:Net"):
        assert load(path, **{"model.module": name})["model"]["width"] == 4
    assert load(path, **{"evals.x.kind": "kind_x"})["evals"]["x"]["batch_size"] == 8
    assert not caplog.records
    load(path, **{"model.module": "both_have_it:Net"})
    (record,) = caplog.records
    text = f"is {beside}/both_have_it.py, which hides {current}/both_have_it.py: rename that one"
    assert text in record.getMessage()
    for name, says in (
        ("vision:Net", r"no such class; .*the module 'vision' is .*, which hides .*vision\.py"),
        ("json:Net", r"no such class; .*json/__init__\.py, which hides .*json\.py: rename"),
        ("time:Net", r"no such class; .*built into Python, which hides .*time\.py: rename"),
        (
            "vision.mine:Net",
            r"no module 'vision\.mine'; the module 'vision' is .* hides .*mine\.py",
        ),
        ("nowhere_x:Net", rf"no module 'nowhere_x'; it is not in {beside} or {current} either"),
    ):
        words = "--config", path, "--dry-run", f"--config.model.module={name}"
        refused(capsys, "train", *words, says=says)


# ----------------------------------------------------------------------------------- config files

# A config file, in which a row replaces or adds values.
BASE = """import datetime
import ml_collections
import numpy as np
c = {
    "task": "vision.classify",
    "data": {"name": "digits"},
    "model": {"module": "vision.cnn:MLP", "hidden": (16,)},
    "optim": {"lr": 1e-3},
    "train": {"batch_size": 64, "duration": "10 steps"},
    "evals": {"test": {"every": "100%"}},
}
"""
RETURN = "\ndef get_config(arg=''):\n    return ml_collections.ConfigDict(c)\n"


def written(folder, text: str | bytes) -> str:
    """The path of a config file with this text."""
    path = folder / "theirs.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


# (statement in the config file, what the line says)
STATEMENTS = [
    ("c['optim']['lr'] = np.array([0.1])", r"optim\.lr: array\(\[0\.1\]\) is an array, of shape"),
    ("c['optim']['lr'] = np.array('x')", r"optim\.lr: 'x' is not float"),
    ("c['optim']['lr'] = np.datetime64('2020-01-01')", r"optim\.lr: datetime\.date.* is not float"),
    ("c['optim']['lr'] = np.complex64(1)", r"optim\.lr: \(1\+0j\) is not float"),
    ("c['optim']['lr'] = np.float32('inf')", r"optim\.lr: inf is not a finite number"),
    ("c['optim']['lr'] = __import__('jax').random.key(0)", r"optim\.lr: Array.* is not a number"),
    (
        "c['seed'] = ml_collections.config_dict.required_placeholder(int)",
        r"config\.seed: a required placeholder; give it a value",
    ),
    ("c['optim']['name'] = np.ones(2)", r"optim\.name: array\(\[1\., 1\.\]\) is an array"),
    ("c['optim']['lr'] = float('nan')", r"optim\.lr: nan is not a finite number"),
    ("c['optim']['lr'] = 10**400", r"optim\.lr: 1000.* has more than 64 bits"),
    ("c['optim']['lr'] = 10**5000", r"optim\.lr: a value of type int has more than 64 bits"),
    ("c['optim']['lr'] = 1j", r"optim\.lr: 1j is not float"),
    ("c['optim']['lr'] = __import__('fractions').Fraction(1, 2)", r"optim\.lr: Fraction.* not flo"),
    ("c['optim']['lr'] = lambda: 1", r"optim\.lr: <function .* is not float"),
    ("c['optim']['lr'] = datetime.datetime.now()", r"optim\.lr: datetime.* is not float"),
    ("c['optim']['lr'] = {0.1}", r"optim\.lr: \{0\.1\} is not float"),
    ("c['model']['hidden'] = [16]", r"model\.hidden: \[16\] is not a tuple"),
    ("c['model']['hidden'] = np.array([16])", r"model\.hidden: array.* is an array, of .*tuple"),
    ("c['model']['hidden'] = (10**30,)", r"model\.hidden: 1000.* has more than 64 bits"),
    ("c['model']['hidden'] = (True,)", r"model\.hidden: \(True,\) is not a tuple"),
    ("c['model']['module'] = 3", r"model\.module: 3 is not 'package\.module:Class'"),
    ("c['model'] = 'x'", r"config\.model: expected a section of keys, got 'x' \(str\)"),
    ("c['optim'] = 3", r"config\.optim: expected a section of keys, got 3 \(int\)"),
    ("c['optim']['name'] = None", r"optim\.name: unknown None"),
    ("c['optim']['multipliers'] = {'a': 1}", r"optim\.multipliers: .* is not a tuple"),
    ("c['evals'] = []", r"config\.evals: expected a section of keys, got \[\]"),
    ("c['evals'] = {'t': {'kind': 3}}", r"evals\.t\.kind: 3 is not an import path"),
    ("c['evals'] = {'a/b': {}}", r"config\.evals: the key 'a/b' is not a name of an evaluator"),
    ("c['evals'] = {'a\\tb': {}}", r"config\.evals: the key 'a\\tb' is not a name of an evalu"),
    ("c['evals'] = {'\\ud800': {}}", r"config\.evals: the key '\\ud800' is not a name of an ev"),
    ("c['evals'] = {' a': {}}", r"config\.evals: the key ' a' is not a name of an evaluator"),
    ("c['evals'] = {'a' * 101: {}}", r"config\.evals: the key 'aaa.* is not a name of an evalu"),
    ("c['evals'] = {'': {}}", r"config\.evals: the key '' is not a name"),
    ("c['evals'] = {3: {}}", r"config\.evals: the key 3 is not a name"),
    ("c['optim']['a b'] = 3", r"config\.optim: the key 'a b' is not a name: letters"),
    ("c['optim'][3] = 4", r"config\.optim: some keys are not strings"),
    ("c['optim']['a.b'] = 4", r"theirs\.py, line \d+: ValueError: .*dots"),
    ("c['data']['name'] = '\\ud800'", r"data\.name: .* holds a character that no text has"),
    ("c['seed'] = True", r"config\.seed: True \(bool\) is not int"),
    ("c['seed'] = 10**30", r"config\.seed: 1000.* is not in \[0, 2\^32\)"),
    ("c['task'] = 3", r"config\.task: required"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "says"), STATEMENTS, ids=[s for s, _ in STATEMENTS])
def test_a_value_of_a_config_file_that_fits_nothing_is_one_line(statement, says, capsys, tmp_path):
    path, workdir = written(tmp_path, f"{BASE}{statement}{RETURN}"), tmp_path / "run"
    refused(capsys, "train", "--config", path, "--workdir", str(workdir), says=says)
    assert not workdir.exists()


# (text of a config file, variant, what the line says)
FILES = [
    ("1 / 0\n", "", r"theirs\.py, line 1: ZeroDivisionError: division by zero$"),
    ("def get_config(:\n", "", r"theirs\.py, line 1: SyntaxError: invalid syntax"),
    ("import nonsense_x\n", "", r"theirs\.py, line 1: ModuleNotFoundError: .*nonsense_x"),
    ("import sys; sys.exit(3)", "", r"theirs\.py, line 1: SystemExit: 3"),
    ("def get_config():\n    raise ValueError('a\\nb')\n", "", r"line 2: ValueError: a$"),
    ("def get_config(arg):\n    return {'a': 1}[arg]\n", ":zz", r"line 2: KeyError: 'zz'"),
    ("x = '\0'\n", "", r"theirs\.py: SyntaxError: source code .*null bytes"),
    (b"x = '\xff'\n", "", r"theirs\.py, line 1: SyntaxError: .*utf-?8"),
    (f"{BASE}def get_config():\n    return c\n", ":x", r"takes no argument, .*no variant 'x'"),
    (f"{BASE}def get_config(a, b):\n    return c\n", "", r"get_config\(a, b\) must be callable"),
    (f"{BASE}def get_config(arg=''):\n    pass\n", "", r"get_config returned None, not an ml_coll"),
    (f"{BASE}def get_config(arg=''):\n    return [1]\n", "", r"get_config returned \[1\] \(list\)"),
    ("get_config = 3\n", "", r"theirs\.py defines no function get_config"),
    ("", "", r"theirs\.py defines no function get_config"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "variant", "says"), FILES)
def test_a_config_file_that_gives_no_config_is_one_line(text, variant, says, capsys, tmp_path):
    path = written(tmp_path, text)
    refused(capsys, "train", "--config", path + variant, "--dry-run", says=rf"--config: .*{says}")


@pytest.mark.parametrize(
    "text",
    [
        f"{BASE}def get_config():\n    return ml_collections.ConfigDict(c)\n",
        f"{BASE}def get_config(arg=''):\n    return ml_collections.FrozenConfigDict(c)\n",
        f"{BASE}def get_config(variant=None):\n    return c\n",
    ],
    ids=["no argument", "frozen", "dict"],
)
def test_what_get_config_may_take_and_return(text, tmp_path):
    assert load(written(tmp_path, text))["train"]["batch_size"] == 64


def test_scalars_of_numpy_and_jax_become_numbers(tmp_path):
    statements = (
        "import jax.numpy as jnp\n"
        "c['optim']['lr'] = np.float32(0.1)\n"
        "c['optim']['direction'] = {'b1': np.float16(0.3), 'b2': jnp.bfloat16(0.7)}\n"
        "c['optim']['clip'] = jnp.float32(1e-3)\n"
        "c['optim']['final'] = np.array(np.sqrt(1e-6))\n"
        "c['optim']['multipliers'] = (('head/.*', jnp.float32(0.2)),)\n"
        "c['model']['hidden'] = (np.int64(16), jnp.int32(8))\n"
        "c['data'] = {'name': np.str_('digits'), 'resident': jnp.bool_(True)}\n"
        "c['seed'] = np.uint32(7)\n"
    )
    config = load(written(tmp_path, f"{BASE}{statements}{RETURN}"))
    optim = config["optim"]
    assert (optim["lr"], optim["clip"], optim["final"]) == (0.1, 1e-3, np.sqrt(1e-6))
    assert (optim["direction"]["b1"], optim["direction"]["b2"]) == (0.3, 0.7)
    assert optim["multipliers"] == (("head/.*", 0.2),)
    assert (config["seed"], config["model"]["hidden"]) == (7, (16, 8))
    assert config["data"]["resident"] is True
    assert json.loads(configs.to_json(config))["data"]["name"] == "digits"


def test_the_plain_number_is_the_same_number():
    for kind in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        for x in np.random.default_rng(0).normal(size=100).astype(kind):
            plain = values.python("x", x)
            assert type(plain) is float
            assert kind(plain) == x
    for kind in (np.float16, np.float32):  # rounded up, they would overflow
        assert kind(values.python("x", np.finfo(kind).max)) == np.finfo(kind).max
    exact = np.float32(np.nextafter(np.float32(0.1), np.float32(1)))
    assert values.python("x", exact) == 0.10000001
    assert np.isnan(values.python("x", np.float32("nan")))


def test_a_value_that_follows_another_still_does_if_it_is_numpys(tmp_path):
    lazy = (
        "d = ml_collections.ConfigDict(c)\n"
        "del d.optim.lr\n"
        "d.optim.lr = d.train.get_ref('batch_size') * np.float64(1e-4)\n"
        "def get_config():\n    return d\n"
    )
    path = written(tmp_path, BASE + lazy)
    assert load(path)["optim"]["lr"] == pytest.approx(64e-4)
    assert load(path, **{"train.batch_size": 32})["optim"]["lr"] == pytest.approx(32e-4)
    path = written(tmp_path, BASE + lazy.replace("float64", "float32"))
    assert load(path)["optim"]["lr"] == 0.0064
    assert load(path, **{"train.batch_size": 32})["optim"]["lr"] == 0.0032


@pytest.mark.slow
def test_a_config_that_computes_with_jax_leaves_jax_to_be_configured(tmp_path):
    lr = "import jax.numpy as jnp\nc['optim']['lr'] = jnp.exp(-3.)"
    path = written(tmp_path, f"{BASE}{lr}{RETURN}")
    code = (
        "import jax; from common import config; from common.training import program;"
        f"lr = config.load({path!r}, [], program.sections).optim.lr;"
        "jax.config.update('jax_num_cpu_devices', 3); print(lr, jax.device_count())"
    )
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.049787067", "3"]


def test_a_message_is_one_line_whatever_it_quotes():
    assert str(BadInput("a\nb\r\nc\u2028d")) == "a b c d"
    assert not re.search(r"[\n\r]", str(BadInput("x\n\n")))


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_first_and_the_last_seed_are_seeds(seed):
    assert load(f"{DIGITS}:mlp", seed=seed)["seed"] == seed


@pytest.mark.slow
def test_the_longest_run_can_be_planned(capsys):
    words = "--config", f"{DIGITS}:mlp", "--config.train.duration=2147483647 steps"
    assert exit_code("train", *words, "--dry-run") == 0
    assert "2147483647 steps of" in capsys.readouterr().out
