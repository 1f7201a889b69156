"""The terminal, which may go away: standard error outlives its reader, and is copied to a file.

A closed terminal, a pipe whose reader has ended or a full disk behind `2> FILE` must not end a run:
`steady` wraps standard error so that what cannot be shown is left out. Each whole line also goes to
`WORKDIR/console.log`, once a run has a workdir (`copy_to`).
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator

APPENDED = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
OUTPUT = "standard output"
MOST_KEPT = 1 << 16  # characters said before there is a workdir, at most


class Steady:
    """A text stream that never raises for want of a reader; otherwise like `stream`.

    Attributes:
      said_at: time.monotonic() of the last write.
    """

    def __init__(self, stream):
        self._stream, self._line, self._said, self._copy = stream, "", "", None
        self.said_at = time.monotonic()

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        """Whether there is a terminal."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return self._stream.isatty()
        return False

    def write(self, text: str) -> int:
        """Shows a text as far as it can be shown, and copies each line that it ends."""
        self.said_at = time.monotonic()
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.write(text)
        *lines, self._line = (self._line + text).split("\n")
        # What a carriage return wrote over was not meant to stay.
        whole = "".join(line.rpartition("\r")[2].rstrip() + "\n" for line in lines)
        if self._copy is None:
            self._said = (self._said + whole)[-MOST_KEPT:]
        elif whole:
            self._to_copy(whole)
        return len(text)

    def writelines(self, lines) -> None:
        """As `write`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """As `write`."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def copy_to(self, path) -> None:
        """Appends every line to a file, beginning with those so far. A file that cannot be written
        is done without."""
        self.close()
        with contextlib.suppress(OSError):
            self._copy = os.open(path, APPENDED, 0o644)
            self._to_copy(self._said)
            self._said = ""

    def _to_copy(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._copy, text.encode(errors="backslashreplace"))

    def close(self) -> None:
        """Ends the copy; the stream stays open."""
        if self._copy is not None:
            os.close(self._copy)
        self._copy = None


class Output:
    """Standard output as `stream`; an error of it has `OUTPUT` as its file name. Nothing else tells
    it from another pipe's, or disk's: what failed to be written may have left the buffer."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text."""
        with self._named():
            return self._stream.write(text)

    def flush(self) -> None:
        """Writes what is in the buffer."""
        with self._named():
            self._stream.flush()

    @contextlib.contextmanager
    def _named(self):
        try:
            yield
        except OSError as error:
            error.filename = OUTPUT
            raise


@contextlib.contextmanager
def steady() -> Iterator[Steady]:
    """Makes standard error steady, names errors of standard output (`Output`), and makes closed
    standard descriptors harmless: a file that is opened later would get their numbers, and with
    them what libraries write to 1 and 2."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = sys.stdout and Output(sys.stdout), Steady(sys.stderr)
    try:
        yield sys.stderr
    finally:
        sys.stderr.close()
        sys.stdout, sys.stderr = before


def copy_to(path) -> None:
    """Copies what is said to a file, where standard error is steady (under `cli.exit`)."""
    if isinstance(sys.stderr, Steady):
        sys.stderr.copy_to(path)


def say(text: str) -> None:
    """Prints a line to standard error, or nothing if there is no reader."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)


def offer(text: str) -> None:
    """Prints a line to standard output, if it can be written, that is also found elsewhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text)
    if not flushed(sys.stdout):
        discard_output()


def flushed(stream) -> bool:
    """Whether everything written to a stream has left its buffer."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return False
    return True


def discard_output() -> None:
    """Sends nowhere what standard output still holds, so that Python does not try again as it
    exits."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
