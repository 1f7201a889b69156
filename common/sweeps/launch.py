"""Runs the trials of a sweep as processes of this machine, and reports their progress.

The launcher itself computes nothing: a trial that crashes, exhausts memory or is killed ends alone.
When the launcher is told to end, so are the trials, and they save; when it is killed, they save and
end too. Restarted, it reads from the folders what is left to do. Two launchers may work on one
sweep: each skips trials that the other is running.
"""

import ctypes
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence

from etils import epath

from common import tree
from common.devices import ending
from common.errors import Preempted
from common.runs import files, workdir
from common.runs.history import number
from common.runs.progress import duration
from common.sweeps import trials
from common.sweeps.trials import Standing, Trial

SECONDS = 0.5  # between polls
QUIET = 30.0  # seconds of silence before a status line, without a terminal
PR_SET_PDEATHSIG = 1


def local(
    jobs: Sequence[Sequence[Trial]],
    command: Callable[[Sequence[Trial]], list[str]],
    root,
    at_once: int,
    board: "Board",
) -> None:
    """Runs jobs until none is left, each a process that trains one or more trials.

    Args:
      jobs: the trials of each job.
      command: trials -> the command line that trains them.
      root: folder of the sweep.
      at_once: maximum number of concurrent processes.
      board: displays the trials' progress.

    Raises:
      Preempted: when this process was told to end; the trials have saved.
    """
    waiting, running = list(jobs), []
    forwarded = False
    with ending.busy("waiting for trials"), ending.Told() as interrupt:
        while (waiting and interrupt.signal is None) or running:
            for job in list(waiting) if interrupt.signal is None else []:
                if len(running) < at_once and not any(_in_use(t, root) for t in job):
                    waiting.remove(job)
                    job = [t for t in job if not trials.finished(t, epath.Path(root) / t.name)]
                    if job:
                        name = str(job[0].index)
                        running.append((job, *start_process(command(job), root, name, at_once)))
            if interrupt.signal is not None and not forwarded:
                for _, process, _ in running:
                    process.send_signal(signal.SIGTERM)
                forwarded = True
            for ended in [ended for ended in running if ended[1].poll() is not None]:
                running.remove(ended)
                if any(_in_use(trial, root) for trial in ended[0]):
                    waiting.append(ended[0])  # another launcher took it first
                elif interrupt.signal is None:
                    _note_end(*ended, root)
            board.show([trial.index for job, *_ in running for trial in job])
            time.sleep(SECONDS)
    if interrupt.signal is not None:
        raise Preempted("told to end: the trials have saved")


def _in_use(trial: Trial, root) -> bool:
    return workdir.in_use(epath.Path(root) / trial.name)


def start_process(command: list[str], root, name: str, at_once: int = 1, cwd: str | None = None):
    """Starts a process that is told to end, and saves, when the calling thread ends.

    Args:
      command: its command line.
      root: folder of the sweep.
      name: of its output file.
      at_once: number of processes that share a GPU's memory.
      cwd: its working directory; None inherits this process's.

    Returns:
      (process, path of its output file).
    """
    output = epath.Path(root) / "output"
    if files.can_append(output):
        output.mkdir(parents=True, exist_ok=True)
        path = os.fspath(output / f"{name}.txt")
    else:
        path = os.path.join(tempfile.mkdtemp(), f"{name}.txt")
    # By default each process would preallocate three quarters of a GPU's memory.
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / at_once:.2f}"} if at_once > 1 else {}
    with open(path, "a") as file, warnings.catch_warnings():
        # The config may have computed with jax, whose threads the child leaves at once.
        warnings.filterwarnings("ignore", r"os\.fork\(\)", RuntimeWarning)
        process = subprocess.Popen(
            command,
            env=memory | os.environ,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            start_new_session=True,  # Ctrl-C goes to this process, which forwards it
            preexec_fn=_begin,
        )
    return process, path


def _begin() -> None:
    """Runs in the child process before its program."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM's signal to the launching process
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def failure(code: int, output: str) -> str:
    """Why a training process failed, for display; "" if it did not."""
    if code == 0 or code in ending.TOLD:
        return ""
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"the process {how}; see {output}"


def _note_end(job: Sequence[Trial], process: subprocess.Popen, output: str, root) -> None:
    """Records how the process ended for trials that recorded no failure themselves."""
    reason = failure(process.returncode, output)
    for trial in job if reason else ():
        if trials.standing(trial, root).state in ("new", "begun"):
            trials.note_failure(epath.Path(root) / trial.name, reason)


# ---------------------------------------------------------------------------------------- the board


class Board:
    """Displays the progress of trials: a live table on a terminal, else a line whenever one
    ends."""

    def __init__(self, all_trials: Sequence[Trial], root, metric: str, sign: int = 0):
        """`metric` is the key of the log that is shown; the table is sorted by it if more of it
        (`sign` 1) or less (-1) is better."""
        self._trials, self._root, self._metric = list(all_trials), root, metric
        self._sign = sign
        self._live, self._height = sys.stderr.isatty(), 0
        self._begun = self._printed_at = time.monotonic()
        self._running: set[int] = set()
        self._seen = [trials.standing(trial, root, metric) for trial in all_trials]
        self._first = self._steps()

    def _steps(self) -> tuple[int, int]:
        """(steps done, total steps) of the trials that have not failed; a trial that has not begun
        counts as many steps as the longest."""
        longest = max((s.steps for s in self._seen), default=0)
        counted = [s for s in self._seen if s.state != "failed"]
        done = lambda s: max(s.steps, s.step) if s.state == "finished" else s.step
        return sum(map(done, counted)), sum(max(s.steps, done(s)) or longest for s in counted)

    def show(self, indices: Sequence[int]) -> None:
        """Refreshes these trials and those of the last call, and displays what changed."""
        before, look = self._seen, self._running.union(indices)
        self._seen = [
            trials.standing(trial, self._root, self._metric) if k in look else before[k]
            for k, trial in enumerate(self._trials)
        ]
        self._running = set(indices)
        running = [k for k in indices if self._seen[k].state == "begun"]
        if self._live:
            rows = [self._row(k) for k in running[:20]]
            text = tree.table_text(("trial", "step", self._metric, "ETA"), rows) if rows else ""
            self._draw(self._summary(len(running)) + "\n" + text)
            return
        messages = []
        for k, (old, new) in enumerate(zip(before, self._seen, strict=True)):
            if new.state != old.state and new.state in ("finished", "stopped", "failed"):
                value = new.reason or f"{self._metric} {spelled(new.metric)}"
                messages.append(f"{self._trials[k].name}: {new.state}, {value} ({self._summary()})")
        if not messages and time.monotonic() - self._printed_at > QUIET:
            rows = [self._row(k) for k in running]
            steps = [f"{name} at step {step}" for name, step, *_ in rows[:4]]
            more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
            messages = [f"{self._summary(len(running))}: {', '.join(steps)}{more}"]
        if messages:
            self._printed_at = time.monotonic()
            print(*messages, sep="\n", file=sys.stderr, flush=True)

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
        active = f", {running} running" if running else ""
        return f"{states.count('finished')} of {len(states)} finished{failed}{active}{eta}"

    def add(self, trial: Trial) -> None:
        """Adds a trial, unless it is already listed."""
        if all(trial.name != listed.name for listed in self._trials):
            self._trials.append(trial)
            self._seen.append(Standing("new"))

    def standings(self) -> list[Standing]:
        """The current standing of every trial, read from its folder."""
        return [trials.standing(trial, self._root, self._metric) for trial in self._trials]

    def final(self) -> str:
        """The table of all trials, the best first, followed by its name, unless they are folds, and
        the reasons of those that failed or were stopped."""
        pairs = list(zip(self._trials, self.standings(), strict=True))

        def ranked(standing: Standing) -> bool:
            known = math.isfinite(number(standing.metric))
            return self._sign != 0 and standing.state == "finished" and known

        def place(entry) -> tuple[bool, float]:
            standing = entry[1][1]
            return (False, -self._sign * standing.metric) if ranked(standing) else (True, 0.0)

        ordered = sorted(enumerate(pairs), key=place)
        rows = [
            (k, trial.name, s.state, s.step, spelled(s.metric), duration(s.seconds))
            for k, (trial, s) in ordered
        ]
        which = {1: " (max)", -1: " (min)", 0: ""}[self._sign]
        header = "index", "trial", "state", "step", f"{self._metric}{which}", "took"
        best = ""
        folds = any("[not fold " in str(t.overrides.get("data.train")) for t in self._trials)
        if sum(ranked(s) for _, s in pairs) > 1 and not folds:  # one fold is not better than others
            best = f"best by its last {self._metric}: {rows[0][1]} ({rows[0][4]})\n"
        reasons = [f"{trial.name}: {s.reason}\n" for trial, s in pairs if s.reason]
        return tree.table_text(header, rows) + best + "".join(reasons)


def spelled(value) -> str:
    """A value from the log, formatted for a table."""
    return f"{value:.4f}" if isinstance(value, int | float) else "" if value is None else str(value)
