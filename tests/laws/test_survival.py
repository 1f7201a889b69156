"""Real processes of scripts/train.py, killed and told to end; the same command goes on, bit for
bit."""

import random
import signal
import time

import pytest
from helpers import DIGITS, finish, result, start, timeless

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


def same(a, b) -> None:
    assert timeless(a) == timeless(b)
    assert result(a)["digest"] == result(b)["digest"]
    assert result(a)["eval"] == result(b)["eval"]


def test_killed_and_told_to_end_it_ends_the_same(tmp_path):
    length = "--config.train.duration=1200 steps"
    finish(start("train", *RUN, length, "--workdir", str(tmp_path / "whole")))
    cut = "--workdir", str(tmp_path / "cut")
    process = start("train", *RUN, length, *cut)
    wait_for_step(tmp_path / "cut", 240)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut/result.json").exists()
    process = start("train", *RUN, length, *cut)
    wait_for_step(tmp_path / "cut", 620)
    process.send_signal(signal.SIGTERM)
    said = finish(process, 75)
    assert "saved step" in said
    assert "run the same command again" in said
    finish(start("train", *RUN, length, *cut))
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_the_same(tmp_path):
    length = "--config.train.duration=20000 steps"
    finish(start("train", *RUN, length, "--workdir", str(tmp_path / "whole")))
    command = *RUN, length, "--workdir", str(tmp_path / "cut")
    rng = random.Random(0)
    kills = 0
    while kills < 10:
        process = start("train", *command)
        # From before the first import to far into training, saves and evaluations.
        time.sleep(rng.uniform(0.5, 6.5))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    assert kills == 10, f"the run ended after {kills} kills: make it longer"
    finish(start("train", *command))
    same(tmp_path / "whole", tmp_path / "cut")
