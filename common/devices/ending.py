"""How a program says what it waits for, and how it ends when it is told to.

SIGTERM and Ctrl-C end a program at once (`Ended`), except where it polls for them, to save first
(`Preemption`) or to end its children (`Told`). Python notices a signal only between two of its own
instructions, which a compiler or an allocation may keep it from for minutes. So a thread watches
the main one (`guarded`): it ends a program that was told to end and does not within its `grace`,
and says what takes long (`busy`).

Exit codes: 75 (`PREEMPTED`) if the same command goes on from something saved, otherwise those of a
shell: 143 after SIGTERM, 130 after Ctrl-C.
"""

import contextlib
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from common.devices.terminal import Steady, say

PREEMPTED = 75  # EX_TEMPFAIL: run the same command again
TOLD = PREEMPTED, 128 + signal.SIGTERM, 128 + signal.SIGINT  # exit codes of what was told to end
SILENCE_SECONDS = 12  # what takes longer says so
GRACE_SECONDS = 8.0  # from a signal to the end, where nothing is being saved
MOST_GRACE_SECONDS = 60.0  # where a step or an evaluation is known to take long
SIGNALS = signal.SIGTERM, signal.SIGINT


class Ended(BaseException):
    """Told to end: raised in the main thread, wherever it is. Its argument is the signal."""


class _Watch:
    """What the watching thread knows.

    Attributes:
      tasks: [[what the main thread does, since when], …], the innermost last; None while it waits.
      told: the last signal that asked the program to end, and when it first came.
      grace: seconds that it is given to end by itself; infinite while something is saved.
      polls: whether the program polls for signals, to save first.
      kept: the step of the checkpoint that the same command goes on from; None is none.
      hurry: whether Ctrl-C came twice: nothing is saved.
      forward: hands SIGTERM to jax, which tells the run's other processes; None if there are none.
      last_words: called with the exit code and the reason before the thread ends the program.
    """

    def __init__(self):
        self.forward: Callable[[int], None] | None = None
        self.last_words: Callable[[int, str], None] = lambda code, text: None
        self.reset()

    def reset(self) -> None:
        self.tasks: list[list] = []
        self.told, self.told_at = None, math.inf
        self.grace, self.polls = GRACE_SECONDS, False
        self.kept: int | None = None
        self.hurry = False

    def run(self, wake: socket.socket) -> None:
        """The thread: returns when `wake` is closed at its other end."""
        told, silence, last_task = False, SILENCE_SECONDS, None
        while True:
            if select.select([wake], [], [], 0.25)[0]:
                numbers = wake.recv(64)
                if not numbers:
                    return
                for number in set(numbers) & set(SIGNALS):
                    self.notice(number)
            now, task = time.monotonic(), self.tasks[-1] if self.tasks else None
            if now > self.told_at + self.grace:
                self.end()
            if task is not last_task or told != (self.told is not None):
                told, last_task = self.told is not None, task
                silence = 3.0 if told and self.grace == math.inf else SILENCE_SECONDS
            said_at = sys.stderr.said_at if isinstance(sys.stderr, Steady) else now
            if task is not None and now - max(said_at, task[1]) > silence:
                what = task[0]() if callable(task[0]) else task[0]
                say(f"{what} ({now - task[1]:.0f} s so far)")
                silence = min(2 * silence, 300.0) if not told else silence

    def notice(self, number: int) -> None:
        now = time.monotonic()
        if self.told is None:
            self.told_at = now
        elif number == signal.SIGINT:
            self.told_at, self.grace, self.hurry = now, 1.0, True
        self.told = number
        if self.forward is not None and self.polls:
            self.forward(int(signal.SIGTERM))

    def end(self) -> None:
        """Ends the program from this thread."""
        code, text = outcome(self.told)
        what = self.tasks[-1][0] if self.tasks and self.tasks[-1] else "the program"
        what = what() if callable(what) else what
        say(f"{text} ({what} did not end in {self.grace:.0f} s)")
        self.last_words(code, text)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)


_WATCH = _Watch()


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Watches the main thread, as said above, and turns signals into `Ended`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _WATCH.reset()
    wake, write = socket.socketpair()
    write.setblocking(False)
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    old_wake = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_WATCH.run, args=(wake,), daemon=True)
    thread.start()
    try:
        with busy("working"):
            yield
    finally:
        signal.set_wakeup_fd(old_wake)
        for number, handler in before.items():
            signal.signal(number, handler)
        write.close()
        thread.join()
        wake.close()


def _interrupt(number, _frame):
    raise Ended(number)


def _interrupt_now(number, _frame):
    _WATCH.hurry = True
    raise KeyboardInterrupt


@contextlib.contextmanager
def busy(what: str | Callable[[], str]) -> Iterator[None]:
    """Names what the main thread does in the body, should it take long: a text, or a function that
    makes one."""
    _WATCH.tasks.append([what, time.monotonic()])
    try:
        yield
    finally:
        _WATCH.tasks.pop()


@contextlib.contextmanager
def idle() -> Iterator[None]:
    """The body waits for others, as long as they like: nothing is said of it."""
    _WATCH.tasks.append(None)
    try:
        yield
    finally:
        _WATCH.tasks.pop()


def now_busy(what: str | Callable[[], str]) -> None:
    """Names what the main thread does next within the innermost `busy`."""
    if _WATCH.tasks:
        _WATCH.tasks[-1] = [what, time.monotonic()]


@contextlib.contextmanager
def grace(seconds: float) -> Iterator[None]:
    """Gives the body so many seconds to end once the program is told to. They are not of those that
    the program has around it, which add up: one that saves again and again, and never ends, is
    ended."""
    before, _WATCH.grace = _WATCH.grace, seconds
    begun = time.monotonic()
    try:
        yield
    finally:
        _WATCH.grace = before
        if _WATCH.told is not None:
            _WATCH.told_at += time.monotonic() - max(begun, _WATCH.told_at)


def allow(longest: float) -> None:
    """Gives the program time for one more unit of its work when it is told to end.

    Args:
      longest: seconds that such a unit took: a step, an evaluation.
    """
    _WATCH.grace = min(max(GRACE_SECONDS, 2.5 * longest), MOST_GRACE_SECONDS)


def keeps(step: int) -> None:
    """Notes that the same command goes on from the checkpoint of a step: it then ends with 75."""
    _WATCH.kept = step


def outcome(number: int) -> tuple[int, str]:
    """(exit code, reason) of a program that a signal ends."""
    if _WATCH.hurry:
        return 128 + int(signal.SIGINT), "interrupted; what was saved before is kept"
    if _WATCH.kept is not None:
        kept = f"the checkpoint of step {_WATCH.kept} is kept"
        return PREEMPTED, f"told to end: {kept}; run the same command again to resume"
    how = "interrupted" if number == signal.SIGINT else "told to end"
    return 128 + int(number), f"{how}, with nothing to resume from; run the same command again"


class Told:
    """Records a request to stop: SIGTERM or SIGINT, for a program that polls for it.

    SIGTERM may arrive repeatedly, as it does when one parent after another exits (prctl(2),
    PR_SET_PDEATHSIG); a second SIGINT interrupts. Use as a context manager, which restores the old
    handlers on exit.

    Attributes:
      signal: the last signal received, or None.
    """

    _grace = math.inf  # children are waited for, and have a grace of their own

    def __init__(self):
        self.signal: int | None = None
        self._old: dict = {}
        self._cleanup = contextlib.ExitStack()

    def __enter__(self):
        for number in SIGNALS:
            with contextlib.suppress(ValueError):  # not the main thread: leave signals alone
                self._old[number] = signal.signal(number, self._notice)
        self._cleanup.enter_context(grace(self._grace))
        return self

    def __exit__(self, *_):
        self._cleanup.close()
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _notice(self, number, _frame):
        self.signal = number
        if number == signal.SIGINT:
            signal.signal(number, _interrupt_now)


class Preemption(Told):
    """`Told`, polled between steps. With several processes jax notifies all of them."""

    _grace = GRACE_SECONDS

    def __init__(self):
        super().__init__()
        self._polls, self._raises = 0, False

    def __enter__(self):
        _WATCH.polls = True
        return super().__enter__()

    def __exit__(self, *error):
        _WATCH.polls = False
        super().__exit__(*error)

    def _notice(self, number, frame):
        super()._notice(number, frame)
        if _WATCH.forward is not None:
            _WATCH.forward(int(signal.SIGTERM))
        elif self._raises:
            raise Ended(number)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Lets a signal interrupt the body with `Ended`: work that can be done again, such as an
        evaluation. With several processes it does not: all of them must go the same way."""
        self._raises = _WATCH.forward is None
        try:
            if self._raises and self.signal is not None:
                raise Ended(self.signal)
            yield
        finally:
            self._raises = False

    def noticed(self) -> bool:
        """Whether to save and exit now. With several processes, the n-th call returns the same
        answer in all of them."""
        self._polls += 1
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(self._polls)
        return self.signal is not None


def of_several(forward: Callable[[int], None], last_words: Callable[[int, str], None]) -> None:
    """Makes a signal to this process known to the run's other processes.

    Args:
      forward: hands a signal to jax, which tells the others, who then save together.
      last_words: tells them the exit code and the reason when this one ends alone.
    """
    _WATCH.forward, _WATCH.last_words = forward, last_words
