"""The files of a run: one run at a time, nothing lost where writing is refused, damage is said."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest
from helpers import DIGITS, TOY, exit_code, finish, load, same, start

from common.errors import BadInput
from common.runs import checkpoint, log, mending, workdir
from common.training import train
from common.training.saved import read_config

pytestmark = pytest.mark.usefixtures("same_programs")

RUN = ("--config", f"{DIGITS}:mlp", "--config.train.duration=8 steps",
       "--config.train.log_every=1 steps", "--config.checkpoint.every=2 steps",
       "--config.checkpoint.keep_latest=5", "--config.evals.test.every=4 steps")  # fmt: skip


def contents(folder) -> dict:
    """Every file of a folder, byte for byte, and when it was written."""
    files = [p for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file()]
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def trained(folder, capsys) -> str:
    """Runs RUN in a folder to its end; what it said on standard error."""
    assert exit_code("train", *RUN, "--workdir", str(folder)) == 0
    return capsys.readouterr().err


def refused(folder, code: int, capsys, *words: str) -> str:
    """Runs RUN in a folder, where it must end with `code` and one line."""
    assert exit_code("train", *RUN, "--workdir", str(folder), *words) == code
    error = capsys.readouterr().err.strip().splitlines()
    said = [line for line in error if line.startswith("error: ")]
    assert said == error[-1:], error
    return said[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, same_programs):
    """A finished run; to be copied."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert exit_code("train", *RUN, "--workdir", str(folder)) == 0
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


# -------------------------------------------------------------------------------- one run at a time


def test_a_second_run_is_refused_with_the_name_of_the_first_and_writes_nothing(copy, capsys):
    with workdir.Lock(copy):
        before = contents(copy)
        assert refused(copy, 2, capsys) == (
            f"error: --workdir: {copy} is in use by process {os.getpid()} on "
            f"{socket.gethostname()}; wait until that run ends, or use another --workdir"
        )
        assert contents(copy) == before
        assert exit_code("evaluate", "--workdir", str(copy)) == 0  # only reads
        capsys.readouterr()
    trained(copy, capsys)


def test_of_two_runs_that_begin_at_once_one_is_refused(tmp_path):
    with workdir.Lock(tmp_path / "run") as first, workdir.Lock(tmp_path / "run") as second:
        workdir.claim(tmp_path / "run", {"task": "a"}, {}, write=True, lock=first)
        with pytest.raises(BadInput, match="is in use by"):
            workdir.claim(tmp_path / "run", {"task": "b"}, {}, write=True, lock=second)
    assert read_config(tmp_path / "run") == {"task": "a"}


def test_where_there_are_no_locks_there_is_none(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(workdir.errno.ENOLCK, "no locks available")

    monkeypatch.setattr(workdir.fcntl, "flock", no_locks)
    with workdir.Lock(tmp_path) as lock:
        lock.hold()


def children(pid: int) -> set[int]:
    """The processes that a process has started, from whichever of its threads."""
    files = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for file in files for child in file.read_text().split()}


@pytest.mark.slow
def test_a_run_is_alone_as_long_as_it_lives_and_no_longer(tmp_path, capsys):
    folder = tmp_path / "run"
    # Reading with worker processes, which must not keep the lock when the run is killed.
    words = ("--config", TOY, "--workdir", str(folder), "--config.data.resident=false",
             "--config.data.workers=2", "--config.checkpoint.every=5 steps")  # fmt: skip
    long = (*words, "--config.train.duration=100000 steps")
    first, third, workers = start("train", *long), None, set()
    try:
        end = time.monotonic() + 200
        while len(checkpoint.steps_in(folder)) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        began = (folder / "environment.json").read_bytes()
        error = finish(start("train", *long), 2)
        assert f"is in use by process {first.pid} on {socket.gethostname()}" in error
        assert len(error.strip().splitlines()) == 1
        assert exit_code("evaluate", "--workdir", str(folder)) == 0
        assert json.loads(capsys.readouterr().out)["eval"]["scores"]["accuracy"] > 0
        assert first.poll() is None
        assert (folder / "environment.json").read_bytes() == began
        workers = children(first.pid)
        assert len(workers) >= 2
        first.kill()
        assert first.wait() == -signal.SIGKILL
        while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers):  # they go as well
            time.sleep(0.05)
        third = start("train", *long)
        while len(json.loads((folder / "environment.json").read_text())) < 2:
            assert third.poll() is None, third.communicate()
            time.sleep(0.05)
    finally:
        workers |= children(third.pid) if third else set()
        for pid in {first.pid, *([third.pid] if third else []), *workers}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# -------------------------------------------------------------------------- writing that is refused


@pytest.mark.parametrize(
    "name", ["environment.json", "config.json", "metrics.jsonl", "result.json"]
)
def test_no_room_for_a_file_is_one_line_and_the_same_command_goes_on(whole, copy, name, capsys):
    (copy / "result.json").unlink()
    before = {n: (copy / n).read_bytes() for n in ("config.json", "metrics.jsonl")}
    planted = copy / f".{name}.tmp"
    planted.symlink_to("/dev/full")
    assert refused(copy, 1, capsys) == (
        f"error: no space left on device: {copy}; the checkpoint of step 8 is intact; free some "
        "space and run the same command again"
    )
    assert {n: (copy / n).read_bytes() for n in before} == before
    planted.unlink()
    trained(copy, capsys)
    same(whole, copy)


def test_a_place_that_cannot_be_written_is_said_before_anything_is_made_ready(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(train, "prepare", lambda config: pytest.fail("made ready"))
    (tmp_path / "file").write_text("here first")
    for folder, at in (tmp_path / "file", "it"), (tmp_path / "file/below", tmp_path / "file"):
        error = refused(folder, 2, capsys)
        assert error == f"error: --workdir: {folder}: {at} is not a folder"
    assert (tmp_path / "file").read_text() == "here first"
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write
    error = refused(tmp_path / "run", 2, capsys)
    assert error == f"error: --workdir: {tmp_path / 'run'}: {tmp_path} is not writable"
    assert not (tmp_path / "run").exists()


@contextlib.contextmanager
def read_only(folder):
    """Whether `folder` can be made read-only, which it then is: by a mount, or by its modes."""
    mount = lambda *words: (
        subprocess.run(["mount", *words, folder], capture_output=True, check=False).returncode
    )
    if shutil.which("mount") and mount("--bind", folder) == 0:
        try:
            yield mount("-o", "remount,bind,ro") == 0
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    else:
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode & 0o555)
        yield os.geteuid() != 0  # modes do not bind root


def test_a_run_that_can_only_be_read_is_read_and_not_trained(copy, capsys):
    with read_only(copy) as binds:
        before = contents(copy)
        for step in ("latest", "4"):
            assert exit_code("evaluate", "--workdir", str(copy), "--step", step) == 0
        words = f"--config.init.path={copy}", "--config.init.step=4"
        other = str(copy.parent / "other")
        assert exit_code("train", *RUN, "--workdir", other, *words) == 0
        capsys.readouterr()
        if binds:
            error = refused(copy, 2, capsys)
            assert error == f"error: --workdir: {copy}: {copy} is not writable"
        assert contents(copy) == before


# ------------------------------------------------------------------------------------------- rewind


def test_a_run_whose_newest_checkpoints_are_moved_away_goes_on_from_the_one_before(
    whole, copy, capsys
):
    for step in (6, 8):
        shutil.rmtree(copy / f"checkpoints/{step}")
    assert "resuming at step 4" in trained(copy, capsys)
    same(whole, copy)
    assert checkpoint.steps_in(copy) == checkpoint.steps_in(whole) == [2, 4, 6, 8]


# -------------------------------------------------------------------------------------- damaged log


def lines(*steps: int) -> list[str]:
    return [json.dumps({"step": s, "train/loss": 1 / s}) + "\n" for s in steps]


@pytest.mark.parametrize(
    ("text", "step", "kept"),
    [
        ("".join(lines(1, 2, 3, 4)), 4, 4),
        ("".join(lines(1, 2, 3, 4)) + '{"step": 5, "tra', 4, 4),  # torn
        ("".join(lines(1, 2, 3, 4)) + "\0" * 500, 4, 4),  # a power cut
        ("".join([*lines(1, 2), "\0\0\n", *lines(4)]), 2, 2),  # behind the checkpoint
        ("".join([*lines(1, 2), "\0\0\n", *lines(4)]), 4, None),
        ("".join([*lines(1, 2), "\n", *lines(3, 4)]), 4, 4),
        ("".join([*lines(1, 2), "null\n", *lines(3, 4)]), 3, None),
        ("".join(lines(1, 2, 3)), 4, None),  # the end is lost
        ("".join([*lines(1, 2, 3), lines(4)[0][:-5]]), 4, None),
        ("", 4, None),
        ("", 0, 0),
        ("garbage\n", 0, 0),
    ],
)
def test_what_a_log_lacks_up_to_the_checkpoint_is_an_error_and_the_rest_is_cut_off(
    tmp_path, text, step, kept
):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    if kept is None:
        with pytest.raises(
            BadInput, match=r"metrics.jsonl is damaged at line [1-4]: it is whole up"
        ):
            mending.mend_log(tmp_path, step, 1, write=True)
        assert path.read_text() == text
        return
    mending.mend_log(tmp_path, step, 1, write=False)
    assert path.read_text() == text
    mending.mend_log(tmp_path, step, 1, write=True)
    assert [line["step"] for line in map(json.loads, path.read_text().splitlines())] == list(
        range(1, kept + 1)
    )


def test_a_log_that_is_not_text_is_cut_or_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = "".join(lines(1, 2)).encode()
    path.write_bytes(good + b"\xff\xfe\n")
    mending.mend_log(tmp_path, 2, 1, write=True)
    assert path.read_bytes() == good
    path.write_bytes(b"\xff\xfe\n" + good)
    with pytest.raises(BadInput, match="damaged at line 1"):
        mending.mend_log(tmp_path, 2, 1, write=True)
    with pytest.raises(BadInput, match="damaged at line 1"):
        log.read_lines(tmp_path)


def test_a_result_with_other_numbers_is_written_anew(whole, copy, capsys):
    path = copy / "result.json"
    for old, new in (('"steps": 8', '"steps": 3'), ('"accuracy": 0.', '"accuracy": 1.')):
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))
        trained(copy, capsys)
        same(whole, copy)


def test_no_line_is_asked_for_that_training_did_not_owe(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(lines(50, 100)))
    mending.mend_log(tmp_path, 120, 50, write=True)
    mending.mend_log(tmp_path, 149, 0, write=True)
    with pytest.raises(BadInput, match="whole up to step 100"):
        mending.mend_log(tmp_path, 150, 50, write=True)


def test_the_first_damage_is_named(tmp_path):
    config = load(f"{DIGITS}:mlp")
    workdir.claim(tmp_path, config, {"train": "a"}, write=True)
    for name, text, message in (
        ("config.json", "[]", "config.json is damaged: it holds no config"),
        ("config.json", "\udcff", "config.json is damaged"),
        ("environment.json", "{}", "environment.json is damaged; delete it"),
        ("environment.json", "[{}]", "environment.json is damaged; delete it"),
        ("environment.json", "[", "environment.json is damaged; delete it"),
    ):
        good = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(BadInput, match=message):
            workdir.claim(tmp_path, config, {"train": "a"}, write=True)
        (tmp_path / name).write_bytes(good)
    (tmp_path / "environment.json").unlink()
    workdir.claim(tmp_path, config, {"train": "a"}, write=True)


def test_the_digests_of_the_code_take_one_line(tmp_path):
    config = load(f"{DIGITS}:mlp")
    for _ in range(2):
        workdir.claim(tmp_path, config, {"train": "a"}, write=True)
    text = (tmp_path / "environment.json").read_text()
    starts = json.loads(text)
    assert all({"vision/cnn.py", "common/cli.py"} <= start["code"].keys() for start in starts)
    rows = [line for line in text.splitlines() if "vision/cnn.py" in line]
    assert len(rows) == 2
    assert all(row.startswith('  "code": {') for row in rows)


# ------------------------------------------------------------------------------- what was changed

OTHER = {"model.module": "vision.cnn:CNN", "optim.name": "sgd", "seed": 2}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.hidden": "(8,)"}, r"config\.model\.hidden was \(64,\) and is \(8,\)"),
        ({"optim.name": "sgd"}, r"config\.optim\.name was 'adamw' and is 'sgd'"),
        ({"data.name": "images:/x"}, r"config\.data\.name was 'digits' and is 'images:/x'"),
        ({"evals.more.split": "test"}, r"config\.evals\.more is new"),
        ({"evals.test": None}, r"config\.evals\.test is gone"),
        (
            {"evals.test.kind": "common.evaluators.calibration"},
            r"config\.evals\.test\.kind was '' and is 'common\.evaluators\.calibration'",
        ),
        (
            OTHER,
            r"config\.model\.module was 'vision\.cnn:MLP' and is 'vision\.cnn:CNN', "
            r"config\.optim\.name was 'adamw' and is 'sgd', config\.seed was 0 and is 2",
        ),
    ],
)
def test_a_refusal_names_what_was_changed_and_not_what_follows(copy, changes, says):
    new = load(f"{DIGITS}:mlp", **changes)
    with pytest.raises(BadInput) as raised:
        workdir.check_same(copy, load(f"{DIGITS}:mlp"), new)
    way = (
        f"use another --workdir; to begin it with this one's weights, add --config.init.path={copy}"
    )
    assert re.fullmatch(f".* belongs to another run: {says}; {re.escape(way)}", str(raised.value))


def test_a_run_with_another_config_is_refused_before_its_data_are_read(copy, capsys):
    words = "--config.data.name=images:/nowhere", "--config.optim.lr=0.5"
    said = refused(copy, 2, capsys, *words)
    assert "config.data.name was 'digits' and is 'images:/nowhere', config.optim.lr was" in said


def test_a_model_that_was_adopted_and_is_not_any_more_is_told_how():
    old, new = load(f"{DIGITS}:mlp"), load(f"{DIGITS}:mlp", **{"model.hidden": "(8,)"})
    for config in (old, new):
        config["init"]["path"] = "weights"
    with pytest.raises(BadInput, match=r"come with --config\.init\.adopt=true$"):
        workdir.check_same("w", old, new)
