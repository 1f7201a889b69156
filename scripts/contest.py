"""Contests of speed: who does the same work in less time.

    ours, other = Contender("ours", "ours", {…}), Contender("torch", "torch_cnn", {…})
    rows = contest.against([ours, other], rounds=15)

Contenders work in turn, each in a process of its own (`scripts/contender.py`), so that what else
the machine does hits all of them, and none takes another's threads or memory.
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
ROUND = 0.7  # seconds of work that a contender does in a round, at least once


class Contender(NamedTuple):
    """Who does some work.

    Attributes:
      name: for people.
      kind: a function of scripts/contender.py.
      settings: its arguments.
    """

    name: str
    kind: str
    settings: dict


class Running(NamedTuple):
    """A contender that is ready: its process, what it is, and how often it works a round."""

    contender: Contender
    process: subprocess.Popen
    facts: dict
    times: int


@contextlib.contextmanager
def ready(contender: Contender) -> Iterator[Running]:
    """Starts a contender; `facts` is {"missing": module} where a library is.

    Raises:
      BadInput: if it fails, with the last line that it said.
    """
    print(f"{contender.name}: getting ready", file=sys.stderr, flush=True)
    words = [sys.executable, str(ROOT / "scripts/contender.py"), contender.kind]
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    env.pop("JAX_NUM_CPU_DEVICES", None)  # each says itself how many it takes
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*words, json.dumps(contender.settings)],
            env=env,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        try:
            line = process.stdout.readline()
            if not line:
                said.seek(0)
                last = (said.read().strip() or "it said nothing").splitlines()[-1]
                raise BadInput(f"{contender.name}: {last}")
            one = Running(contender, process, json.loads(line), 1)
            if "missing" not in one.facts:
                work(one)
                one = one._replace(times=max(1, round(ROUND / work(one))))
            yield one
        finally:
            process.kill()
            process.communicate()


def work(one: Running) -> float:
    """The seconds that a contender's work takes once, by the mean of a round.

    Raises:
      BadInput: if its process has ended.
    """
    with contextlib.suppress(BrokenPipeError):
        one.process.stdin.write(f"{one.times}\n")
        one.process.stdin.flush()
    answer = one.process.stdout.readline()
    if not answer:
        code = one.process.wait()
        raise BadInput(f"{one.contender.name}: its process ended with {code} (-9: no memory)")
    return float(answer) / one.times


def in_turn(jobs: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """What each job returns in each round; every other round goes backwards, so that drift
    cancels."""
    found: list[list[float]] = [[] for _ in jobs]
    for number in range(rounds):
        order = range(len(jobs)) if number % 2 == 0 else range(len(jobs) - 1, -1, -1)
        for k in order:
            found[k].append(jobs[k]())
    return found


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict:
    """The median of the rounds' ratios, and the quartiles."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else ratios * 2
    return {"ratio": statistics.median(ratios), "quartiles": quartiles}


def against(contenders: Sequence[Contender], rounds: int) -> list[dict]:
    """A row for each contender, the first being ours, whose FLOPs count for all: they do the same
    work."""
    with contextlib.ExitStack() as stack:
        every = [stack.enter_context(ready(one)) for one in contenders]
        there = [one for one in every if "missing" not in one.facts]
        seconds = in_turn([lambda one=one: work(one) for one in there], rounds)
    flops = every[0].facts.get("flops")
    rows, times = [], dict(zip((one.contender.name for one in there), seconds, strict=True))
    for one in every:
        row = {"name": one.contender.name, **one.facts}
        if one in there:
            mine = times[one.contender.name]
            median = statistics.median(mine)
            row |= {"seconds": median, "per_second": one.facts["units"] / median}
            row |= ratio(mine, seconds[0])
            if flops:
                row |= {"flops": flops, "flops_per_second": flops / median}
        rows.append(row)
    return rows
