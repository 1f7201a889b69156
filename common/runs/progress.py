"""Progress for people: step, speed, time left, in one live line on a terminal."""

import contextlib
import math
import sys
import time
from typing import Any

from common.devices.chips import Chip


def duration(seconds: float) -> str:
    """Seconds as '3:07' or '2:03:07'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def spelled(values: dict[str, Any]) -> str:
    """'loss 0.3114  accuracy 0.9051': the numbers among `values`, named by the last part of their
    keys."""
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

    MFU is the model's own FLOPs as a fraction of the devices' peak (Chowdhery et al. 2022, appendix
    B). The peak is that of bfloat16 whatever dtype a run computes in: float32 is measured by the
    same yardstick.

    Args:
      examples_per_second: over all devices.
      flops, tokens: of one example, as in `common.task.Task`.
      chip: the kind of each device; None if unknown.
      devices: number of devices.
    """
    rates = {"examples_per_second": round(examples_per_second, 1)}
    if tokens is not None:
        rates["tokens_per_second"] = round(examples_per_second * tokens, 1)
    if flops is not None and chip is not None:
        rates["mfu"] = round(examples_per_second * flops / (chip.flops * devices), 6)
    return rates


class Progress:
    """Step, speed and time left of a run: one live line on a terminal, else an occasional
    line."""

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        step: int,
        seconds: float,
        show: bool,
        **speeds_of,
    ):
        """Starts at `step`, after `seconds` in earlier starts; `speeds_of` are keyword arguments of
        `speeds`."""
        self._total, self._batch_size, self._show = total_steps, batch_size, show
        self._speeds_of = speeds_of
        self._begun, self._before = time.perf_counter(), seconds
        self._live = show and sys.stderr.isatty()
        self._last_shown, self._width = -math.inf, 0
        self._busy, self._mark, self._steps, self._first = 0.0, None, 0, None
        self.start()

    def seconds(self) -> float:
        """Wall-clock seconds so far, including earlier starts."""
        return self._before + time.perf_counter() - self._begun

    def start(self) -> None:
        """Training starts or resumes: time from here counts towards the speed."""
        self._mark = time.perf_counter()

    def pause(self) -> None:
        """Training pauses for something else (evaluation, saving)."""
        if self._mark is not None:
            self._busy += time.perf_counter() - self._mark
            self._mark = None

    def done(self, step: int) -> None:
        """Records that `step` updates are complete. The first call, which compiles, does not count
        towards the speed."""
        if self._first is None:
            self._busy, self._mark, self._first = 0.0, time.perf_counter(), step
        self._steps = step - self._first

    def examples_per_second(self) -> float:
        """Mean training speed since this start; 0 until known."""
        running = time.perf_counter() - self._mark if self._mark is not None else 0.0
        return self._steps * self._batch_size / (self._busy + running) if self._steps else 0.0

    def speeds(self) -> dict[str, float]:
        """`speeds` at the mean training speed."""
        return speeds(self.examples_per_second(), **self._speeds_of)

    def show(self, step: int, values: dict[str, Any]) -> None:
        """Shows the progress line; without a terminal, at most every ten seconds."""
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
        """Prints a line that stays."""
        if self._show:
            self._print(text, stay=True)

    def _print(self, text: str, stay: bool) -> None:
        if self._live:
            text, self._width = "\r" + text.ljust(self._width), 0 if stay else len(text)
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the terminal is gone
            sys.stderr.write(text + ("\n" if stay or not self._live else ""))
            sys.stderr.flush()
