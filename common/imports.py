"""Modules by import path, as configs name tasks, models and evaluators, and errors in code that a
user wrote: one line with the file, the line and the error."""

import contextlib
import importlib
import pathlib
import sys
import traceback
import types
from collections.abc import Iterator

from common.errors import BadInput, require

# What code of the user's may raise when it is imported or called; Ctrl-C passes.
ERRORS = (Exception, SystemExit)


def module(where: str, name: str, example: str) -> types.ModuleType:
    """Imports a module.

    Args:
      where: the config key, for the error message.
      name: its import path.
      example: a valid one, for the error message.

    Raises:
      BadInput: if `name` is not an import path, there is no such module, or importing it fails.
    """
    valid = isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
    require(valid, f"{where}: {name!r} is not an import path; write {example!r}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        own = name == missing or name.startswith(f"{missing}.")
        text = f"there is no module {name!r}" if own else f"{name!r} needs the module {missing!r}"
        raise BadInput(f"{where}: {text}{_hint(missing)}") from error
    except BadInput:
        raise
    except ERRORS as error:
        raise BadInput(f"{where}: {name!r} cannot be imported: {described(error)}") from error


def _hint(name: str) -> str:
    """How to make a module of the current folder importable, if `name` is one."""
    here = pathlib.Path(name.replace(".", "/"))
    present = bool(name) and (here.with_suffix(".py").is_file() or here.is_dir())
    return "; it is in this folder, so start with PYTHONPATH=." if present else ""


def described(error: BaseException, file: str = "") -> str:
    """'FILE.py, line 3: ZeroDivisionError: division by zero', on one line.

    Args:
      error: as caught.
      file: the file whose line is named; "" names the innermost line.
    """
    lines = str(error).splitlines()
    kind = type(error).__name__
    what = f"{kind}: {lines[0][:200]}" if lines else kind
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {kind}: {error.msg}"
    ours = "<", __file__, importlib.__file__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if (frame.filename == file if file else not frame.filename.startswith(ours))
    ]
    if not frames:
        return f"{file}: {what}" if file else what
    return f"{frames[-1].filename}, line {frames[-1].lineno}: {what}"


@contextlib.contextmanager
def explained(where: str, file: str) -> Iterator[None]:
    """Turns errors of the code in a user's `file` into `BadInput` with the file, line and error."""
    try:
        yield
    except BadInput:
        raise
    except ERRORS as error:
        raise BadInput(f"{where}: {described(error, file)}") from error


def file_of(cls: type) -> str:
    """The file of a class; "" if there is none."""
    return getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
