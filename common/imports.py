"""Modules by import path, as configs name tasks, models and evaluators, and errors in code that a
user wrote: one line with the file, the line and the error."""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import pathlib
import re
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterable, Iterator

import jax
import jax.extend.backend
from jax._src import xla_bridge  # `jax_has_started` has no public counterpart

from common.errors import BadInput, require

# What code of the user's may raise when it is imported or called; Ctrl-C passes.
ERRORS = (Exception, SystemExit)
PACKAGES = ("common", "lm", "vision", "configs", "scripts")  # the project's own
INSTALLED = {"site-packages", "dist-packages"}


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
    _require_ours(where, name)
    try:
        with _not_starting_jax():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        own = name == missing or name.startswith(f"{missing}.")
        text = f"there is no module {name!r}" if own else f"{name!r} needs the module {missing!r}"
        hint = hidden(missing, sys.path) or f"; it is not in {' or '.join(_OWN or here())} either"
        raise BadInput(f"{where}: {text}{hint}") from error
    except BadInput:
        raise
    except ERRORS as error:
        raise BadInput(f"{where}: {name!r} cannot be imported: {described(error)}") from error


def _require_ours(where: str, name: str) -> None:
    """Raises `BadInput` if an import path of the project's would lead to a package of somebody
    else's: `vision` in the current folder, for example."""
    top = name.partition(".")[0]
    if top not in PACKAGES:
        return
    root = pathlib.Path(__file__).absolute().parents[1]
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module without one, such as __main__
        return
    places = [*(spec.submodule_search_locations or ()), spec.origin] if spec else []
    place = next((text for text in places if text), None)
    ours = place is None or os.path.realpath(place) == os.path.realpath(root / top)
    require(
        ours,
        f"{where}: {name!r}: the module {top!r} is {place}, which hides the project's "
        f"{root / top}: rename that one, or start from another folder",
    )


# ----------------------------------------------------------------------------------- the user's own

_OWN: list[str] = []  # the folders of `search`, in the order of this process's calls


def search(*folders: str | os.PathLike) -> None:
    """Lets modules be imported from folders as well: those of a config and the current one. They
    come last, so that none of their modules takes the place of the project's, of an installed one
    or of the standard library's."""
    for folder in map(os.path.abspath, folders):
        if os.path.isdir(folder) and folder not in _OWN:
            _OWN.append(folder)
            importlib.invalidate_caches()
            if folder not in sys.path:
                sys.path.append(folder)


def here() -> list[str]:
    """The current folder, if it still exists."""
    try:
        return [os.getcwd()]
    except OSError:
        return []


def folders_of(names: Iterable[str]) -> list[str]:
    """The folders from which modules were imported, other than those of installed packages.

    Args:
      names: import paths, "module" or "module:Class".
    """
    found = []
    for name in (name.partition(":")[0] for name in names):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            path = pathlib.Path(file).absolute()
            folder = path.parents[name.count(".") + (path.name == "__init__.py")]
            if not INSTALLED & set(folder.parts):
                found.append(str(folder))
    return sorted(set(found))


def hidden(name: str, places: Iterable[str] = ()) -> str:
    """ "; the module X is A, which hides B: rename B" if a file of the user's has the name of a
    module that was imported from elsewhere, or whose package was; "" if none has.

    Args:
      name: an import path.
      places: folders to look in, besides those of `search`.
    """
    top = name.partition(".")[0]
    loaded = sys.modules.get(name) or sys.modules.get(top)
    origin = getattr(loaded, "__file__", None)
    if loaded is None or (origin is None and hasattr(loaded, "__path__")):
        return ""
    for folder in dict.fromkeys((*_OWN, *places)):
        path = pathlib.Path(folder, *name.split("."))
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file() and not (origin and os.path.samefile(file, origin)):
                place = origin or "built into Python"
                which = loaded.__name__
                return f"; the module {which!r} is {place}, which hides {file}: rename that one"
    return ""


def say_hidden(where: str, name: str) -> None:
    """Warns, once, if the module that a config names hides one of the user's (`hidden`)."""
    hint = hidden(name)
    if hint:
        _warn_once(f"{where}{hint.replace(';', ':', 1)}")


@functools.cache
def _warn_once(text: str) -> None:
    logging.warning("%s", text)


def own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of an error that are in code of the user's: not in the project's own packages, in
    installed ones or in the standard library."""
    root = pathlib.Path(__file__).absolute().parents[1]
    ours = *(f"{root / name}{os.sep}" for name in PACKAGES), sysconfig.get_path("stdlib"), "<"
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(ours) and not INSTALLED & set(_parts(frame.filename))
    ]


def is_own(name: str) -> bool:
    """Whether an import path is of a module of the user's."""
    return bool(name) and name.partition(".")[0] not in PACKAGES


def own_file(error: BaseException, name: str) -> str:
    """The file of the user's in which an error was raised, or that called what raised it; "" if
    there is none, or if the module `name` is the project's."""
    if name and not is_own(name):
        return ""
    files = [frame.filename for frame in own_frames(error)]
    file = getattr(sys.modules.get(name), "__file__", None)
    if file and not files:  # an installed one
        trace = traceback.extract_tb(error.__traceback__)
        files = [frame.filename for frame in trace if _same(frame.filename, file)]
    return files[-1] if files else ""


def _parts(file: str) -> tuple[str, ...]:
    return pathlib.PurePath(file).parts


def described(error: BaseException, file: str = "") -> str:
    """'FILE.py, line 3: ZeroDivisionError: division by zero', on one line.

    If a module of that name that is not the user's is the cause, it says which to rename.

    Args:
      error: as caught.
      file: the file whose line is named; "" names the innermost line.
    """
    lines = str(error).splitlines()
    kind = type(error).__name__
    what = (f"{kind}: {lines[0][:200]}" if lines else kind) + _hidden_by(error)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {kind}: {error.msg}"
    ours = "<", __file__, importlib.__file__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if (_same(frame.filename, file) if file else not frame.filename.startswith(ours))
    ]
    if not frames:
        return f"{file}: {what}" if file else what
    return f"{file or frames[-1].filename}, line {frames[-1].lineno}: {what}"


def _same(a: str, b: str) -> bool:
    return os.path.abspath(a) == os.path.abspath(b)


def _hidden_by(error: BaseException) -> str:
    """`hidden` of the module, or of a module of the package, that lacks what was imported."""
    name = member = ""
    if isinstance(error, ImportError):
        lacking = re.match(r"cannot import name '(\w+)'", str(error))
        name, member = error.name or "", lacking[1] if lacking else ""
    elif isinstance(error, AttributeError) and isinstance(error.obj, types.ModuleType):
        name, member = error.obj.__name__, error.name or ""
    if not name:
        return ""
    return hidden(name, sys.path) or (member and hidden(f"{name}.{member}", sys.path))


@contextlib.contextmanager
def explained(where: str, file: str) -> Iterator[None]:
    """Turns errors of the code in a user's `file` into `BadInput` with the file, line and error."""
    try:
        with _not_starting_jax():
            yield
    except BadInput:
        raise
    except ERRORS as error:
        raise BadInput(f"{where}: {described(error, file)}") from error


def jax_has_started() -> bool:
    """Whether jax has opened its devices: too late to divide a CPU, or to join other processes."""
    return xla_bridge.backends_are_initialized()


@contextlib.contextmanager
def _not_starting_jax() -> Iterator[None]:
    """Where the code in it is what starts jax, on a CPU, jax is not started afterwards: the run may
    still divide the CPU into devices, or join other processes. Arrays that were made stay valid."""
    fresh = not jax_has_started()
    yield
    if fresh and jax_has_started() and jax.default_backend() == "cpu":
        jax.extend.backend.clear_backends()


def file_of(cls: type) -> str:
    """The file of a class; "" if there is none."""
    return getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
