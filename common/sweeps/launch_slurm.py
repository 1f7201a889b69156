"""Runs trials as a SLURM job array, by submitit (the extra `sweep`).

The jobs outlive the process that submitted them; restarted, it watches those in the queue and
submits the rest. A job that reaches its time limit saves its trial and is requeued. All nodes must
see the workdir.
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

from common.devices import ending
from common.errors import BadInput, Preempted, require
from common.runs import files
from common.sweeps import launch, trials
from common.sweeps.trials import Trial

SECONDS = 5.0  # between polls of the queue
JOBS = "jobs.json"  # {trial: its latest job}
MINUTES = 60  # default time limit of a job, after which it is requeued
ALWAYS = 10**6  # times that it is requeued


def parameters(text: str) -> dict[str, int | str]:
    """'partition=gpu,time=600' as a dict; whole numbers become ints. Raises `BadInput`."""
    options = {}
    for word in filter(None, text.split(",")):
        key, sign, value = word.partition("=")
        require(bool(sign and key), f"--slurm: {word!r}; write 'partition=gpu,time=600'")
        options[key] = int(value) if value.isdecimal() else value
    return options


def run(
    left: Sequence[Trial],
    command: Callable[[Trial], list[str]],
    root: str,
    at_once: int,
    options: dict[str, int | str],
    board: launch.Board,
) -> None:
    """Submits trials and waits until their jobs have left the queue.

    Args:
      left: trials still to run; those already in the queue are not submitted again.
      command: trial -> the command line that trains it.
      root: folder of the sweep.
      at_once: maximum number of concurrent jobs.
      options: submitit's parameters: partition, time (minutes), cpus_per_task, gpus_per_node, ….
      board: displays the trials' progress.

    Raises:
      BadInput: if submitit or SLURM is missing, or SLURM rejects the jobs.
      Preempted: when this process was told to end; the jobs are left running.
    """
    try:
        import submitit
    except ImportError as error:
        raise BadInput(
            "--launcher slurm: submitit is missing: pip install -e '.[sweep]'"
        ) from error
    require(shutil.which("sbatch") is not None, "--launcher slurm: sbatch is not on the PATH")
    require(files.can_append(files.absolute(root)), f"--workdir: {root}: SLURM jobs need a folder")
    folder = files.absolute(root) / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = json.loads((folder / JOBS).read_text()) if (folder / JOBS).exists() else {}
    queued = _queue()
    fresh = [trial for trial in left if jobs.get(trial.name) not in queued]
    if fresh:
        executor = submitit.SlurmExecutor(folder=os.fspath(folder), max_num_timeout=ALWAYS)
        valid = submitit.SlurmExecutor._valid_parameters()
        unknown = sorted(set(options) - valid)
        require(not unknown, f"--slurm: unknown {', '.join(unknown)}; valid: {sorted(valid)}")
        executor.update_parameters(
            **{"job_name": "sweep", "array_parallelism": at_once, "time": MINUTES} | options
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
    submitted = [trial for trial in left if trial.name in jobs]
    with ending.busy("waiting for jobs"), ending.Told() as interrupt:
        while unfinished := [t for t in submitted if jobs[t.name] in _queue()]:
            board.show([trial.index for trial in unfinished])
            if interrupt.signal is not None:
                raise Preempted(f"{len(unfinished)} jobs are left in the queue")
            time.sleep(SECONDS)
    board.show([trial.index for trial in submitted])
    for trial in submitted:
        if trials.standing(trial, root).state in ("new", "begun"):
            trial_folder = epath.Path(root) / trial.name
            trials.note_failure(trial_folder, f"its job {jobs[trial.name]} ended; see {folder}")


def _queue() -> set[str]:
    """Ids of this user's pending and running jobs, each task of an array by itself."""
    words = ["squeue", "--me", "--noheader", "--array", "--format=%A %F_%a %i"]
    for _ in range(12):  # the controller may be busy for a minute
        result = subprocess.run(words, capture_output=True, text=True)
        if result.returncode == 0:
            return set(result.stdout.split())
        time.sleep(SECONDS)
    raise BadInput(f"squeue: {result.stderr.strip()}; the jobs go on, run the same command again")


class _Run:
    """The work of a job: trains a trial by its command line. submitit calls `checkpoint` before
    SLURM ends the job."""

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
        """The exit code. `Popen.wait` would block the `checkpoint` that interrupts it."""
        while self.process.poll() is None:
            time.sleep(0.5)
        return self.process.returncode

    def checkpoint(self):
        """Has the trial save, and the job resubmitted."""
        from submitit.helpers import DelayedSubmission

        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        self._wait()
        return DelayedSubmission(_Run(self.words, self.root, self.name))
