"""Kills a run of several processes at random moments, starts it again each time, and compares its
end with that of a run that was left alone: python tests/support/process_kills.py --kills 30

The moments are before the first import as well as in steps, saves and evaluations; the signals are
SIGKILL and SIGTERM, to one process or to all.
"""

import argparse
import collections
import json
import pathlib
import random
import signal
import tempfile
import time

from helpers import DIGITS, finish, same, start_all

from common.devices import ending, processes

STEPS = 60  # of progress between two kills, at most; steps, saves and evaluations alternate in them


def command(kills: int) -> tuple[str, ...]:
    """A run that is long enough."""
    return (
        "--config",
        f"{DIGITS}:mlp",
        f"--config.train.duration={100 + STEPS * kills} steps",
        "--config.train.log_every=2 steps",
        "--config.evals.test.every=6 steps",
        "--config.checkpoint.every=8 steps",
        "--config.model.dropout=0.1",
        "--config.augment.crop_padding=1",
    )


def last_step(workdir: pathlib.Path) -> int:
    """The last step that the log holds whole; 0 if there is none."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def wait_until(reached, started, seconds: float = 240) -> None:
    """Returns when `reached()`; what all of `started` are needed for."""
    end = time.monotonic() + seconds
    while not reached():
        ended = [p for p in started if p.poll() is not None]
        assert not ended, f"ended before: {[(p.returncode, p.stderr.read()) for p in ended]}"
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.005)


def kill(started, workdir, rng: random.Random) -> str:
    """Kills a run at a random moment, and checks how each process ends; says what was done."""
    everybody = rng.random() < 0.3
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    if rng.random() < 0.2:  # while it starts: one alone would leave the others to wait for it
        everybody, number = True, signal.SIGKILL
        time.sleep(rng.uniform(0, 8))
    else:
        begin = last_step(workdir)
        more = rng.randint(1, STEPS // 2)
        # The log is taken back to the checkpoint before it grows.
        wait_until(lambda: last_step(workdir) != begin, started)
        begin = last_step(workdir)
        wait_until(lambda: last_step(workdir) >= begin + more, started)
        time.sleep(rng.uniform(0, 0.2))
    hit = started if everybody else [rng.choice(started)]
    for process in hit:
        process.send_signal(number)
    for process in started:
        _, said = process.communicate(timeout=240)
        if number == signal.SIGTERM:
            expected = {ending.PREEMPTED}
        else:
            expected = {-number} if process in hit else {processes.LOST}
        assert process.returncode in expected, f"{process.returncode}, not {expected}: {said}"
    who = "all" if everybody else f"process {started.index(hit[0])}"
    return f"{number.name} to {who}"


def survive(folder: pathlib.Path, kills: int, count: int = 2, seed: int = 0, say=print) -> None:
    """Raises AssertionError unless a run that is killed so often ends like one that is not."""
    words, rng = command(kills), random.Random(seed)
    whole, cut = folder / "whole", folder / "cut"
    for process in start_all("train", *words, "--workdir", str(whole), processes=count):
        finish(process)
    done = collections.Counter()
    for _ in range(kills):
        started = start_all("train", *words, "--workdir", str(cut), processes=count)
        try:
            done[kill(started, cut, rng)] += 1
        finally:
            for process in started:
                process.kill()
        say(f"kill {done.total()} at step {last_step(cut)}; {dict(done)}")
        assert not (cut / "result.json").exists(), "the run ended before it was killed"
    for process in start_all("train", *words, "--workdir", str(cut), processes=count):
        finish(process)
    same(whole, cut)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        survive(pathlib.Path(made), args.kills, args.processes, args.seed)
    print(f"{args.kills} kills, {time.monotonic() - begun:.0f} s: the same digest, log and results")
