"""The boundary between a program and its user: every end is a documented code and a line."""

import os
import sys
import threading

import pytest
from helpers import DIGITS, exit_code

from common import cli
from common.devices import processes, terminal
from common.errors import BadInput, CannotWrite, NotFinite, Preempted
from common.training import train


def ended(main) -> int:
    with pytest.raises(SystemExit) as end:
        cli.exit(main)
    return end.value.code


def raises(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BadInput("no such key"), 2, "error: no such key"),
        (NotFinite("step 3"), 1, "error: step 3"),
        (CannotWrite("full"), 1, "error: full"),
        (Preempted("saved"), 75, "saved; run the same command again to resume"),
        (KeyboardInterrupt(), 130, "error: interrupted; the newest checkpoint is kept"),
    ],
)
def test_what_is_expected_is_a_line(error, code, line, capsys):
    assert ended(raises(error)) == code
    assert capsys.readouterr().err == f"{line}\n"


def test_a_fault_of_the_program_is_a_line_and_a_file(capsys):
    assert ended(raises(TypeError("a\nb"))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: TypeError: a (test_cli.py:")
    path = line.split("the traceback is in ")[1].split(":")[0]
    text = open(path).read()  # noqa: SIM115
    os.remove(path)
    assert text.startswith(sys.argv[0])
    assert "raise error" in text
    assert "'jax': " in text


def test_a_fault_in_a_run_is_written_to_its_workdir(tmp_path, capsys, monkeypatch):
    def loop(run, state):
        raise LookupError("nowhere")

    monkeypatch.setattr(train, "loop", loop)
    run = tmp_path / "run"
    assert exit_code("train", "--config", f"{DIGITS}:mlp", "--workdir", str(run)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"the traceback is in {run / 'crash.txt'}: report" in line
    assert "LookupError: nowhere" in (run / "crash.txt").read_text()
    assert line in (run / "console.log").read_text()


def test_the_traceback_is_shown_if_it_is_asked_for(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--traceback"])
    assert ended(raises(BadInput("no"))) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_running_out_of_memory_says_what_to_do(capsys):
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")
    assert ended(raises(error)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 99")
    assert "config.train.batch_size" in line


@pytest.mark.parametrize("length", [8, 1 << 17])  # more than a buffer holds is gone when it fails
@pytest.mark.parametrize(("place", "code"), [("full", 1), ("pipe", 0)])
def test_output_without_a_reader(place, code, length, capfd, monkeypatch):
    if place == "full":
        stream = open("/dev/full", "w")  # noqa: SIM115
    else:
        end, start = os.pipe()
        os.close(end)
        stream = os.fdopen(start, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    assert ended(lambda: print("x" * length) or 0) == code
    said = capfd.readouterr().err
    full = "error: standard output cannot be written: No space left on device\n"
    assert said == (full if place == "full" else "")


def test_a_refusal_before_joining_reaches_the_others(monkeypatch, capsys):
    told = []
    monkeypatch.setattr(processes, "places", lambda env: {"process_id": 1})
    monkeypatch.setattr(processes, "join", lambda: told.append("joined"))
    monkeypatch.setattr(processes, "leave", lambda *args: told.append(args))
    monkeypatch.setattr(cli.jax.distributed, "is_initialized", lambda: bool(told))
    with pytest.raises(SystemExit):
        cli.exit(raises(BadInput("no")), several=True)
    assert told == ["joined", (2, "no")]
    timers = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
    assert not any(timer.is_alive() and not timer.finished.is_set() for timer in timers)


def test_standard_error_is_steady_only_within():
    before = sys.stderr
    assert ended(lambda: 0 if isinstance(sys.stderr, terminal.Steady) else 3) == 0
    assert sys.stderr is before
