"""Repeating a run in another environment: real packages of another version."""

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
