"""Folders that are made from other files when they are first needed: tokens of a corpus, pixels of
a folder of pictures.

One process at a time makes a folder, under an unfinished name, which is replaced by its own once it
is whole. A process that is killed leaves nothing that could be taken for one.
"""

import atexit
import contextlib
import fcntl
import logging
import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

from common import inputs
from common.devices import ending
from common.errors import BadInput

Opened = TypeVar("Opened")


def folder(
    path: pathlib.Path,
    load: Callable[[pathlib.Path], Opened | None],
    build: Callable[[pathlib.Path], None],
    what: str,
    *,
    elsewhere: bool = False,
) -> Opened:
    """What is in the folder `path`, which is made if it is missing or damaged.

    Args:
      path: the folder. Its name should tell all that it is made from.
      load: opens it; None if there is none, or it is damaged.
      build: writes its contents into an empty folder.
      what: what is made, for messages: "the tokens of sotu".
      elsewhere: if the folder above `path` cannot be written, makes it in a temporary folder that
        goes with the process, with a warning; otherwise that is refused.

    Raises:
      BadInput: if the folder above cannot be written, or what is in the way cannot be removed, as
        the files of another user; whatever `build` raises.
    """
    opened = load(path)
    if opened is not None:
        return opened
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        if not elsewhere:
            raise BadInput(
                f"{inputs.shown(path.parent)} cannot be written ({inputs.reason(error)}), where "
                f"{what} would be kept; set config.data.folder to a folder that can"
            ) from error
        place = tempfile.mkdtemp(prefix="touchstone-")
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        warnings.warn(
            f"{path.parent} cannot be written ({error}): {what} are kept in {place} until this "
            "process ends",
            stacklevel=3,
        )
        path = pathlib.Path(place, path.name)
    with ending.busy(f"waiting for, or making, {what}"), _locked(path):
        opened = load(path)
        if opened is None:
            if path.exists():
                logging.warning("%s is damaged; %s are made anew", path, what)
            unfinished = path.with_name(f".{path.name}.unfinished")
            for leftover in (unfinished, path):  # of a killed process; damaged
                _remove(leftover)
            unfinished.mkdir()
            try:
                build(unfinished)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            os.rename(unfinished, path)
            opened = load(path)
    return opened


def _remove(path: pathlib.Path) -> None:
    """Removes a folder, if there is one."""
    if not os.path.lexists(path):
        return
    wrong = "it is a link" if path.is_symlink() else "it is no folder" if path.is_file() else ""
    try:
        if not wrong:
            shutil.rmtree(path)
    except OSError as error:
        wrong = inputs.reason(error)
    if wrong:
        raise _in_the_way(path, wrong)


def _in_the_way(path: pathlib.Path, reason: str) -> BadInput:
    return BadInput(
        f"{inputs.shown(path)} cannot be replaced ({reason}); remove it, or set config.data.folder "
        "to another folder"
    )


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time make a folder; the lock ends with the process that holds it."""
    file = path.with_name(f".{path.name}.lock")
    if os.path.lexists(file) and (not file.is_file() or file.is_symlink()):
        raise _in_the_way(file, "it is no regular file")
    try:
        try:
            lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # of another user, who lets it be read
            lock = os.open(file, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise _in_the_way(file, inputs.reason(error)) from error
    try:
        yield
    finally:
        os.close(lock)
