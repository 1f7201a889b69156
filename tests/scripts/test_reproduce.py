"""Repeating a run in another environment: real packages of another version."""

import os
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
from helpers import DIGITS, ROOT, finish, start


@pytest.mark.slow
def test_another_version_of_a_package_is_named(tmp_path):
    run, packages = str(tmp_path / "run"), tmp_path / "packages"
    short = "--config.train.duration=20 steps"
    finish(start("train", "--config", f"{DIGITS}:mlp", "--workdir", run, short))
    here = metadata.version("flax")
    other = "0.12.7" if here != "0.12.7" else "0.12.6"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages)]
    subprocess.run([*pip, f"flax=={other}"], check=True)
    path = f"{packages}:{ROOT}"
    said = finish(start("reproduce", run, PYTHONPATH=path))
    assert f"differs: versions.flax: {here!r} and {other!r}\n" in said
    assert said.count("differs: ") == 1
    # Back in the environment that it was made in, nothing differs.
    again = finish(start("reproduce", run, "--workdir", str(tmp_path / "here")))
    assert again == "bit-identical\n"


@pytest.mark.slow
def test_code_that_changed_since_is_trained_and_named(tmp_path):
    project = tmp_path / "project"
    for name in ("common", "lm", "vision", "scripts"):
        shutil.copytree(ROOT / name, project / name)

    def script(name, *words) -> subprocess.CompletedProcess:
        words = [sys.executable, str(project / f"scripts/{name}.py"), *words]
        env = os.environ | {"PYTHONPATH": str(project), "JAX_NUM_CPU_DEVICES": "1"}
        return subprocess.run(words, env=env, cwd=project, capture_output=True, text=True)

    run, short = str(tmp_path / "run"), "--config.train.duration=10 steps"
    words = ("--config", f"{DIGITS}:mlp", "--workdir", run, short)
    assert script("train", *words).returncode == 0
    done = script("reproduce", run)
    assert (done.returncode, done.stdout) == (0, "bit-identical\n")
    file = project / "vision/cnn.py"
    file.write_text(file.read_text().replace("nn.relu", "nn.tanh"))
    done = script("reproduce", run)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing was trained" in done.stderr
    done = script("reproduce", run, "--workdir", f"{run}-other")
    assert done.returncode == 1
    assert "differs: code vision/cnn.py: " in done.stdout
