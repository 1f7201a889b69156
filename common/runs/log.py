"""The log of a run: metrics.jsonl, TensorBoard and Weights & Biases.

metrics.jsonl holds one object a line: `step` (completed updates), `train/…` or `eval/NAME/…`, and
`time/…`, the only part that differs between two identical runs. After a restart the log continues
from the restored step: later lines are dropped, so none is lost or duplicated. Where files cannot
be appended to (object stores), the log is numbered parts in `metrics/` instead.
"""

import json
import math
import os
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from common.errors import BadInput
from common.runs import files

NAME = "metrics.jsonl"


def log_section(*, tensorboard: bool = False, wandb: str = "") -> dict:
    """The section `log`: where metrics go besides metrics.jsonl.

    Args:
      tensorboard: write event files to WORKDIR/tensorboard (needs the extra `tensorboard`).
      wandb: the Weights & Biases project to log to; "" is none (needs the extra `wandb`;
        WANDB_MODE=offline works without a network).

    Raises:
      BadInput: if an extra's package is missing.
    """
    if tensorboard:
        _need("tensorboardX", "tensorboard", "config.log.tensorboard")
    if wandb:
        _need("wandb", "wandb", "config.log.wandb")
    return {"tensorboard": tensorboard, "wandb": wandb}


def _need(module: str, extra: str, where: str):
    try:
        return __import__(module)
    except ImportError as error:
        raise BadInput(f"{where}: {module} is missing: pip install -e '.[{extra}]'") from error


def encode(value: Any) -> Any:
    """Numbers, arrays, lists and dicts as JSON values; numbers that are not finite are None."""
    if isinstance(value, dict):
        return {key: encode(v) for key, v in value.items()}
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        value = np.asarray(value).tolist()
    if isinstance(value, list):
        return [encode(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parts(workdir: epath.Path) -> list[epath.Path]:
    folder = workdir / "metrics"
    return sorted(folder.glob("part_*.jsonl")) if folder.exists() else []


def _text(lines: list[dict]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _lines(text: str) -> list[dict]:
    """The complete lines of a log, without one that a crash cut off."""
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def read_lines(workdir: epath.PathLike) -> list[dict]:
    """Every line of a run's log, in order; [] if there is none."""
    workdir = epath.Path(workdir)
    files = [workdir / NAME] if (workdir / NAME).exists() else _parts(workdir)
    return [line for file in files for line in _lines(file.read_text())]


def tail(workdir: epath.PathLike, size: int = 1 << 16) -> list[dict]:
    """The last lines of a run's log that fit in `size` bytes (all, if it is in parts)."""
    path = epath.Path(workdir) / NAME
    if not path.exists():
        return read_lines(workdir)
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        from_start = file.tell() == 0
        text = file.read().decode(errors="replace")
    return _lines(text if from_start else text.partition("\n")[2])


def logged(history: list[dict], step: int, prefix: str) -> bool:
    """Whether a line of `step` has a key that starts with `prefix`."""
    return any(
        line["step"] == step and any(key.startswith(prefix) for key in line)
        for line in reversed(history)
    )


class Log:
    """The metrics of a run. `history` holds every line so far, including earlier starts.

    With `workdir=None` nothing is written. Only the `writing` process writes; all keep the history,
    which decides saving and stopping.
    """

    def __init__(
        self, workdir, step: int, *, writing: bool, name: str, config: dict, tensorboard, wandb
    ):
        """Resumes after `step`, dropping the lines of later steps."""
        self._workdir = None if workdir is None else epath.Path(workdir)
        self._writing = writing and workdir is not None
        self._file, self._buffer, self._tensorboard, self._wandb = None, [], None, None
        self.history: list[dict] = []
        if workdir is not None:
            self.history = [line for line in read_lines(workdir) if line["step"] <= step]
            if jax.process_count() > 1:  # all must read before one rewrites
                multihost_utils.sync_global_devices("log")
        if not self._writing:
            return
        self._rewind()
        if tensorboard:
            writer = _need("tensorboardX", "tensorboard", "config.log.tensorboard").SummaryWriter
            folder = os.fspath(self._workdir / "tensorboard")
            self._tensorboard = writer(folder, purge_step=step + 1)
        if wandb:
            self._wandb = _need("wandb", "wandb", "config.log.wandb").init(
                project=wandb,
                name=name,
                id=name,
                dir=os.fspath(self._workdir),
                config=config,
                resume="allow",
            )

    def _rewind(self) -> None:
        """Drops the lines beyond the history; a crash meanwhile duplicates nothing."""
        if files.can_append(self._workdir):
            files.replace_text(self._workdir / NAME, _text(self.history))
            self._file = open(self._workdir / NAME, "a", encoding="utf-8")  # noqa: SIM115
            return
        (self._workdir / "metrics").mkdir(parents=True, exist_ok=True)
        left, self._next = len(self.history), 0
        before = {part: _lines(part.read_text()) for part in _parts(self._workdir)}
        kept = {}
        for part, lines in before.items():
            kept[part] = lines[: max(left, 0)]
            left -= len(lines)
        for part, lines in reversed(kept.items()):  # the last part first
            if not lines:
                part.unlink()
            elif lines != before[part]:
                part.write_text(_text(lines))
            self._next = max(self._next, int(part.name[5:10]) + 1)

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
        if self._tensorboard:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
            for name, value in line.items():
                if isinstance(value, str):
                    self._tensorboard.add_text(name, value, step)
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def sync(self) -> None:
        """Flushes everything to disk; called before a checkpoint, which relies on it."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._buffer:
            self._part(self._next).write_text(_text(self._buffer))
            self._buffer, self._next = [], self._next + 1
        if self._tensorboard:
            self._tensorboard.flush()

    def has(self, step: int, prefix: str) -> bool:
        """`logged` for this log."""
        return logged(self.history, step, prefix)

    def close(self) -> None:
        """Flushes everything to disk and closes."""
        self.sync()
        if self._file:
            self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()
