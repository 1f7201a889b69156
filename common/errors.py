"""`BadInput`, for whatever a user can mend, and the checks that raise it.

Imports nothing but the standard library, so that a model file costs no more than its layers.
"""

import difflib
from collections.abc import Iterable


class BadInput(Exception):
    """Something that the user can mend. The message is one line; scripts end with exit code 2."""


def require(condition: bool, message: str) -> None:
    """Raises `BadInput(message)` unless `condition` holds."""
    if not condition:
        raise BadInput(message)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for an error message: the nearest valid name, or all of them when none is near."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid) or 'nothing'}"


def choice(where: str, name: str, valid: Iterable[str]) -> str:
    """Returns `name` if it is one of `valid`; raises `BadInput` with the nearest one if not."""
    valid = tuple(valid)
    require(name in valid, f"{where}: unknown {name!r}; {nearest(name, valid)}")
    return name
