"""Digests of code: every file of the packages, the user's own modules, and nothing else."""

import hashlib

import pytest

from common.devices import code


@pytest.fixture(autouse=True)
def fresh():
    """Each test reads the files anew, as a process does."""
    code._digests.cache_clear()
    yield
    code._digests.cache_clear()


def test_every_file_of_the_packages_has_its_digest():
    import common.errors
    import vision.cnn

    found = code.digests()
    assert {name.split("/")[0] for name in found} == set(code.PACKAGES)
    for module, name in ((common.errors, "common/errors.py"), (vision.cnn, "vision/cnn.py")):
        with open(module.__file__, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest().startswith(found[name])
    assert "common/runs/log.py" in found
    assert len(set(map(len, found.values()))) == 1


def test_a_module_of_ones_own_counts_with_what_it_imports_beside_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_task.py").write_text("import json\nfrom own_helper import x\nimport numpy\n")
    (tmp_path / "own_helper.py").write_text("import own_task\nx = 1\n")
    (tmp_path / "own_other.py").write_text("")
    before = code.digests(["own_task"])
    assert before.keys() - code.digests().keys() == {"own_task.py", "own_helper.py"}
    (tmp_path / "own_helper.py").write_text("x = 2\n")
    assert code.digests(["own_task"]) == before  # as imported by this process
    code._digests.cache_clear()
    after = code.digests(["own_task"])
    assert [name for name in before if before[name] != after[name]] == ["own_helper.py"]


def test_of_a_package_of_ones_own_every_file_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_package/deep").mkdir(parents=True)
    for name in ("__init__", "model", "deep/layers"):
        (tmp_path / f"own_package/{name}.py").write_text("")
    (tmp_path / "own_package/.#model.py").symlink_to("nowhere")
    own = code.digests(["own_package.model:Net"]).keys() - code.digests().keys()
    assert own == {f"own_package/{n}.py" for n in ("__init__", "model", "deep/layers")}


@pytest.mark.parametrize("name", ["", "no_such_module", "sys", "a..b", "__main__", ".x", "lm.mlm"])
def test_what_has_no_file_of_its_own_adds_none(name):
    assert code.digests([name]) == code.digests()


def test_a_config_names_its_modules():
    flat = {"task": "a", "model.module": "b:C", "evals.x.kind": "d", "evals.x.every": "e"}
    assert code.named(flat) == ["a", "b:C", "d"]
    assert code.named({"task": 3, "model.width": 1}) == []
