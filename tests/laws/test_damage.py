"""Damage to the files of a run: found, or harmless; and a full disk, which damages nothing."""

import contextlib
import json
import os
import pathlib
import random
import resource
import shutil
import socket
import subprocess
import sys
from collections import Counter

import pytest
from helpers import DIGITS, ROOT, exit_code, finish, load, result, start, timeless

from common import tree
from common.laws.measure import flip
from common.runs import checkpoint, workdir
from common.training.program import prepare

pytestmark = pytest.mark.slow

RUN = {
    "train.duration": "12 steps", "train.log_every": "1 steps", "checkpoint.every": "4 steps",
    "evals.test.every": "4 steps", "checkpoint.keep_latest": 3,
}  # fmt: skip
WORDS = ("--config", f"{DIGITS}:mlp", *(f"--config.{k}={v}" for k, v in RUN.items()))
NEWEST = 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with three checkpoints; to be copied."""
    folder = tmp_path_factory.mktemp("damage") / "run"
    assert exit_code("train", *WORDS, "--workdir", str(folder)) == 0
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def flips(size: int, rng: random.Random) -> set[int]:
    return {0, size // 2, size - 1, *(rng.randrange(size) for _ in range(4))} if size else set()


def cuts(size: int) -> set[int]:
    return {0, size // 2, size - 1} if size else set()


def damages(newest: pathlib.Path):
    """(name, what is done to a folder like `newest`) of every damage to try."""
    rng = random.Random(0)
    for path in sorted(newest.rglob("*")):
        name = path.relative_to(newest)
        if path.is_dir():
            yield f"delete {name}/", lambda to, n=name: shutil.rmtree(to / n)
            continue
        size = path.stat().st_size
        for at in sorted(flips(size, rng)):
            yield f"flip {name} at {at}", lambda to, n=name, at=at: flip(to / n, at)
        for at in sorted(cuts(size)):
            yield f"cut {name} to {at}", lambda to, n=name, at=at: os.truncate(to / n, at)
        yield f"delete {name}", lambda to, n=name: (to / n).unlink()


def test_damage_anywhere_in_a_checkpoint_is_found_or_harmless(whole, tmp_path, capsys, caplog):
    like = prepare(load(f"{DIGITS}:mlp", **RUN)).like
    with contextlib.closing(checkpoint.Checkpoints(whole)) as good:
        assert good.steps() == [4, 8, NEWEST]
        digests = {step: tree.hexdigest(good.restore(like, step)[0]) for step in good.steps()}
    assert len(set(digests.values())) == 3
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    undamaged, victim = whole / f"checkpoints/{NEWEST}", tmp_path / f"checkpoints/{NEWEST}"
    found, harmless, kinds = Counter(), Counter(), Counter()
    for name, damage in damages(undamaged):
        damage(victim)
        with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
            state, step = checkpoints.restore(like)
        # Whole, bit for bit: the damaged step where the damage is harmless, else the one before.
        assert step in (8, NEWEST), name
        assert tree.hexdigest(state) == digests[step], name
        kind = name.split()[0]
        kinds[kind] += 1
        (harmless if step == NEWEST else found)[name.split()[1]] += 1
        shutil.rmtree(victim, ignore_errors=True)
        shutil.copytree(undamaged, victim)
    data = [f"state/d/{file.name}" for file in (undamaged / "state/d").iterdir()]
    for name in ("state/manifest.ocdbt", "digests/metadata", *data):
        assert found[name] >= 8, name
        assert harmless[name] == 0, name
    with capsys.disabled():
        tried = ", ".join(f"{n} {kind}s" for kind, n in kinds.items())
        print(
            f"\ndamage to a checkpoint: {tried}; {found.total()} found, {harmless.total()} harmless"
            f" ({', '.join(sorted(harmless))})"
        )


# --------------------------------------------------------------------------------- the other files


def said(folder, capsys) -> tuple[int, str]:
    """(exit code, standard error) of the run's command in `folder`."""
    code = exit_code("train", *WORDS, "--workdir", str(folder))
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["config.json", "environment.json", "metrics.jsonl", "result.json"]
)
def test_damage_to_the_other_files_is_one_line_or_ends_the_same(whole, tmp_path, name, capsys):
    size, rng = (whole / name).stat().st_size, random.Random(0)
    tried = [(f"flip at {at}", lambda f, at=at: flip(f, at)) for at in flips(size, rng)]
    tried += [(f"cut to {at}", lambda f, at=at: os.truncate(f, at)) for at in cuts(size)]
    tried += [
        ("delete", lambda f: f.unlink()),
        ("NUL at the end", lambda f: f.write_bytes(f.read_bytes()[: size // 2] + b"\0" * 99)),
        ("NUL", lambda f: f.write_bytes(b"\0" * size)),
        ("garbage line", lambda f: f.write_bytes(f.read_bytes().replace(b"\n", b"\n#!\n", 1))),
    ]
    codes = Counter()
    for what, damage in tried:
        folder = tmp_path / what.replace(" ", "_")
        shutil.copytree(whole, folder)
        damage(folder / name)
        code, error = said(folder, capsys)
        codes[code] += 1
        assert "Traceback" not in error, (what, error)
        if code == 0:
            assert timeless(folder) == timeless(whole), (what, error)
            for key in ("steps", "digest", "eval", "parameters"):
                assert result(folder)[key] == result(whole)[key], (what, key)
        else:
            assert code == 2, (what, error)
            errors = [line for line in error.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, (what, error)
        for step in ("latest", "4"):  # and evaluations read, or say why not
            assert exit_code("evaluate", "--workdir", str(folder), "--step", step) in (0, 2)
            assert "Traceback" not in capsys.readouterr().err
    with capsys.disabled():
        print(f"\ndamage to {name}: {codes[0]} ended the same, {codes[2]} were said")


def test_a_damaged_log_is_computed_again_where_the_message_says(whole, copy, capsys):
    log = copy / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert '"step": 7' in lines[7]
    log.write_text("".join([*lines[:7], "garbage\n", *lines[8:]]))
    code, error = said(copy, capsys)
    assert code == 2
    assert "is damaged at line 8: it is whole up to step 6" in error
    assert "move the checkpoints of steps [8, 12] away" in error
    for step in (8, 12):
        (copy / f"checkpoints/{step}").rename(copy / f"away_{step}")
    assert said(copy, capsys)[0] == 0
    assert timeless(copy) == timeless(whole)
    assert result(copy)["digest"] == result(whole)["digest"]


# -------------------------------------------------------------------------------------- no room


@contextlib.contextmanager
def little_room(folder: pathlib.Path, size: int):
    """A folder for `size` bytes: yields (what to do to a new process, what makes room).

    A file system of its own where we may mount one, and elsewhere a limit on the size of files.
    """
    folder.mkdir()
    mount = lambda *words: subprocess.run(
        ["mount", *words, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if shutil.which("mount") and mount("-t", "tmpfs", "-o", f"size={size}").returncode == 0:
        try:
            yield lambda pid: None, lambda: mount("-o", "remount,size=64m").check_returncode()
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        limits = size // 8, size // 8
        yield lambda pid: resource.prlimit(pid, resource.RLIMIT_FSIZE, limits), lambda: None


@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        pytest.param(
            1_600_000,
            {"model.hidden": "(512,)", "train.duration": "80 steps", "checkpoint.keep_latest": 9,
             "checkpoint.every": "10 steps"},
            id="checkpoint",
        ),
        pytest.param(
            60_000, {"train.duration": "900 steps", "checkpoint.every": "900 steps"}, id="log"
        ),
    ],
)  # fmt: skip
def test_a_full_disk_is_one_line_and_with_room_the_same_command_ends_the_same(
    tmp_path, size, overrides, capsys
):
    words = [f"--config.{k}={v}" for k, v in (RUN | overrides).items()]
    command = lambda folder: ("--config", f"{DIGITS}:mlp", "--workdir", str(folder), *words)
    finish(start("train", *command(tmp_path / "whole")))
    with little_room(tmp_path / "disk", size) as (limit, make_room):
        folder = tmp_path / "disk/run"
        process = start("train", *command(folder))
        limit(process.pid)
        error = finish(process, 1)
        *shown, last = error.strip().splitlines()
        assert all(line.startswith(("vision.classify: ", "step ")) for line in shown), error
        kept = checkpoint.steps_in(folder)
        told = f"the checkpoint of step {kept[-1]} is intact" if kept else "no step is saved yet"
        assert last.startswith(("error: no space left on device: ", "error: file too large: "))
        assert last.endswith(f"; {told}; free some space and run the same command again")
        assert not (folder / "result.json").exists()
        for step in kept:
            evaluated = exit_code("evaluate", "--workdir", str(folder), "--step", str(step))
            assert evaluated == 0
        capsys.readouterr()
        make_room()
        finish(start("train", *command(folder)))
        assert timeless(folder) == timeless(tmp_path / "whole")
        assert result(folder)["digest"] == result(tmp_path / "whole")["digest"]
        assert all(p.name.isdigit() for p in (folder / "checkpoints").iterdir())


# ------------------------------------------------------------------------------- several processes


def places() -> list[dict[str, str]]:
    """The settings of two processes that share a run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}
        for i in range(2)
    ]


def test_what_one_process_finds_all_processes_obey(tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    with workdir.Lock(tmp_path / "taken") as lock:
        lock.hold()
        child = str(ROOT / "tests/support/process_restore.py")
        words = [sys.executable, child, str(tmp_path / "run"), str(tmp_path / "taken")]
        path = {"PYTHONPATH": f"{ROOT}:{ROOT}/tests/support", "JAX_NUM_CPU_DEVICES": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started = [
            subprocess.Popen(words, env=os.environ | path | place, **pipes) for place in places()
        ]
        found = [json.loads(finish(process).splitlines()[-1]) for process in started]
    for one in found:
        assert one["processes"] == 2
        assert f"is in use by process {os.getpid()} on" in one["taken"]
        assert (one["step"], one["same"], one["steps"]) == (1, True, [1])
        assert "of another model or optimizer: other is not in the checkpoint" in one["other"]
    assert found[0]["own"] == []
    assert found[1]["own"] == ["Damaged"]
    assert (tmp_path / "run/damaged_checkpoint_2").is_dir()


def test_a_disk_that_is_full_for_one_process_ends_all(tmp_path):
    words = {"model.hidden": "(512,)", "train.duration": "80 steps", "checkpoint.every": "10 steps",
             "checkpoint.keep_latest": 9}  # fmt: skip
    with little_room(tmp_path / "disk", 1_600_000) as (limit, _):
        folder = tmp_path / "disk/run"
        command = ("--config", f"{DIGITS}:mlp", "--workdir", str(folder))
        command += tuple(f"--config.{k}={v}" for k, v in (RUN | words).items())
        started = [start("train", *command, **place) for place in places()]
        for process in started:
            limit(process.pid)
        said = [process.communicate(timeout=300)[1] for process in started]
        codes = {process.returncode for process in started}
        assert codes == {1}, said
        assert any("; free some space and run the same command again" in text for text in said), (
            said
        )
        assert not any("Traceback" in text for text in said), said
        assert not (folder / "result.json").exists()
