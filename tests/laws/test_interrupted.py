"""A run that is interrupted at any write ends in the bits of one that is not.

The faults are those of tests/support/interrupt.py, at the level of system calls, TensorStore's
among them: the process is killed before or after a call, or in the middle of a write, and for some
points once more while it restarts; or the call fails, for want of space or by an error of the disk.
"""

import collections
import concurrent.futures
import contextlib
import itertools
import math
import pathlib
import random
import re
import shutil
import signal
from collections.abc import Collection
from typing import NamedTuple

import pytest
from helpers import DIGITS, same
from interrupt import KILLS, NONE, Ended, Fault, Trainer, build

from common.runs.checkpoint import steps_in

pytestmark = pytest.mark.slow

RUN = (
    "--config",
    f"{DIGITS}:mlp",
    "--config.train.duration=12 steps",
    "--config.train.log_every=1 steps",
    "--config.checkpoint.every=3 steps",
    "--config.checkpoint.keep_latest=2",
    "--config.evals.test.every=4 steps",
    "--config.model.dropout=0.1",
)
FAILURES = "ENOSPC", "EIO"
AT_ONCE = 2
FILES = (
    *("lock", "environment.json", "config.json", "metrics.jsonl", "result.json", "console.log"),
    "facts.json",
)
PARTS = "_CHECKPOINT_METADATA", "digests/metadata", "state/_METADATA", "state/manifest.ocdbt"
PLACES = {name: rf"^\.?{name}" for name in FILES} | {
    "the workdir": r"^\.$",
    "checkpoints/": r"^checkpoints$",
    "a new checkpoint": r"orbax-checkpoint-tmp",
    "an old checkpoint": r"^checkpoints/([0-9]+(/|$)|deleted)",
    "elsewhere": r".",
}


class Point(NamedTuple):
    """One fault; and, unless it is None, another one in the restart."""

    first: Fault
    second: Fault | None = None


class Outcome(NamedTuple):
    """What a point came to: how each start ended, what is wrong, or "", and whether there are
    remains of a checkpoint that was to be deleted."""

    point: Point
    starts: list[Ended]
    wrong: str
    remains: bool


def forms(kind: str) -> list[str]:
    """What may happen at a call of a kind."""
    frees = kind in ("unlink", "rmdir")
    return [
        "before",
        "after",
        *(["half"] if kind == "write" else []),
        "twice",
        *(name for name in FAILURES if not (frees and name == "ENOSPC")),
    ]


def place(path: str) -> str:
    """The part of a workdir that a path is in, the first of PLACES."""
    return next(name for name, where in PLACES.items() if re.search(where, path))


def points(calls: list[tuple[str, str]], count: int, seed: int = 0) -> list[Point]:
    """About `count` points: calls of every kind in every place, and every form in turn.

    Kinds in a place that are rare get more than their share, which is as the root of their number;
    those of one are evenly spread over the run.

    Args:
      calls: (kind, path) of each call of an undisturbed run.
      count: how many.
      seed: what decides the second faults, and the form that comes first.
    """
    rng = random.Random(seed)
    groups = collections.Counter((kind, place(path)) for kind, path in calls)
    share = _share(groups.values(), count)
    turn, made = itertools.count(rng.randrange(9)), []
    for (kind, where), size in sorted(groups.items()):
        ways = forms(kind)
        n = min(_quota(share, size), size * len(ways))
        for i in range(n):
            what, at = ways[next(turn) % len(ways)], (kind, 1 + i * size // n, PLACES[where])
            if what == "twice":
                # The first calls of a restart, which clean up, as often as the many that follow.
                again = round(len(calls) ** rng.random())
                first = rng.choice(["before", "after"])
                second = Fault(rng.choice(["before", "after"]), "any", again)
                made.append(Point(Fault(first, *at), second))
            else:
                made.append(Point(Fault(what, *at)))
    return made


def _quota(share: float, size: int) -> int:
    return max(1, round(share * math.sqrt(size)))


def _share(sizes: Collection[int], count: int) -> float:
    """The share by which the quotas of groups add up to about `count`."""
    shares = (0.05 * i for i in itertools.count())
    return next(s for s in shares if sum(_quota(s, size) for size in sizes) >= count)


# ------------------------------------------------------------------------------------ one point


def wrong_end(fault: Fault | None, ended: Ended) -> str:
    """What is wrong about how a start ended that had this fault, if anything."""
    if fault is None or ended.hit is None:
        allowed = {0}
    else:
        allowed = {-signal.SIGKILL} if fault.what in KILLS else {0, 1}
    if ended.code not in allowed:
        return f"exit code {ended.code}"
    errors = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    if "Traceback" in ended.said or len(errors) != (ended.code == 1):
        return f"exit code {ended.code}, and not one line"
    return ""


def names(run: pathlib.Path) -> set[str]:
    return {str(path.relative_to(run)) for path in [*run.iterdir(), *run.glob("checkpoints/*")]}


def difference(whole: pathlib.Path, cut: pathlib.Path, hit: set[str]) -> str:
    """What is different about the end of a run, if anything.

    Args:
      whole: an undisturbed run.
      cut: a run with faults.
      hit: the files at which they were: without its console.log a run goes on, and of half a line
        of a log, which is mended, a copy is kept.
    """
    try:
        same(whole, cut)
    except (AssertionError, OSError):
        return f"{cut} differs from {whole}"
    missing, more = names(whole) - names(cut), names(cut) - names(whole) - not_deleted(cut)
    missing -= {"console.log"} & hit
    more -= {f"{name}.before-mending" for name in {"metrics.jsonl"} & hit}
    return f"without {sorted(missing)}, and with {sorted(more)}" if missing or more else ""


def not_deleted(run: pathlib.Path) -> set[str]:
    """Old checkpoints that are left, whole, if the end of a run was interrupted before they were
    deleted: no further save does it."""
    whole = set()
    for step in steps_in(run)[:-2]:  # as `keep_latest` is
        folder = run / "checkpoints" / str(step)
        if all((folder / name).exists() for name in PARTS):
            whole.add(f"checkpoints/{step}")
    return whole


def interrupted(trainer: Trainer, whole: pathlib.Path, point: Point, folder) -> Outcome:
    """A run with the faults of a point, started again until it is done."""
    starts, wrong = [], ""
    for fault in (point.first, point.second, None):
        if fault is None and starts[-1].code == 0:
            continue
        starts.append(trainer.run(RUN, folder, fault or NONE))
        wrong = wrong_end(fault, starts[-1])
        if wrong:
            break
    hit = {start.hit[1] for start in starts if start.hit}
    wrong = wrong or difference(whole, folder, hit)
    return Outcome(point, starts, wrong, not wrong and bool(not_deleted(folder)))


def tell(outcome: Outcome) -> str:
    """An outcome that is wrong, with what is needed to see it again."""
    hits = [f"{start.code} at {start.hit}" for start in outcome.starts]
    said = "\n".join(start.said[-3000:] for start in outcome.starts)
    return f"{outcome.point}: {outcome.wrong}; the starts ended with {hits}\n{said}"


# ----------------------------------------------------------------------------------- all of them


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> pathlib.Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, cc")
    return build(tmp_path_factory.mktemp("library"), compiler)


def counted(words) -> str:
    return ", ".join(f"{n} {word}" for word, n in collections.Counter(words).most_common())


def report(whole: Ended, outcomes: list[Outcome]) -> str:
    """What was tried and how it ended, in a few lines."""
    first = [(o.point, o.starts[0]) for o in outcomes]
    hit = [(point, start) for point, start in first if start.hit]
    twice = [o.starts[1] for o in outcomes if o.point.second and len(o.starts) > 1]
    failed = [start for point, start in hit if point.first.what in FAILURES]
    return (
        f"\nan undisturbed run changes its workdir by {len(whole.calls)} calls: "
        f"{counted(kind for kind, _ in whole.calls)}"
        f"\n{len(outcomes)} points, {len(hit)} reached, by what happened: "
        f"{counted(point.first.what for point, _ in hit)}"
        f"\n  at: {counted(start.hit[0] for _, start in hit)}"
        f"\n  in: {counted(place(start.hit[1]) for _, start in hit)}"
        f"\n  {sum(start.hit is not None for start in twice)} of {len(twice)} killed again, in: "
        f"{counted(place(start.hit[1]) for start in twice if start.hit)}"
        f"\n  of {len(failed)} whose call failed, {sum(start.code == 1 for start in failed)} ended "
        f"in one line and {sum(start.code == 0 for start in failed)} went on"
        f"\n  {sum(not o.wrong for o in outcomes)} ended in the undisturbed bits; "
        f"{sum(o.remains for o in outcomes)} of them beside a checkpoint that was to be deleted"
    )


@pytest.mark.parametrize("count", [40, pytest.param(304, marks=pytest.mark.measure("survival"))])
def test_interrupted_at_any_write_it_ends_the_same(library, tmp_path, capsys, count):
    with contextlib.ExitStack() as stack:
        trainers = [stack.enter_context(Trainer(library)) for _ in range(AT_ONCE)]
        whole = trainers[0].run(RUN, tmp_path / "whole")
        assert whole.code == 0, whole.said
        chosen = points(whole.calls, count)
        random.Random(0).shuffle(chosen)

        def work(number: int) -> list[Outcome]:
            outcomes = []
            for i in range(number, len(chosen), AT_ONCE):
                folder = tmp_path / f"point_{i}"
                args = trainers[number], tmp_path / "whole", chosen[i], folder
                outcomes.append(interrupted(*args))
                if not outcomes[-1].wrong:
                    shutil.rmtree(folder)
            return outcomes

        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            outcomes = [o for some in pool.map(work, range(AT_ONCE)) for o in some]
    with capsys.disabled():
        print(report(whole, outcomes))
    wrong = [tell(outcome) for outcome in outcomes if outcome.wrong]
    assert not wrong, "\n\n".join(wrong)
    hit = {(start.hit[0], place(start.hit[1])) for o in outcomes for start in o.starts if start.hit}
    assert hit >= {(kind, place(path)) for kind, path in whole.calls}


# ---------------------------------------------------------------------------- that none is missed

TRACED = {
    "open": "open openat openat2 creat",
    "write": "write writev pwrite64 pwritev pwritev2 sendfile copy_file_range splice",
    "fsync": "fsync fdatasync sync_file_range syncfs",
    "truncate": "truncate ftruncate fallocate",
    "rename": "rename renameat renameat2",
    "link": "link linkat symlink symlinkat",
    "unlink": "unlink unlinkat",
    "mkdir": "mkdir mkdirat",
    "rmdir": "rmdir",
}


def traced(lines: list[str], below: pathlib.Path) -> collections.Counter:
    """How many calls of each kind below a folder are in what strace wrote."""
    kinds = {name: kind for kind, names in TRACED.items() for name in names.split()}
    found: collections.Counter = collections.Counter()
    for line in lines:
        called = re.match(r"\d+ +(\w+)\((.*)", line)  # not "<... write resumed>"
        if called is None or called[1] not in kinds or str(below) not in line:
            continue
        kind, arguments = kinds[called[1]], called[2]
        # What is read may name the folder as well, as the reply of a Trainer's does.
        of_file = re.match(r"\d+<([^>]*)>", arguments)
        if of_file and not of_file[1].startswith(str(below)):
            continue
        if kind == "open" and not re.search("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", arguments):
            continue
        found["rmdir" if "AT_REMOVEDIR" in arguments else kind] += 1
    return found


@pytest.mark.measure("survival")
def test_it_sees_every_call_that_strace_sees(library, tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("no strace")
    command = "strace", "--follow-forks", "--decode-fds", "-e", "trace=file,desc", "-o"
    with Trainer(library, *command, str(tmp_path / "calls")) as trainer:
        whole = trainer.run(RUN, tmp_path / "whole")
    assert whole.code == 0, whole.said
    lines = (tmp_path / "calls").read_text(errors="replace").splitlines()
    assert traced(lines, tmp_path / "whole") == collections.Counter(kind for kind, _ in whole.calls)
