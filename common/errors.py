"""Errors that end a program in one line with an exit code of their own, and the checks that raise
`BadInput`.

Imports nothing but the standard library, so that a model file costs no more than its layers.
"""

import difflib
from collections.abc import Iterable


class BadInput(Exception):
    """An error that the user can fix: one line, exit code 2. Line breaks, of values and of other
    libraries' messages, become spaces."""

    def __str__(self):
        return " ".join(super().__str__().splitlines())


class NotPrepared(BadInput):
    """Data or weights are not prepared yet; the message names the command that prepares them."""


class NotFinite(Exception):
    """The loss or the update of a step is NaN or infinite: exit code 1."""


class CannotWrite(Exception):
    """The file system refuses to write, full for example; the newest checkpoint is intact: exit
    code 1."""


class Preempted(Exception):
    """Told to stop, and saved; the same command resumes the run: exit code 75."""


def require(condition: bool, message: str) -> None:
    """Raises `BadInput(message)` unless `condition` holds."""
    if not condition:
        raise BadInput(message)


def brief(value: object) -> str:
    """`repr(value)` for a message: on one line, and no longer than a line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an int of more digits than Python writes; somebody's own type
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for an error message: the nearest valid name, or all of them if none is near."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name[:200], valid, n=1, cutoff=0.5)  # megabytes take seconds
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid) or 'nothing'}"


def choice(where: str, name: str, valid: Iterable[str]) -> str:
    """Returns `name` if it is one of `valid`, else raises `BadInput` with the nearest."""
    valid = tuple(valid)
    if name not in valid:
        raise BadInput(f"{where}: unknown {brief(name)}; {nearest(str(name), valid)}")
    return name
