"""Real processes of scripts/train.py, killed and told to end; the same command goes on, bit for
bit."""

import os
import random
import signal
import subprocess
import sys
import time

import process_kills
import pytest
from helpers import DIGITS, ROOT, finish, free_port, same, start, start_all

from common.devices import processes

RUN = (
    "--config",
    f"{DIGITS}:mlp",
    "--config.train.log_every=20 steps",
    "--config.checkpoint.every=100 steps",
    "--config.evals.test.every=150 steps",
    "--config.model.dropout=0.1",
    "--config.augment.crop_padding=1",
)


def wait_for_step(workdir, step: int, seconds: float = 120) -> None:
    """Returns when the log of a run has reached a step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        path = workdir / "metrics.jsonl"
        if path.exists() and any(
            f'"step": {s},' in path.read_text() for s in range(step, step + 20)
        ):
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1, 7])
def test_killed_and_told_to_end_it_ends_the_same(tmp_path, calls):
    # Several steps a call go by faster.
    total = 1200 if calls == 1 else 6000
    length = f"--config.train.duration={total} steps", f"--config.train.steps_per_call={calls}"
    finish(start("train", *RUN, *length, "--workdir", str(tmp_path / "whole")))
    cut = "--workdir", str(tmp_path / "cut")
    process = start("train", *RUN, *length, *cut)
    wait_for_step(tmp_path / "cut", 240)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut/result.json").exists()
    process = start("train", *RUN, *length, *cut)
    wait_for_step(tmp_path / "cut", 620)
    process.send_signal(signal.SIGTERM)
    said = finish(process, 75)
    assert "saved step" in said
    assert "run the same command again" in said
    finish(start("train", *RUN, *length, *cut))
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(tmp_path):
    length = "--config.train.duration=10000 steps"
    finish(start("train", *RUN, length, "--workdir", str(tmp_path / "whole")))
    command = *RUN, length, "--workdir", str(tmp_path / "cut")
    rng = random.Random(0)
    kills = 0
    while kills < 5:
        process = start("train", *command)
        # From before the first import to far into training, saves and evaluations.
        time.sleep(rng.uniform(0.5, 6.5))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    assert kills == 5, f"the run ended after {kills} kills: make it longer"
    finish(start("train", *command))
    same(tmp_path / "whole", tmp_path / "cut")


# -------------------------------------------------------------------------------- several processes


def begin(workdir, count: int = 2, *more: str):
    """A long run of several processes that has logged its first steps."""
    command = *RUN, "--config.train.duration=50000 steps", "--workdir", str(workdir), *more
    started = start_all("train", *command, processes=count)
    process_kills.wait_until(lambda: process_kills.last_step(workdir) > 0, started)
    return started


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "calls"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 7)]
)
def test_all_processes_save_when_one_is_told_to_end(tmp_path, number, calls):
    for folder in (tmp_path / "first", tmp_path / "second"):
        started = begin(folder, 2, f"--config.train.steps_per_call={calls}")
        started[1].send_signal(number)
        said = [finish(process, 75).splitlines()[-1] for process in started]
        if "saved step " in said[0]:  # else jax lost the notice, and they go on from a checkpoint
            break
    assert said[0] == said[1]
    step = int(said[0].split("saved step ")[1].split(";")[0])
    assert (folder / "checkpoints" / str(step)).exists()
    assert said[0].endswith("run the same command again to resume")


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "of"), [(0, 2), (1, 2), (2, 4)])
def test_a_killed_process_ends_the_others(tmp_path, victim, of):
    started = begin(tmp_path, of)
    started[victim].kill()
    for i, process in enumerate(started):
        if i != victim:
            said = finish(process, processes.LOST)
            ours = "error: another process of this run ended"
            if victim:
                assert said.splitlines()[-1].startswith(ours)
            else:  # jax notices too, sooner or later than we do, and says it in its own words
                assert any(line.startswith(ours) for line in said.splitlines()) or (
                    "another task died" in said
                )
    assert not (tmp_path / "result.json").exists()


@pytest.mark.slow
def test_a_process_that_waits_in_vain_says_so(tmp_path):
    code = (
        "from common import cli; from common.devices import processes, runtime;"
        "processes.JOIN_SECONDS = 11;"
        "cli.exit(runtime.start)"
    )
    started = []
    for number in ("0", "1"):
        env = {
            "PYTHONPATH": str(ROOT),
            "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": number,
        }
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=os.environ | env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in started:
        first, second = finish(process, processes.LOST).splitlines()
        assert first.startswith("waiting for the other processes of the run (localhost:")
        assert second.startswith("error: no answer from the other processes (localhost:")


@pytest.mark.slow
def test_a_run_of_two_processes_killed_at_random_ends_the_same(tmp_path):
    """TOUCHSTONE_KILLS=30 kills more often."""
    process_kills.survive(tmp_path, int(os.environ.get("TOUCHSTONE_KILLS", "5")))
