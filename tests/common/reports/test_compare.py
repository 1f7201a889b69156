"""Runs side by side: where they part is where they are made to, and the cause is named."""

import json
import shutil

import jax
import numpy as np
import pytest
import toy
from helpers import TOY, exit_code, load

from common.data import order
from common.reports import compare
from common.training import program, train

STEPS = 8


def run(folder, **overrides) -> str:
    """A short run of the toy task that logs every step."""
    short = {"train.duration": f"{STEPS} steps", "checkpoint.every": f"{STEPS} steps"}
    train.run(load(TOY, **short, **overrides), folder, show=False)
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, same_programs):
    """(folder of a run `a`, the training set's file, which it reads)."""
    root = tmp_path_factory.mktemp("runs")
    file = root / "x.npy"
    np.save(file, toy.load()["train"].resident["x"])
    run(root / "a", **{"data.file": str(file)})
    return root, file


def test_runs_part_at_the_step_that_reads_the_byte_that_differs(
    runs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(train, "prepare", program.prepare)  # of the file as it is
    root, file = runs
    rows = [order.rows(3, step, 40, 203).tolist() for step in range(STEPS)]
    row, first = rows[3][7], 4
    assert not any(row in before for before in rows[:3])
    whole = file.read_bytes()
    x = np.load(file)
    x.view(np.uint8)[row, 2] ^= 1
    try:
        np.save(file, x)
        assert sum(a != b for a, b in zip(file.read_bytes(), whole, strict=True)) == 1
        assert exit_code("reproduce", str(root / "a"), "--workdir", str(tmp_path / "again")) == 0
    finally:
        file.write_bytes(whole)
    said = capsys.readouterr().out
    assert said.startswith(compare.EQUAL)  # one bit of a number is far below the tolerance
    assert f"the same up to step {first - 1}; at step {first} these differ: params/hidden" in said
    assert "the data set train: " in said
    assert said.count("differs: ") == 1
    assert exit_code("diff_runs", str(root / "a"), str(tmp_path / "again")) == 1


def test_a_run_is_reproduced_from_its_workdir(runs, tmp_path, capsys):
    root, _ = runs
    words = ("reproduce", str(root / "a"), "--workdir", str(tmp_path / "again"))
    assert exit_code(*words) == 0
    assert capsys.readouterr().out == f"{compare.IDENTICAL}\n"
    found = compare.runs(root / "a", tmp_path / "again")
    assert found == (compare.IDENTICAL, "", [], (0.0, ""))
    assert exit_code("diff_runs", str(root / "a"), str(tmp_path / "again")) == 0
    capsys.readouterr()
    assert exit_code(*words) == 2  # it never takes the one of before
    assert compare.IDENTICAL not in capsys.readouterr().out
    (tmp_path / "again/result.json").unlink()  # as if interrupted: the same code goes on
    assert exit_code(*words) == 0
    assert capsys.readouterr().out == f"{compare.IDENTICAL}\n"


def test_a_config_that_was_changed_behind_the_run_is_named(runs, tmp_path, capsys):
    folder = str(shutil.copytree(runs[0] / "a", tmp_path / "edited"))
    path = tmp_path / "edited/config.json"
    config = json.loads(path.read_text())
    config["optim"]["lr"] = 0.03
    path.write_text(json.dumps(config))
    assert exit_code("reproduce", folder) == 1
    said = capsys.readouterr().out
    assert said.startswith(compare.DIFFERENT)
    assert "config.optim.lr" in said
    assert "was 0.01 when it ran" in said
    assert "0.03" in said
    assert "at step 1 these differ" in said


def test_other_settings_are_named_and_where_they_part(runs, tmp_path):
    root, file = runs
    other = {"data.file": str(file), "optim.freeze": "('hidden/.*',)", "model.dropout": 0.2}
    found = compare.runs(root / "a", run(tmp_path, **other))
    assert found.verdict == compare.DIFFERENT
    assert found.largest[0] > 1e-3
    assert found.causes == [
        "config.model.dropout: 0.1 and 0.2",
        "config.optim.freeze: () and ('hidden/.*',)",
    ]
    assert found.parted.startswith("at step 1 these differ: params/hidden, params/")


def test_versions_and_machines_are_named(runs, tmp_path):
    root, _ = runs
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for path in (root / "a").iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    starts = json.loads((folder / "environment.json").read_text())
    starts[-1]["versions"]["jax"] = "0.1"
    starts[-1]["device"] = "TPU v9"
    (folder / "environment.json").write_text(json.dumps(starts))
    here = jax.devices()[0].device_kind
    assert compare.runs(root / "a", folder).causes == [
        f"device: {here!r} and 'TPU v9'",
        f"versions.jax: {jax.__version__!r} and '0.1'",
    ]


def test_what_is_no_run_is_one_line(runs, tmp_path, capsys):
    root, _ = runs
    for words in (("diff_runs", str(root / "a"), str(tmp_path)), ("reproduce", str(tmp_path))):
        assert exit_code(*words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
