"""Mends a run's log before it goes on: what is lost by it is refused, what is dropped is kept."""

import logging
import os

from etils import epath

from common.devices.agreement import together
from common.errors import BadInput
from common.runs import history, lines
from common.runs.checkpoint import steps_in
from common.runs.workdir import read_starts


def mend_log(folder: epath.Path, step: int, log_every: int, write: bool) -> None:
    """Ensures that the log is complete up to the checkpoint from which a run resumes.

    Lines after that step are dropped anyway, so damage a crash left there (a torn line, NUL bytes)
    is cut off, as is what an editor adds (a byte order mark, blank lines). The file is kept as it
    was. A missing or damaged line up to that step would be lost: that is an error.

    Args:
      folder: the workdir.
      step: the checkpoint's step; 0 is no checkpoint.
      log_every: steps between lines of training, or 0 if it may have changed.
      write: whether this process writes.

    Raises:
      BadInput: in all processes, if the log is damaged or incomplete up to the step.
    """
    with together():
        entries, extras = lines.entries_of(folder)
        whole = lines.intact(entries)
        rest = entries[len(whole) :]
        starts = read_starts(folder) if (folder / "environment.json").exists() else []
        absent = history.missing([entry.line for entry in whole], step, log_every, starts)
        lost = [e.line["step"] for e in rest if e.line is not None and e.line["step"] <= step]
        if absent is not None or lost:
            raise BadInput(_incomplete(folder, step, whole, rest, absent, lost))
        if write and (rest or extras):
            lines.mend(folder)
        elif write and entries:
            _keep_what_no_step_repeats(entries, starts, step)


def _incomplete(folder, step: int, whole: list, rest: list, absent, lost: list[int]) -> str:
    """The message for a log that is damaged up to the checkpoint's step."""
    trained = [e.line["step"] for e in whole if any(key.startswith("train/") for key in e.line)]
    file, number = (whole[-1].file, whole[-1].number + 1) if whole else (folder / lines.NAME, 1)
    first, why = min(lost, default=0), ""
    if absent is not None:
        first, why = absent[0], f"{absent[1]} of step {absent[0]} is missing"
        trained = [at for at in trained if at < first or (at == first and absent[1] != "training")]
    behind = [entry for entry in whole if absent is not None and entry.line["step"] > first]
    if behind:
        file, number = behind[0].file, behind[0].number
    elif rest:
        file, number, why = rest[0].file, rest[0].number, rest[0].damage
    last = max(trained, default=0)
    later = [s for s in steps_in(folder) if s >= first]
    return (
        f"{file} is damaged at line {number}: it is whole up to step {last}, then {why}, and the "
        f"newest checkpoint is of step {step}; repair that line, or move the checkpoints of steps "
        f"{later} away to compute the rest again"
    )


def _keep_what_no_step_repeats(entries: list, starts: list[dict], step: int) -> None:
    """Keeps a copy of the log if it goes further than the run now will: those lines are dropped,
    and not computed again."""
    total = starts[-1].get("steps") if starts else None
    if isinstance(total, int) and entries[-1].line["step"] > max(total, step):
        for file in dict.fromkeys(os.fspath(e.file) for e in entries if e.line["step"] > total):
            name = lines.keep(epath.Path(file))
            logging.warning("%s: lines after step %d are dropped; kept in %s", file, total, name)
