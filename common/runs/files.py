"""Paths and small files of a workdir, on local disks and on object stores alike.

Object stores (gs://, s3://, …) support neither appending nor renaming nor locks; the consequences
are handled here.
"""

import contextlib
import os
import re

from etils import epath


def absolute(folder: epath.PathLike) -> epath.Path:
    """A workdir as Orbax needs it: absolute, or with its scheme."""
    folder = epath.Path(folder)
    return folder if "://" in str(folder) else folder.expanduser().absolute()


def error_number(error: BaseException | None) -> int | None:
    """The errno behind an exception, including one in a message of TensorStore's; else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        matched = re.search(r"os_error_code='(\d+)'", str(error))
        if matched:
            return int(matched[1])
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def refusals(folder):
    """Turns file system errors into an `OSError`, whichever library raised them."""
    try:
        yield
    except Exception as error:
        number = error_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(folder)) from error


def can_append(path: epath.Path) -> bool:
    """Whether files at `path` can be appended to; not on object stores (gs://, s3://, …)."""
    return "://" not in os.fspath(path)


def replace_text(path: epath.Path, text: str) -> None:
    """Replaces a file atomically: a reader, or a crash, sees the old one or the new one."""
    if not can_append(path):
        path.write_text(text)  # an object is replaced atomically
        return
    temporary = path.parent / f".{path.name}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
