"""Config files and modules of one's own: what they may hold, and one line where nothing can be made
of them."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from faults import refused
from helpers import DIGITS, ROOT, load

from common import config as configs
from common import imports, values
from common.errors import BadInput

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
    ("c['optim']['lr'] = np.void(b'abcd')", r"optim\.lr: np\.void\(.*\) is not a number"),
    ("c['optim']['lr'] = np.ma.masked", r"optim\.lr: a masked value is not a number"),
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
    ("get_config = dict\n", "", r"get_config is <class 'dict'>; write a function"),
    (f"{BASE}def get_config(size='a'):\n    return {{}}[size]\n", "", r"line \d+: KeyError: 'a'$"),
    (f"{BASE}def get_config(size='a'):\n    return {{}}[size]\n", ":", r"line \d+: KeyError: ''$"),
    (f"{BASE}def get_config(size):\n    return {{}}[size]\n", "", r"line \d+: KeyError: ''$"),
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
        f"{BASE}def get_config(size='small'):\n    return {{'small': c}}[size]\n",
        f"{BASE}d = ml_collections.ConfigDict(c).lock()\ndef get_config():\n    return d\n",
        f"{BASE}d = ml_collections.ConfigDict(c)\nd.optim.lock()\nget_config = lambda: d\n",
    ],
    ids=["no argument", "frozen", "dict", "default", "locked", "a locked section"],
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


def test_a_value_that_cannot_be_computed_from_those_it_follows_is_one_line(tmp_path):
    lazy = (
        "c['seed'] = 1\n"
        "d = ml_collections.ConfigDict(c)\n"
        "del d.optim.lr\n"
        "d.optim.lr = ml_collections.FieldReference(1.0) / d.get_ref('seed')\n"
        "def get_config():\n    return d\n"
    )
    path = written(tmp_path, BASE + lazy)
    assert load(path, seed=4)["optim"]["lr"] == 0.25
    says = r"^config\.optim\.lr: cannot be computed from the values that it follows: ZeroDivisionE"
    with pytest.raises(BadInput, match=says):
        load(path, seed=0)
    path = written(tmp_path, BASE + lazy.replace("def", "d.seed = 0\ndef"))
    with pytest.raises(BadInput, match=says):
        load(path)


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


# ---------------------------------------------------------------------------------- their modules

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


@pytest.mark.parametrize(
    ("line", "kept", "says"),
    [
        ("from random import mine", "random.py", r"the module 'random' is .*, which hides"),
        ("import random; random.mine()", "random.py", r"'random' is .*, which hides"),
        ("from vision.nets_x import f", "vision/nets_x.py", r"'vision' is .*, which hides"),
        ("from common import mine", "common/mine.py", r"'common' is .*, which hides"),
        ("from common import other", "common/mine.py", r"cannot import name 'other'[^;]*$"),
        ("from json import mine", "random.py", r"cannot import name 'mine'[^;]*$"),
    ],
)
def test_an_import_that_ours_or_pythons_module_hides_says_what_to_rename(
    line, kept, says, tmp_path, monkeypatch
):
    monkeypatch.setattr(imports, "_OWN", [])
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    (tmp_path / kept).parent.mkdir(exist_ok=True)
    (tmp_path / kept).write_text("def mine(): pass\n")
    says += rf" .*{kept}: rename that one$" if says.endswith("hides") else ""
    (tmp_path / "config_x.py").write_text(f"\n{line}\n{BASE}{RETURN}")
    with pytest.raises(BadInput, match=rf"^--config: config_x\.py, line 2: .*{says}"):
        load("config_x.py")  # the usual path: a relative one
    (tmp_path / "model_x.py").write_text(f"\n{line}\n")
    with pytest.raises(BadInput, match=rf"'model_x' (cannot .*, line 2:|needs) .*{says}"):
        imports.module("config.model.module", "model_x", "")
