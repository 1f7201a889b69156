"""Trials as an array of SLURM jobs, by submitit (the extra `sweep`).

The jobs go on when the process that submitted them ends; started again, it watches those that are
in the queue and submits what is left. A job that comes to its time limit has its trial saved and
goes back to the queue. The workdir must be one that all nodes see.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from etils import epath

from common.devices import runtime
from common.errors import BadInput, Preempted, require
from common.runs import files
from common.sweeps import launch, trials
from common.sweeps.trials import Trial

SECONDS = 5.0  # between two looks at the queue
JOBS = "jobs.json"  # {trial: its last job}
MINUTES = 60  # of a job, unless the user says so; then it queues again
ALWAYS = 10**6  # times that it does


def parameters(text: str) -> dict[str, int | str]:
    """'partition=gpu,time=600' as a dict; whole numbers as such. Raises `BadInput`."""
    found = {}
    for word in filter(None, text.split(",")):
        key, sign, value = word.partition("=")
        require(bool(sign and key), f"--slurm: {word!r}; write 'partition=gpu,time=600'")
        found[key] = int(value) if value.isdigit() else value
    return found


def run(
    left: Sequence[Trial],
    command: Callable[[Trial], list[str]],
    root: str,
    at_once: int,
    asked: dict[str, int | str],
    board: launch.Board,
) -> None:
    """Submits trials and waits until their jobs have left the queue.

    Args:
      left: what is to be done; what is in the queue already is not submitted again.
      command: trial -> the command line that trains it.
      root: of the sweep.
      at_once: jobs at a time, at most.
      asked: submitit's parameters: partition, time (minutes), cpus_per_task, gpus_per_node, ….
      board: is shown where they are.

    Raises:
      BadInput: if submitit or SLURM is missing, or SLURM refuses the jobs.
      Preempted: when this process was told to end; the jobs are left alone.
    """
    try:
        import submitit
    except ImportError as error:
        raise BadInput(
            "--launcher slurm: submitit is missing: pip install -e '.[sweep]'"
        ) from error
    require(shutil.which("sbatch") is not None, "--launcher slurm: there is no sbatch here")
    require(
        files.can_append(files.absolute(root)), f"--workdir: {root}: SLURM's jobs need a folder"
    )
    folder = files.absolute(root) / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = json.loads((folder / JOBS).read_text()) if (folder / JOBS).exists() else {}
    queued = _queue()
    fresh = [trial for trial in left if jobs.get(trial.name) not in queued]
    if fresh:
        executor = submitit.SlurmExecutor(folder=os.fspath(folder), max_num_timeout=ALWAYS)
        valid = submitit.SlurmExecutor._valid_parameters()
        unknown = sorted(set(asked) - valid)
        require(not unknown, f"--slurm: unknown {', '.join(unknown)}; valid: {sorted(valid)}")
        executor.update_parameters(
            **{"job_name": "sweep", "array_parallelism": at_once, "time": MINUTES} | asked
        )
        try:
            with executor.batch():
                handles = [
                    executor.submit(_Run(command(t), os.fspath(root), t.name)) for t in fresh
                ]
        except submitit.core.utils.FailedJobError as error:
            raise BadInput(f"--slurm: {str(error).strip().splitlines()[-1]}") from error
        jobs |= {t.name: handle.job_id for t, handle in zip(fresh, handles, strict=True)}
        files.replace_text(folder / JOBS, json.dumps(jobs, indent=1) + "\n")
    mine = [trial for trial in left if trial.name in jobs]
    with runtime.Told() as told:
        while going := [t for t in mine if jobs[t.name] in _queue()]:
            board.show([trial.index for trial in going])
            if told.signal is not None:
                raise Preempted(f"{len(going)} jobs are left in the queue")
            time.sleep(SECONDS)
    board.show([trial.index for trial in mine])
    for trial in mine:
        if trials.standing(trial, root).state in ("new", "begun"):
            where = epath.Path(root) / trial.name
            trials.note_failure(where, f"its job {jobs[trial.name]} ended; see {folder}")


def _queue() -> set[str]:
    """The jobs of this user that wait or run, those of an array one by one."""
    words = ["squeue", "--me", "--noheader", "--array", "--format=%A %F_%a %i"]
    for _ in range(12):  # the controller may be busy for a minute
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode == 0:
            return set(done.stdout.split())
        time.sleep(SECONDS)
    raise BadInput(f"squeue: {done.stderr.strip()}; the jobs go on, run the same command again")


class _Run:
    """What a job does: train a trial by its command line. submitit calls `checkpoint` before SLURM
    ends the job."""

    def __init__(self, words: list[str], root: str, name: str):
        self.words, self.root, self.name, self.process = words, root, name, None

    def __call__(self) -> int:
        self.process, output = launch.start_process(self.words, self.root, self.name)
        reason = launch.failure(self._wait(), output)
        folder = epath.Path(self.root) / self.name
        if reason and not (folder / trials.FAILED).exists():
            trials.note_failure(folder, reason)
        return self.process.returncode

    def _wait(self) -> int:
        """The exit code. `Popen.wait` would lock out the `checkpoint` that interrupts it."""
        while self.process.poll() is None:
            time.sleep(0.5)
        return self.process.returncode

    def checkpoint(self):
        """Has the trial saved; the job is to be submitted again."""
        from submitit.helpers import DelayedSubmission

        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        self._wait()
        return DelayedSubmission(_Run(self.words, self.root, self.name))
