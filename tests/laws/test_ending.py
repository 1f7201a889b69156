"""A program that is told to end does, wherever it is: within ten seconds and one save, with a code
that says whether there is something to go on from. And one whose workers, or terminal, go away does
not."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from helpers import DIGITS, ROOT, finish, result, same, start, wait_for

from common.data import loading
from common.devices import ending

pytestmark = pytest.mark.slow

SLOW = (
    "--config", f"{DIGITS}:mlp", "--config.model.module=toy_slow:Net",
    "--config.data.train=train[:64]", "--config.train.batch_size=8",
    "--config.train.log_every=1 steps", "--config.checkpoint.every=2 steps",
    "--config.evals.test.every=100 steps", "--config.optim.warmup=0 steps",
)  # fmt: skip


def told(process, number: int, seconds: float = 12.0) -> tuple[int, str]:
    """(exit code, standard error) of a process that gets a signal and must end in time."""
    process.send_signal(number)
    begun = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < seconds, err
    return process.returncode, err


def is_burning(process) -> bool:
    """Whether a process has begun the long computation: it said what takes so long."""
    return bool(pathlib.Path(f"/proc/{process.pid}/stat").exists()) and _cpu_seconds(process) > 6


def _cpu_seconds(process) -> float:
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_inside_the_compiler_it_ends_all_the_same(tmp_path):
    slow = tmp_path / "slow"
    slow.touch()
    words = *SLOW, "--config.train.duration=4 steps", "--workdir", str(tmp_path / "run")
    process = start("train", *words, TOY_SLOW=str(slow))
    wait_for(lambda: is_burning(process))
    code, said = told(process, signal.SIGINT)
    assert code == 128 + signal.SIGINT, said
    assert "with nothing to resume from" in said.splitlines()[-1]


def test_with_a_checkpoint_it_ends_so_that_it_is_started_again(tmp_path):
    slow = tmp_path / "slow"
    length = lambda n: f"--config.train.duration={n} steps"
    words = *SLOW, "--config.optim.schedule=constant", "--workdir", str(tmp_path / "run")
    finish(start("train", *words, length(4), TOY_SLOW=str(slow)))
    slow.touch()
    process = start("train", *words, length(8), TOY_SLOW=str(slow))
    wait_for(lambda: is_burning(process))
    code, said = told(process, signal.SIGTERM)
    assert code == ending.PREEMPTED, said
    assert "the checkpoint of step 4 is kept" in said.splitlines()[-1]
    slow.unlink()
    finish(start("train", *words, length(8), TOY_SLOW=str(slow)))
    assert result(tmp_path / "run")["steps"] == 8


def test_an_evaluation_is_left_for_later_and_what_was_trained_is_saved(tmp_path):
    slow = tmp_path / "slow"
    evals = "--config.evals.test.kind=toy_slow", "--config.evals.test.every=5 steps"
    words = *SLOW, *evals, "--config.train.duration=8 steps", "--config.checkpoint.every=100 steps"
    finish(start("train", *words, "--workdir", str(tmp_path / "whole"), TOY_SLEEPY=str(slow)))
    slow.touch()
    run = tmp_path / "run"
    process = start("train", *words, "--workdir", str(run), TOY_SLEEPY=str(slow))
    log = run / "metrics.jsonl"
    wait_for(lambda: log.exists() and '"step": 5,' in log.read_text())
    code, said = told(process, signal.SIGTERM)
    assert code == ending.PREEMPTED, said
    assert (
        said.splitlines()[-1] == "told to end: saved step 5; run the same command again to resume"
    )
    slow.unlink()
    finish(start("train", *words, "--workdir", str(run), TOY_SLEEPY=str(slow)))
    same(tmp_path / "whole", run)


# ----------------------------------------------------------------------------------- the terminal


@pytest.mark.parametrize("how", ["2>&1 | head -n 1", "2>&- >/dev/full <&-"])
def test_the_terminal_is_not_the_run(tmp_path, how):
    words = f"--config {DIGITS}:mlp --config.train.duration='40 steps' --workdir {tmp_path}/run"
    command = f"set -o pipefail; {sys.executable} scripts/train.py {words} {how}"
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    assert done.returncode == 0
    assert result(tmp_path / "run")["steps"] == 40
    console = (tmp_path / "run/console.log").read_text()
    assert "40 steps of 64" in console
    assert "step 40  test: accuracy" in console


# ------------------------------------------------------------------------------------ data workers


def alive(process) -> list[int]:
    """The worker processes of a run."""
    return [pid for pid, state in loading.workers_of(process.pid).items() if state != "Z"]


WORKERS = (
    "--config", f"{DIGITS}:mlp", "--config.train.duration=600 steps",
    "--config.train.log_every=5 steps", "--config.data.resident=false", "--config.data.workers=2",
)  # fmt: skip


def test_workers_that_are_killed_or_stopped_are_replaced(tmp_path):
    whole = tmp_path / "whole"
    finish(start("train", *WORKERS[:-1], "--workdir", str(whole)))
    run = tmp_path / "run"
    process = start("train", *WORKERS, "--workdir", str(run))
    lines = lambda: len((run / "metrics.jsonl").read_text().splitlines())
    wait_for(lambda: (run / "metrics.jsonl").exists() and lines() > 3)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        reached = lines()
        os.kill(alive(process)[-1], number)
        wait_for(lambda reached=reached: lines() > reached + 10 or process.poll() is not None)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert said.count("a data worker ended") == 2
    same(whole, run)


def test_workers_that_are_killed_again_and_again_end_the_run_to_be_started_again(tmp_path):
    run = tmp_path / "run"
    process = start("train", *WORKERS, "--workdir", str(run))
    kills = 0
    while process.poll() is None and kills < 60:
        for pid in alive(process):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            kills += 1
        time.sleep(0.2)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 6, said
    last = said.splitlines()[-1]
    assert last.startswith(f"error: a data worker ended {loading.RESTARTS + 1} times before step")
    assert "start all processes again" in last
