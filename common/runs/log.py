"""The log of a run: metrics.jsonl, TensorBoard and Weights & Biases.

metrics.jsonl holds one object a line: `step` (completed updates), `train/…` or `eval/NAME/…`, and
`time/…`, the only part that differs between two identical runs. After a restart the log continues
from the restored step: later lines are dropped, so none is lost or duplicated. Where files cannot
be appended to (object stores), the log is numbered parts in `metrics/` instead.
"""

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from common import inputs
from common.devices.agreement import together
from common.errors import BadInput
from common.runs import files, lines, trackers
from common.task import Shown


def log_section(*, tensorboard: bool = False, wandb: str = "") -> dict:
    """The section `log`: trackers, which get the metrics, the config as hyperparameters, and
    pictures and texts of examples, mistakes and confusion.

    Args:
      tensorboard: write event files to WORKDIR (needs the extra `tensorboard`).
      wandb: the Weights & Biases project to log to; "" is none (needs the extra `wandb`;
        WANDB_MODE=offline works without a network).

    Raises:
      BadInput: if an extra's package is missing.
    """
    if tensorboard:
        trackers.needed("tensorboardX", "tensorboard", "config.log.tensorboard")
    if wandb:
        trackers.needed("wandb", "wandb", "config.log.wandb")
    return {"tensorboard": tensorboard, "wandb": wandb}


def encode(value: Any) -> Any:
    """Numbers, arrays, lists and dicts as JSON values; numbers that are not finite are None."""
    if isinstance(value, dict):
        return {key: encode(v) for key, v in value.items()}
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        value = np.asarray(value).tolist()
    if isinstance(value, list):
        return [encode(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(workdir: epath.PathLike) -> list[dict]:
    """Every line of a run's log, in order, without one that a crash cut off at the end; [] if there
    is none.

    Raises:
      BadInput: if a line in the middle is damaged.
    """
    return [entry.line for entry in lines.readable(workdir)]


def tail(workdir: epath.PathLike, size: int = 1 << 16) -> list[dict]:
    """The last lines of a run's log that fit in `size` bytes, at least one (all, if it is in
    parts); damaged ones are left out."""
    path = epath.Path(workdir) / lines.NAME
    if not path.exists() or not files.can_append(path):
        return [entry.line for entry in lines.entries_of(workdir)[0] if entry.line is not None]
    with open(inputs.file("", path), "rb") as file:
        length = os.fstat(file.fileno()).st_size
        while True:
            file.seek(max(0, length - size))
            raw = file.read()
            raw = raw if size >= length else raw.partition(b"\n")[2]
            last = [e.line for e in lines.parse(path, raw)[0] if e.line is not None]
            if last or size >= length:
                return last
            size *= 8


def logged(history: list[dict], step: int, prefix: str) -> bool:
    """Whether a line of `step` has a key that starts with `prefix`."""
    return any(
        line["step"] == step and any(key.startswith(prefix) for key in line)
        for line in reversed(history)
    )


class Log:
    """The metrics of a run. `history` holds every line so far, including earlier starts.

    With `workdir=None` nothing is written. Only the `writing` process writes; all keep the history,
    which decides saving and stopping. `tracked` is whether the run has trackers, in any process.
    """

    def __init__(
        self, workdir, step: int, *, writing: bool, name: str, config: dict, tensorboard, wandb
    ):
        """Resumes after `step`, dropping the lines of later steps.

        Raises:
          BadInput: if a line is damaged, and not at the end.
        """
        self._workdir = None if workdir is None else epath.Path(workdir)
        self._writing = writing and workdir is not None
        self._file, self._buffer = None, []
        self.tracked = bool(tensorboard or wandb)
        self._trackers: dict[str, Any] = {}
        kept: list[lines.Entry] = []
        if workdir is not None:
            with together():  # all have read before one rewrites
                kept = [entry for entry in lines.readable(workdir) if entry.line["step"] <= step]
        self.history: list[dict] = [entry.line for entry in kept]
        if not self._writing:
            return
        self._rewind(kept)
        begin = {}
        if tensorboard:
            begin["TensorBoard"] = lambda: trackers.TensorBoard(self._workdir, step, config)
        if wandb:
            begin["W&B"] = lambda: trackers.WandB(self._workdir, wandb, name, config)
        for kind, opened in begin.items():
            with self._doing_without(kind):
                self._trackers[kind] = opened()

    @contextlib.contextmanager
    def _doing_without(self, kind: str) -> Iterator[None]:
        """Warns of a tracker that fails (no network, a full disk) and leaves it out from then
        on."""
        try:
            yield
        except BadInput:
            raise
        except Exception as error:
            self._trackers.pop(kind, None)
            first = (str(error).strip() or repr(error)).split("\n")[0]
            logging.warning("%s is left out: %s: %s", kind, type(error).__name__, first)

    def _track(self, action: Callable) -> None:
        for kind, tracker in [*self._trackers.items()]:
            with self._doing_without(kind):
                action(tracker)

    def _rewind(self, kept: Sequence[lines.Entry]) -> None:
        """Drops the lines beyond those kept; a crash meanwhile duplicates nothing."""
        if files.can_append(self._workdir):
            path = self._workdir / lines.NAME
            lines.rewrite(path, kept)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
            return
        (self._workdir / "metrics").mkdir(parents=True, exist_ok=True)
        for file in reversed(lines.log_files(self._workdir)):  # the last first
            own = [entry for entry in kept if os.fspath(entry.file) == os.fspath(file)]
            if not own:
                file.unlink()
            elif own[-1].number < lines.parse(file, file.read_bytes())[0][-1].number:
                lines.rewrite(file, own)
        parts = [file for file in lines.log_files(self._workdir) if file.name != lines.NAME]
        self._next = max(map(lines.part_number, parts), default=-1) + 1

    def _part(self, number: int) -> epath.Path:
        return self._workdir / "metrics" / f"part_{number:05d}.jsonl"

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Adds a line of numbers, strings and arrays by name. Numbers that are not finite become
        null."""
        line = {"step": step} | {name: encode(value) for name, value in values.items()}
        self.history.append(line)
        if not self._writing:
            return
        if self._file:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        else:
            self._buffer.append(line)
        numbers = {k: v for k, v in line.items() if isinstance(v, (int, float)) and k != "step"}
        self._track(lambda tracker: tracker.numbers(step, numbers))
        for name, value in line.items():
            if isinstance(value, str):
                self._track(lambda tracker, n=name, v=value: tracker.text(step, n, v))

    def show(self, step: int, values: dict[str, Shown]) -> None:
        """Draws and gives to the trackers what is for them alone."""
        for name, value in values.items() if self._trackers else ():
            shown: Any = ""
            with self._doing_without(name):
                shown = value.draw()
            kind = "text" if isinstance(shown, str) else "picture"
            self._track(lambda tracker, n=name, k=kind, v=shown: getattr(tracker, k)(step, n, v))

    def sync(self) -> None:
        """Flushes everything to disk; called before a checkpoint, which relies on it."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._buffer:
            text = "".join(json.dumps(line) + "\n" for line in self._buffer)
            self._part(self._next).write_text(text)
            self._buffer, self._next = [], self._next + 1
        self._track(lambda tracker: tracker.flush())

    def has(self, step: int, prefix: str) -> bool:
        """`logged` for this log."""
        return logged(self.history, step, prefix)

    def close(self) -> None:
        """Flushes everything to disk and closes."""
        self.sync()
        if self._file:
            self._file.close()
        self._track(lambda tracker: tracker.close())
