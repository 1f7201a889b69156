"""What a run says: metrics.jsonl, TensorBoard, Weights & Biases, and the line on the terminal.

metrics.jsonl holds one object a line: `step` (completed updates), `train/…` or `eval/NAME/…`, and
`time/…`, which is all that differs between two runs of the same thing. After a restart the log
goes on at the restored step: lines beyond it are taken back, so none is lost and none is there
twice. Where files cannot be appended to (object stores), the log is numbered parts in `metrics/`
instead.
"""

import json
import math
import os
import sys
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from common.devices.chips import Chip
from common.errors import BadInput

NAME = "metrics.jsonl"


def options(*, tensorboard: bool = False, wandb: str = "") -> dict:
    """Checks the section `log`.

    Args:
      tensorboard: write event files to WORKDIR/tensorboard (needs the extra `tensorboard`).
      wandb: the W&B project to log to, "" for none (needs the extra `wandb`; WANDB_MODE=offline
        works without a network).

    Raises:
      BadInput: if the package of an extra is missing.
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


def can_append(path: epath.Path) -> bool:
    """Whether files there can be appended to: object stores (gs://, s3://, …) cannot."""
    return "://" not in os.fspath(path)


def replace_text(path: epath.Path, text: str) -> None:
    """Writes a whole file so that a reader, or a crash, sees the old one or the new one."""
    if not can_append(path):
        path.write_text(text)  # an object appears whole
        return
    temporary = path.parent / f".{path.name}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def encode(value: Any) -> Any:
    """Numbers, arrays, lists and dicts as what JSON can say; what is not finite is None."""
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
    """The whole lines of a log; one that a crash tore is left out."""
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def read(workdir: epath.PathLike) -> list[dict]:
    """Every line of a run's log, in order; [] where there is none."""
    workdir = epath.Path(workdir)
    files = [workdir / NAME] if (workdir / NAME).exists() else _parts(workdir)
    return [line for file in files for line in _lines(file.read_text())]


def tail(workdir: epath.PathLike, size: int = 1 << 16) -> list[dict]:
    """The last lines of a run's log, as many as `size` bytes hold (all, where it is in parts)."""
    path = epath.Path(workdir) / NAME
    if not path.exists():
        return read(workdir)
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        whole = file.tell() == 0
        text = file.read().decode(errors="replace")
    return _lines(text if whole else text.partition("\n")[2])


class Log:
    """The metrics of a run. `history` holds every line so far, also those of earlier starts.

    With `workdir=None` nothing is written. Only the process that is `writing` writes; all keep the
    history, since decisions are made by it.
    """

    def __init__(
        self, workdir, step: int, *, writing: bool, name: str, config: dict, tensorboard, wandb
    ):
        """Goes on behind `step`: lines of later steps are taken back."""
        self._workdir = None if workdir is None else epath.Path(workdir)
        self._writing = writing and workdir is not None
        self._file, self._buffer, self._tensorboard, self._wandb = None, [], None, None
        self.history: list[dict] = []
        if workdir is not None:
            self.history = [line for line in read(workdir) if line["step"] <= step]
            if jax.process_count() > 1:  # all have read before one rewrites
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
        """Takes back the lines beyond the history; a crash in between leaves nothing double."""
        if can_append(self._workdir):
            replace_text(self._workdir / NAME, _text(self.history))
            self._file = open(self._workdir / NAME, "a", encoding="utf-8")  # noqa: SIM115
            return
        (self._workdir / "metrics").mkdir(parents=True, exist_ok=True)
        left, self._next = len(self.history), 0
        whole = {part: _lines(part.read_text()) for part in _parts(self._workdir)}
        kept = {}
        for part, lines in whole.items():
            kept[part] = lines[: max(left, 0)]
            left -= len(lines)
        for part, lines in reversed(kept.items()):  # the last ones first
            if not lines:
                part.unlink()
            elif lines != whole[part]:
                part.write_text(_text(lines))
            self._next = max(self._next, int(part.name[5:10]) + 1)

    def _part(self, number: int) -> epath.Path:
        return self._workdir / "metrics" / f"part_{number:05d}.jsonl"

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Adds a line: numbers, strings and arrays by name. What is not finite is null in the
        file."""
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
        """Puts everything on disk; before a checkpoint, which relies on it."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._buffer:
            self._part(self._next).write_text(_text(self._buffer))
            self._buffer, self._next = [], self._next + 1
        if self._tensorboard:
            self._tensorboard.flush()

    def has(self, step: int, prefix: str) -> bool:
        """Whether a line of `step` has a name that begins with `prefix`."""
        return any(
            line["step"] == step and any(key.startswith(prefix) for key in line)
            for line in reversed(self.history)
        )

    def close(self) -> None:
        """Puts everything on disk and lets go."""
        self.sync()
        if self._file:
            self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def duration(seconds: float) -> str:
    """Seconds as '3:07' or '2:03:07'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def spelled(values: dict[str, Any]) -> str:
    """'loss 0.3114  accuracy 0.9051': the numbers among `values`, by the last part of their
    names."""
    technical = ("learning_rate", "gradient_norm", "update_norm")
    numbers = {k.split("/")[-1]: v for k, v in values.items() if isinstance(v, (int, float))}
    numbers = {name: value for name, value in numbers.items() if name not in technical}
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def speeds(
    examples_per_second: float,
    flops: float | None = None,
    tokens: int | None = None,
    chip: Chip | None = None,
    devices: int = 1,
) -> dict[str, float]:
    """`examples_per_second`; `tokens_per_second` and `mfu` where they apply.

    MFU is the share of the devices' peak that the model's own FLOPs are (Chowdhery et al. 2022,
    appendix B). The peak is that of bfloat16 whatever a run computes in: float32 is measured by the
    same ruler.

    Args:
      examples_per_second: over all devices.
      flops, tokens: of an example, as `common.task.Task` has them.
      chip: what each device is; None if that is not known.
      devices: how many.
    """
    found = {"examples_per_second": round(examples_per_second, 1)}
    if tokens is not None:
        found["tokens_per_second"] = round(examples_per_second * tokens, 1)
    if flops is not None and chip is not None:
        found["mfu"] = round(examples_per_second * flops / (chip.flops * devices), 6)
    return found


class Progress:
    """Speed, time left, and where the run is: one live line on a terminal, else a line now and
    then."""

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        step: int,
        seconds: float,
        show: bool,
        **speeds_of,
    ):
        """Begins at `step`, `seconds` of earlier starts behind it; `speeds_of` are what `speeds`
        needs to know of the run."""
        self._total, self._batch_size, self._show = total_steps, batch_size, show
        self._speeds_of = speeds_of
        self._begun, self._before = time.perf_counter(), seconds
        self._live = show and sys.stderr.isatty()
        self._last_shown, self._width = -math.inf, 0
        self._busy, self._mark, self._steps, self._first = 0.0, None, 0, None
        self.start()

    def seconds(self) -> float:
        """Wall-clock seconds of training so far, earlier starts included."""
        return self._before + time.perf_counter() - self._begun

    def start(self) -> None:
        """Training begins or goes on: what follows counts towards the speed."""
        self._mark = time.perf_counter()

    def pause(self) -> None:
        """Something else than training begins (evaluation, saving)."""
        if self._mark is not None:
            self._busy += time.perf_counter() - self._mark
            self._mark = None

    def done(self, step: int) -> None:
        """`step` updates are complete. The first call, which compiles, does not count towards the
        speed."""
        if self._first is None:
            self._busy, self._mark, self._first = 0.0, time.perf_counter(), step
        self._steps = step - self._first

    def examples_per_second(self) -> float:
        """Mean speed of training since this start; 0 before it is known."""
        running = time.perf_counter() - self._mark if self._mark is not None else 0.0
        return self._steps * self._batch_size / (self._busy + running) if self._steps else 0.0

    def speeds(self) -> dict[str, float]:
        """`speeds` so far."""
        return speeds(self.examples_per_second(), **self._speeds_of)

    def show(self, step: int, values: dict[str, Any]) -> None:
        """Shows where the run is; without a terminal at most every ten seconds."""
        now = time.perf_counter()
        if not self._show or now - self._last_shown < (0.1 if self._live else 10.0):
            return
        self._last_shown = now
        speed, known = self.examples_per_second(), self.speeds()
        unit = "tokens" if "tokens_per_second" in known else "examples"
        mfu = f"  {known['mfu']:.1%} MFU" if "mfu" in known else ""
        eta = f"  ETA {duration((self._total - step) * self._batch_size / speed)}" if speed else ""
        self._print(
            f"step {step}/{self._total} ({100 * step / self._total:.0f}%)  {spelled(values)}"
            f"  {known[f'{unit}_per_second']:,.0f} {unit}/s{mfu}{eta}",
            stay=not self._live,
        )

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._show:
            self._print(text, stay=True)

    def _print(self, text: str, stay: bool) -> None:
        if self._live:
            sys.stderr.write("\r" + text.ljust(self._width))
            self._width = 0 if stay else len(text)
            sys.stderr.write("\n" if stay else "")
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()
