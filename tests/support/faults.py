"""What every fault must come to: a documented exit code, few lines, and no trace of what a refusal
had begun to write."""

import os
import pathlib
import re

from helpers import exit_code

CODES = (0, 1, 2, 6, 75, 130, 143)  # scripts/README.md says what they mean
MOST_LINES = 3


def refused(capsys, script: str, *words: str, says: str, code: int = 2) -> str:
    """Runs a script in this process; it must refuse in one line that matches `says`.

    Args:
      capsys: pytest's.
      script: the name of a file in scripts/.
      words: its arguments.
      says: a regular expression that is to be found in the line.
      code: the exit code.

    Returns:
      The line.
    """
    capsys.readouterr()
    got = exit_code(script, *words)
    said = capsys.readouterr().err.strip()
    assert got == code, f"exit code {got}, not {code}: {said[-2000:]}"
    assert len(said.splitlines()) == 1, f"more than one line: {said[-2000:]}"
    assert re.search(says, said), f"{said!r} does not say {says!r}"
    return said


def contents(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """{path: (size, time of change)} of everything below a folder, to see what was written."""
    found = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        stat = os.lstat(path)
        found[str(path.relative_to(folder))] = stat.st_size, stat.st_mtime_ns
    return found
