"""Starts the trials of a sweep as processes of this machine, watches them, and says where they are.

The process that launches computes nothing: a trial that crashes, takes all memory or is killed ends
alone. When this process is told to end, the trials are, and save; when it is killed, they save and
end too. Started again, it finds in the folders what is left to do. Two of them may work on one
sweep: what is in use is left to the other.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from etils import epath

from common import tree
from common.devices import runtime
from common.errors import Preempted
from common.runs import files, workdir
from common.runs.progress import duration
from common.sweeps import trials
from common.sweeps.trials import Standing, Trial

SECONDS = 0.5  # between two looks
QUIET = 30.0  # seconds without a line after which one says where the sweep is, if no terminal does
PR_SET_PDEATHSIG = 1


def local(
    jobs: Sequence[Sequence[Trial]],
    command: Callable[[Sequence[Trial]], list[str]],
    root,
    at_once: int,
    board: "Board",
) -> None:
    """Runs jobs, each a process that trains some trials, until none is left.

    Args:
      jobs: the trials of each.
      command: trials -> the command line that trains them.
      root: of the sweep.
      at_once: how many processes.
      board: is shown where they are.

    Raises:
      Preempted: when this process was told to end; the trials have saved.
    """
    waiting, running = list(jobs), []
    passed_on = False
    with runtime.Told() as told:
        while (waiting and told.signal is None) or running:
            for job in list(waiting) if told.signal is None else []:
                if len(running) < at_once and not any(_in_use(t, root) for t in job):
                    waiting.remove(job)
                    job = [t for t in job if not trials.finished(t, epath.Path(root) / t.name)]
                    if job:
                        name = str(job[0].index)
                        running.append((job, *start_process(command(job), root, name, at_once)))
            if told.signal is not None and not passed_on:
                for _, process, _ in running:
                    process.send_signal(signal.SIGTERM)
                passed_on = True
            for one in [one for one in running if one[1].poll() is not None]:
                running.remove(one)
                if any(_in_use(trial, root) for trial in one[0]):
                    waiting.append(one[0])  # another launcher was faster
                elif told.signal is None:
                    _note_end(*one, root)
            board.show([trial.index for job, *_ in running for trial in job])
            time.sleep(SECONDS)
    if told.signal is not None:
        raise Preempted("told to end: the trials have saved")


def _in_use(trial: Trial, root) -> bool:
    return workdir.in_use(epath.Path(root) / trial.name)


def start_process(command: list[str], root, name: str, at_once: int = 1, cwd: str | None = None):
    """(process, the file of what it says): begins a process that ends, and saves, when this thread
    does.

    Args:
      command: its command line.
      root: of the sweep.
      name: of its output.
      at_once: how many of them share a GPU's memory.
      cwd: the folder that it begins in; None is that of this process.
    """
    output = epath.Path(root) / "output"
    if files.can_append(output):
        output.mkdir(parents=True, exist_ok=True)
        path = os.fspath(output / f"{name}.txt")
    else:
        path = os.path.join(tempfile.mkdtemp(), f"{name}.txt")
    # On a GPU each process would otherwise take three quarters of the memory.
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / at_once:.2f}"} if at_once > 1 else {}
    with open(path, "a") as file:
        process = subprocess.Popen(
            command,
            env=memory | os.environ,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            start_new_session=True,  # a terminal's Ctrl-C is for this process, which passes it on
            preexec_fn=_begin,
        )
    return process, path


def _begin() -> None:
    """In the new process, before its program."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # by which SLURM tells the process that launched
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def failure(code: int, output: str) -> str:
    """How a process ended that trained trials, for people; "" if all is well."""
    if code in (0, runtime.PREEMPTED):
        return ""
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"the process {how}; see {output}"


def _note_end(job: Sequence[Trial], process: subprocess.Popen, output: str, root) -> None:
    """Says of trials that did not say so themselves how their process ended."""
    reason = failure(process.returncode, output)
    for trial in job if reason else ():
        if trials.standing(trial, root).state in ("new", "begun"):
            trials.note_failure(epath.Path(root) / trial.name, reason)


# ---------------------------------------------------------------------------------------- the board


class Board:
    """Where the trials are: a live table on a terminal, else a line whenever one ends."""

    def __init__(self, all_trials: Sequence[Trial], root, metric: str):
        self._trials, self._root, self._metric = list(all_trials), root, metric
        self._live, self._height = sys.stderr.isatty(), 0
        self._begun = self._said = time.monotonic()
        self._ran: set[int] = set()
        self._seen = [trials.standing(trial, root, metric) for trial in all_trials]
        self._first = self._steps()

    def _steps(self) -> tuple[int, int]:
        """(steps done, steps in all) of the trials that have not failed; one that did not begin has
        as many as the longest."""
        longest = max((s.steps for s in self._seen), default=0)
        left = [s for s in self._seen if s.state != "failed"]
        done = lambda s: max(s.steps, s.step) if s.state == "finished" else s.step
        return sum(map(done, left)), sum(max(s.steps, done(s)) or longest for s in left)

    def show(self, indices: Sequence[int]) -> None:
        """Looks at these trials, and those of the last look, and shows what is new."""
        before, look = self._seen, self._ran.union(indices)
        self._seen = [
            trials.standing(trial, self._root, self._metric) if k in look else before[k]
            for k, trial in enumerate(self._trials)
        ]
        self._ran = set(indices)
        running = [k for k in indices if self._seen[k].state == "begun"]
        if self._live:
            rows = [self._row(k) for k in running[:20]]
            text = tree.table_text(("trial", "step", self._metric, "ETA"), rows) if rows else ""
            self._draw(self._summary(len(running)) + "\n" + text)
            return
        said = []
        for k, (old, new) in enumerate(zip(before, self._seen, strict=True)):
            if new.state != old.state and new.state in ("finished", "stopped", "failed"):
                value = new.reason or f"{self._metric} {spelled(new.metric)}"
                said.append(f"{self._trials[k].name}: {new.state}, {value} ({self._summary()})")
        if not said and time.monotonic() - self._said > QUIET:
            rows = [self._row(k) for k in running]
            steps = [f"{name} at step {step}" for name, step, *_ in rows[:4]]
            more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
            said = [f"{self._summary(len(running))}: {', '.join(steps)}{more}"]
        if said:
            self._said = time.monotonic()
            print(*said, sep="\n", file=sys.stderr, flush=True)

    def _draw(self, text: str) -> None:
        width = os.get_terminal_size(sys.stderr.fileno()).columns
        lines = [line[: width - 1] for line in text.splitlines()]
        back = f"\x1b[{self._height}F\x1b[J" if self._height else ""
        sys.stderr.write(back + "".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
        self._height = len(lines)

    def _row(self, k: int) -> tuple:
        s = self._seen[k]
        left = (s.steps - s.step) * s.seconds / s.step if s.step and s.seconds else None
        eta = "" if left is None else duration(left)
        return self._trials[k].name, f"{s.step}/{s.steps or '?'}", spelled(s.metric), eta

    def _summary(self, running: int = 0) -> str:
        states = [s.state for s in self._seen]
        failed = f", {states.count('failed')} failed" if "failed" in states else ""
        (done, total), (before, _) = self._steps(), self._first
        speed = (done - before) / (time.monotonic() - self._begun)
        eta = f", ETA {duration((total - done) / speed)}" if speed and total > done else ""
        going = f", {running} running" if running else ""
        return f"{states.count('finished')} of {len(states)} finished{failed}{going}{eta}"

    def add(self, trial: Trial) -> None:
        """One more trial, unless it is there."""
        if all(trial.name != there.name for there in self._trials):
            self._trials.append(trial)
            self._seen.append(Standing("new"))

    def standings(self) -> list[Standing]:
        """Of all trials, as their folders say now."""
        return [trials.standing(trial, self._root, self._metric) for trial in self._trials]

    def final(self) -> str:
        """The table of all trials, those that failed with the reason."""
        found = list(zip(self._trials, self.standings(), strict=True))
        rows = [
            (k, trial.name, s.state, s.step, spelled(s.metric), duration(s.seconds))
            for k, (trial, s) in enumerate(found)
        ]
        header = "index", "trial", "state", "step", self._metric, "took"
        reasons = [f"{trial.name}: {s.reason}\n" for trial, s in found if s.reason]
        return tree.table_text(header, rows) + "".join(reasons)


def spelled(value) -> str:
    """A value of the log for a table."""
    return f"{value:.4f}" if isinstance(value, int | float) else "" if value is None else str(value)
