"""The house: imports run one way and in no circle, and a model costs no more than its layers."""

import ast
import functools
import graphlib
import json
import pathlib
import re
import runpy
import subprocess
import sys

from helpers import ROOT

# Each imports from those before it alone.
PACKAGES = ("common", "lm", "vision", "configs", "scripts")


def modules() -> dict[str, pathlib.Path]:
    """{import path: file} of the packages."""
    found = {}
    for package in PACKAGES[:-1]:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def statements(path: pathlib.Path) -> list:
    """The imports of a file, wherever in it they are."""
    kinds = ast.Import, ast.ImportFrom
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def imported(path: pathlib.Path, known) -> set[str]:
    """The import paths, of `known` where they are, that a file imports anywhere."""
    names = set()
    for node in statements(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif node.level == 0:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & known) or {node.module}
    return names


def test_arrows_run_one_way():
    known = set(modules())
    for place, package in enumerate(PACKAGES):
        for path in (ROOT / package).rglob("*.py"):
            for name in imported(path, known):
                top = name.split(".")[0]
                assert top not in PACKAGES[place + 1 :], f"{path} imports {name}"


def test_there_is_no_circle():
    files = modules()
    graph = {name: imported(path, set(files)) & set(files) for name, path in files.items()}
    graphlib.TopologicalSorter({name: of - {name} for name, of in graph.items()}).prepare()


def test_a_model_imports_no_config_no_flags_and_no_checkpoints():
    """None of our own files behind `import lm.bert` and `import vision.vit` does."""
    code = (
        "import json, sys, flax.linen, lm.bert, vision.vit; own = 'common', 'lm', 'vision';"
        "print(json.dumps([m for m in sys.modules if m.split('.')[0] in own]))"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    own = json.loads(done.stdout)
    assert {"lm.bert", "vision.vit", "common.nn.attention", "common.errors"} <= set(own)
    files = modules()
    heavy = {"absl", "ml_collections", "orbax", "grain", "etils", "optax", "tensorflow_datasets"}
    for name in own:
        tops = {imports.split(".")[0] for imports in imported(files[name], set(files))}
        assert not tops & heavy, f"{name} imports {tops & heavy}"


def test_errors_import_the_standard_library_alone():
    tops = {name.split(".")[0] for name in imported(ROOT / "common/errors.py", set())}
    assert tops <= sys.stdlib_module_names


def test_every_measure_is_listed():
    tests = runpy.run_path(str(ROOT / "tests/measure.py"))["TESTS"]
    marks = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        marks |= set(re.findall(r'mark\.measure\("(\w+)"\)', path.read_text()))
    assert marks == set(tests)
