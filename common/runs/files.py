"""Paths and small files of a workdir, on local disks and on object stores alike.

Object stores (gs://, s3://, …) know no appending, no renaming and no locks: what follows from that
is decided here.
"""

import contextlib
import os
import re

from etils import epath


def absolute(folder: epath.PathLike) -> epath.Path:
    """A workdir as Orbax wants it: absolute, or with its scheme."""
    folder = epath.Path(folder)
    return folder if "://" in str(folder) else folder.expanduser().absolute()


def error_number(error: BaseException | None) -> int | None:
    """The errno behind an exception, also where TensorStore spells it in a message; else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        spelled = re.search(r"os_error_code='(\d+)'", str(error))
        if spelled:
            return int(spelled[1])
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def refusals(folder):
    """What the file system refuses is raised as one `OSError`, whatever library ran into it."""
    try:
        yield
    except Exception as error:
        number = error_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(folder)) from error


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
