"""Speed contests: who does the same work in less time.

    ours, other = Contender("ours", "ours", {…}), Contender("torch", "torch_cnn", {…})
    rows = contest.against([ours, other], rounds=15)

Contenders take turns, each in its own process (`scripts/contender.py`), so that other load on the
machine hits all of them, and none takes another's threads or memory.
"""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from common.errors import BadInput

ROOT = pathlib.Path(__file__).parents[1]
ROUND = 0.7  # seconds of work per contender and round, at least one repetition


class Contender(NamedTuple):
    """A participant in a contest.

    Attributes:
      name: for display.
      kind: a function of scripts/contender.py.
      settings: its arguments.
    """

    name: str
    kind: str
    settings: dict


class Running(NamedTuple):
    """A contender that is ready: its process, its facts, and its repetitions per round."""

    contender: Contender
    process: subprocess.Popen
    facts: dict
    times: int


@contextlib.contextmanager
def ready(contender: Contender) -> Iterator[Running]:
    """Starts a contender; `facts` is {"missing": module} if a library is missing.

    Raises:
      BadInput: if it fails, with the last line of its standard error.
    """
    print(f"{contender.name}: getting ready", file=sys.stderr, flush=True)
    command = [sys.executable, str(ROOT / "scripts/contender.py"), contender.kind]
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    env.pop("JAX_NUM_CPU_DEVICES", None)  # contenders choose their own device count
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            [*command, json.dumps(contender.settings)],
            env=env,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        try:
            line = process.stdout.readline()
            if not line:
                stderr.seek(0)
                last = (stderr.read().strip() or "no output").splitlines()[-1]
                raise BadInput(f"{contender.name}: {last}")
            running = Running(contender, process, json.loads(line), 1)
            if "missing" not in running.facts:
                work(running)
                running = running._replace(times=max(1, round(ROUND / work(running))))
            yield running
        finally:
            process.kill()
            process.communicate()


def work(running: Running) -> float:
    """Seconds per repetition of a contender's work, averaged over a round.

    Raises:
      BadInput: if its process has ended.
    """
    with contextlib.suppress(BrokenPipeError):
        running.process.stdin.write(f"{running.times}\n")
        running.process.stdin.flush()
    answer = running.process.stdout.readline()
    if not answer:
        code = running.process.wait()
        raise BadInput(
            f"{running.contender.name}: its process ended with {code} (-9: out of memory)"
        )
    return float(answer) / running.times


def in_turn(jobs: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """The results of each job, one per round; every other round runs backwards, so that drift
    cancels."""
    results: list[list[float]] = [[] for _ in jobs]
    for number in range(rounds):
        order = range(len(jobs)) if number % 2 == 0 else range(len(jobs) - 1, -1, -1)
        for k in order:
            results[k].append(jobs[k]())
    return results


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict:
    """The median and the quartiles of the ratios theirs / ours of each round."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else ratios * 2
    return {"ratio": statistics.median(ratios), "quartiles": quartiles}


def against(contenders: Sequence[Contender], rounds: int) -> list[dict]:
    """A row for each contender; the first one is ours, and its FLOPs count for all: they do the
    same work."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(ready(contender)) for contender in contenders]
        available = [run for run in running if "missing" not in run.facts]
        seconds = in_turn([lambda run=run: work(run) for run in available], rounds)
    flops = running[0].facts.get("flops")
    rows, times = [], dict(zip((run.contender.name for run in available), seconds, strict=True))
    for run in running:
        row = {"name": run.contender.name, **run.facts}
        if run in available:
            durations = times[run.contender.name]
            median = statistics.median(durations)
            row |= {"seconds": median, "per_second": run.facts["units"] / median}
            row |= ratio(durations, seconds[0])
            if flops:
                row |= {"flops": flops, "flops_per_second": flops / median}
        rows.append(row)
    return rows
