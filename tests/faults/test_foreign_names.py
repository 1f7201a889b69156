"""Folders and modules of a user's with names of ours: a clear line, never a mixture."""

import importlib.util
import os
import subprocess
import sys

import pytest
from helpers import DIGITS, ROOT

from common import imports
from common.errors import BadInput
from common.laws import report

PACKAGES = imports.PACKAGES[:-1]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_of_somebody_elses_in_place_of_ours_is_one_line(name, tmp_path, monkeypatch):
    file = tmp_path / name / "__init__.py"
    file.parent.mkdir()
    file.write_text("")
    theirs = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, file))
    monkeypatch.setitem(sys.modules, name, theirs)
    says = rf"'{name}\.x': the module '{name}' is {file.parent}, which hides the project's {ROOT}"
    with pytest.raises(BadInput, match=says):
        imports.module("config.task", f"{name}.x", "vision.classify")


@pytest.mark.parametrize(
    ("named", "place"),
    [
        ("from common import helper_x", "folder"),
        ("import common.helper_x", "folder"),
        ("from common import helper_x", "module"),
        ("import common.helper_x", "path"),
    ],
)
def test_a_task_that_imports_a_common_of_its_own_is_told_which_to_rename(
    named, place, tmp_path, monkeypatch
):
    monkeypatch.setattr(imports, "_OWN", [])
    monkeypatch.setattr(sys, "path", sys.path[:])
    task = f"hidden_{place}_{len(named)}"
    (tmp_path / f"{task}.py").write_text(f"{named}\n")
    folder = tmp_path / "elsewhere" if place == "path" else tmp_path
    (folder / "common").mkdir(parents=True)
    theirs = folder / ("common.py" if place == "module" else "common/helper_x.py")
    theirs.write_text("helper_x = 1\n")
    if place == "path":
        sys.path.append(str(folder))
    with pytest.raises(BadInput, match=rf"is {ROOT}/common/__init__\.py, which hides {theirs}"):
        report.bare(str(tmp_path / f"{task}.py"), [])


@pytest.mark.slow
def test_scripts_run_where_everything_has_our_names(tmp_path):
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("1 / 0\n")
    words = [sys.executable, f"{ROOT}/scripts/train.py", "--config", f"{DIGITS}:mlp", "--dry-run"]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "steps between evaluations" in done.stdout
