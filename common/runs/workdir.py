"""A run's files other than log and checkpoints: config.json, environment.json, result.json, and
files of its task, such as tokenizer.json.

A workdir belongs to one run. Running the same command again resumes it; placement and logging
(`MAY_CHANGE`) may then differ, and the duration may be longer. Any other change makes it another
run. While a run is alive, no second one can start there (`Lock`).

Paths in config.json are absolute (`located`). Damage to these files is repaired where nothing is
lost by it, and otherwise reported in one line.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from etils import epath

from common import inputs
from common.config import EVALUATOR_KEYS, SELECTORS, differing, flatten, from_json, to_json
from common.devices import code, runtime
from common.devices.agreement import gather, place, together
from common.errors import BadInput, require
from common.runs import files, located

MAY_CHANGE = ("mesh.", "log.", "checkpoint.", "data.workers", "runtime.", "train.duration")
# Placement and logging: changing these changes neither the run's identity nor its result.
LAID_OUT = tuple(key for key in MAY_CHANGE if key != "train.duration")
SHARED_SECONDS = 15  # in which a network file system shows one process what another has written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def _naming(folder):
    """Turns file system errors into `BadInput`, except those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise
        raise BadInput(f"--workdir: {folder}: {error.strerror or error}") from error


class Lock:
    """Keeps a second run out of a workdir while this one is alive; a context manager.

    It is a kernel lock (flock) on WORKDIR/.lock, which the kernel releases when the process ends,
    however it ends, so it is never stale. Worker processes are spawned and do not inherit it. The
    file names the holder. Entering takes the lock of an existing workdir; `hold` takes that of a
    new one. Reading a run (`saved.opened`) takes no lock.

    Object stores (gs://, s3://, …) and file systems without locks are not protected: there it is up
    to the user. With several processes, only the main one holds the lock.

    Raises:
      BadInput: in all processes, if another run holds it or the folder cannot be written.
    """

    def __init__(self, folder):
        self._folder, self._file = files.absolute(folder), None

    def __enter__(self):
        with together(), _naming(self._folder):
            if runtime.is_main() and files.can_append(self._folder):
                self._check_place()
                if (self._folder / ".lock").exists():
                    self._take()
        return self

    def __exit__(self, *_):
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def hold(self) -> None:
        """Takes the lock, if it is not held yet; the workdir must exist."""
        if runtime.is_main() and files.can_append(self._folder) and self._file is None:
            self._take()

    def _check_place(self) -> None:
        """Raises `OSError` if the workdir clearly cannot be written."""
        nearest = next(p for p in (self._folder, *self._folder.parents) if os.path.lexists(p))
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is not a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{nearest} is not writable")

    def _take(self) -> None:
        file = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(file)
            if error.errno in NO_LOCKS:
                return
            require(
                not isinstance(error, BlockingIOError),
                f"--workdir: {self._folder} is in use by {holder}; wait until that run ends, or "
                "use another --workdir",
            )
            raise
        self._file = file
        with contextlib.suppress(OSError):  # only for the error message
            words = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
            os.ftruncate(file, os.pwrite(file, words, 0))


def in_use(folder) -> bool:
    """Whether a run is alive in `folder`, as far as its file system can tell."""
    path = files.absolute(folder) / ".lock"
    if not files.can_append(path) or inputs.fault(path):
        return False
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
    return False


def begun(folder) -> bool:
    """Whether `folder` already belongs to a run."""
    try:
        return (files.absolute(folder) / "config.json").exists()
    except OSError:
        return False  # `claim` reports why


class Before(NamedTuple):
    """A workdir before a run begins.

    Attributes:
      names: what is in the folder.
      missing: the folder, and those that it is to lie in, that do not exist, the innermost first.
    """

    names: set[str]
    missing: list[epath.Path]


def before(folder) -> Before:
    """Looks at a folder that may become a workdir."""
    folder, names, missing = files.absolute(folder), set(), []
    with contextlib.suppress(OSError):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        names = {path.name for path in folder.iterdir()}
    return Before(names, missing)


def retract(folder: epath.Path, before: Before) -> None:
    """Takes away what was written for a run that is refused after all; what was there stays."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name not in before.names:
                path.rmtree() if path.is_dir() else path.unlink()
        for path in before.missing:
            path.rmdir()


def claim(
    folder,
    config: dict,
    fingerprints: dict[str, str],
    *,
    write: bool,
    read: Callable | None = None,
    lock: Lock | None = None,
    keep: dict[str, str] | None = None,
    facts: dict | None = None,
) -> epath.Path:
    """Makes `folder` the workdir of this run, or checks that it already is.

    Args:
      folder: any path that epath supports.
      config: nested dict.
      fingerprints: {data set: fingerprint}.
      write: whether this process writes.
      read: folder -> config of the run there; None is `read_config`.
      lock: the folder's lock, taken as soon as the folder exists.
      keep: {name: contents} of small files that the task keeps there, such as its tokenizer; a
        name may begin with that of a folder.
      facts: additional entries for this start in environment.json.

    Raises:
      BadInput: in all processes, if it belongs to another run, its data has changed, or it cannot
        be written.
      OSError: if the disk is full.
    """
    folder, placed = files.absolute(folder), located.settled(config)
    with together(), _naming(folder):
        require(
            begun(folder) or not any((folder / "checkpoints").glob("*")),
            f"{folder} holds checkpoints but no config.json: not a run of this program",
        )
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            if lock is not None:
                lock.hold()
        starts, begin = [], {"data": fingerprints, "config": flatten(placed)} | (facts or {})
        if begun(folder):
            check_same(folder, (read or read_config)(folder), config)
            starts = check_data(folder, fingerprints)
        if write:
            files.replace_text(folder / "environment.json", _environment(starts, begin))
            for name, contents in (keep or {}).items():
                (folder / name).parent.mkdir(exist_ok=True)
                files.replace_text(folder / name, contents)
            files.replace_text(folder / "config.json", to_json(placed))
    _check_shared(folder)
    return folder


def _check_shared(folder: epath.Path) -> None:
    """Raises `BadInput` in all processes unless each sees what the main one has just written."""
    if place()[1] == 1:
        return

    def digest() -> str:
        with contextlib.suppress(OSError):
            return hashlib.sha256((folder / "environment.json").read_bytes()).hexdigest()
        return ""

    written, end = gather(digest())[0], time.monotonic() + SHARED_SECONDS
    with together():
        while digest() != written:
            require(
                time.monotonic() < end,
                f"--workdir: process {place()[0]} does not see in {folder} what process 0 writes "
                "there: it must be one folder for all of them, on NFS or in a bucket",
            )
            time.sleep(0.2)


def _environment(starts: list[dict], begin: dict) -> str:
    start = runtime.environment(code.named(begin["config"])) | begin
    text = json.dumps([*starts, start], indent=1) + "\n"
    # The digests of the code in one line, so that the rest can be read.
    one_line = lambda block: re.sub(r"\n *", " ", block[0])
    return re.sub(r'^  "code": \{$.*?^  \}', one_line, text, flags=re.MULTILINE | re.DOTALL)


def load_json(path: epath.Path):
    """The contents of a JSON file; None if they are damaged."""
    try:
        return json.loads(inputs.contents("", path).decode())
    except (ValueError, RecursionError):  # not JSON, or not even text
        return None


def _is_start(start) -> bool:
    kinds = {"data": dict, "config": dict, "code": dict, "versions": dict}
    return isinstance(start, dict) and all(
        isinstance(start.get(key, {} if key != "data" else None), kind)
        for key, kind in kinds.items()
    )


def read_starts(folder) -> list[dict]:
    """environment.json: one record per start of the run. Raises `BadInput` if it is damaged."""
    path = epath.Path(folder) / "environment.json"
    if not path.exists():
        logging.warning("%s is missing: cannot compare the data with that of earlier starts", path)
        return []
    starts = load_json(path)
    valid = isinstance(starts, list) and bool(starts) and all(map(_is_start, starts))
    require(
        valid,
        f"{path} is damaged; delete it to resume without comparing the data with earlier starts",
    )
    return starts


def last_start(folder) -> dict:
    """What environment.json records of the run's last start; {} if it cannot be read."""
    path = epath.Path(folder) / "environment.json"
    starts = load_json(path) if inputs.fault(path) is None else None
    last = starts[-1] if isinstance(starts, list) and starts else None
    return last if isinstance(last, dict) else {}


def import_folders(folder) -> list[str]:
    """The folders from which the run's last start imported the user's own modules."""
    known = last_start(folder).get("folders")
    return [x for x in known if isinstance(x, str)] if isinstance(known, list) else []


def check_data(folder, fingerprints: dict[str, str]) -> list[dict]:
    """Checks that data sets are those of the run in `folder`.

    Args:
      folder: the workdir.
      fingerprints: {data set: fingerprint}.

    Returns:
      The earlier starts in environment.json.

    Raises:
      BadInput: if a set has changed, or environment.json is damaged.
    """
    starts = read_starts(folder)
    before = starts[-1]["data"] if starts else {}
    changed = sorted(n for n, digest in fingerprints.items() if before.get(n, digest) != digest)
    name = starts[-1].get("config", {}).get("data.name") if starts else None
    of_data = name is not None and any(map(_is_set, changed))
    known = f" (config.data.name was {name!r})" if of_data else ""
    require(
        not changed,
        f"{folder}: {', '.join(map(called, changed))} has changed since the run began{known}; "
        f"restore it, or start another run in another --workdir{_way_on(folder)}",
    )
    return starts


def called(name: str) -> str:
    """What people call something with a fingerprint: "the data set train", "the teacher"."""
    return f"the data set {name}" if _is_set(name) else name


def _is_set(name: str) -> bool:
    return not name.startswith("the ")


def identity(config: dict, fingerprints: dict[str, str]) -> dict:
    """What tells a run from others: {key: value} of its config and its data."""
    sets = {called(name): digest for name, digest in fingerprints.items()}
    return {f"config.{key}": value for key, value in _lasting(config).items()} | sets


def check_same(folder, old: dict, new: dict) -> None:
    """Raises `BadInput` if the configs describe different runs, with the keys that were changed."""
    # `located.unplaced` gives names of its own: "data.name (its kind)".
    keys = {key.partition(" (")[0] for key in differing(_lasting(old), _lasting(new))}
    values, names, changes = differing(old, new), (flatten(old), flatten(new)), {}
    for key in sorted(key for key in keys if not _follows(key, keys)):
        name = ".".join(key.split(".")[:2])
        there = [any(k.startswith(f"{name}.") for k in flat) for flat in names]
        if name.startswith("evals.") and not all(there):
            changes[name] = "is gone" if there[0] else "is new"
        else:
            was, now = values.get(key, ("another", "another"))
            changes[key] = f"was {was} and is {now}"
    said = ", ".join(f"config.{key} {changes[key]}" for key in list(changes)[:4])
    more = f" and {len(changes) - 4} more" if len(changes) > 4 else ""
    way = "" if keys & {"task", "init.path"} else _way_on(folder)
    if flatten(new).get("init.path") and all(key.startswith("model.") for key in keys):
        way += "; fields that it took from config.init.path come with --config.init.adopt=true"
    require(not keys, f"{folder} belongs to another run: {said}{more}; use another --workdir{way}")


def _follows(key: str, changed: set[str]) -> bool:
    """Whether a key differs because another does, as fields of a model follow from its module."""
    section, _, last = key.rpartition(".")
    governed = {"task": ""} | {name: f"{of}." for name, of in SELECTORS.items()}
    if key.startswith("evals.") and last not in EVALUATOR_KEYS:
        governed[f"{section}.kind"] = f"{section}."
    return any(
        selector in changed and key != selector and key.startswith(of)
        for selector, of in governed.items()
    )


def _way_on(folder) -> str:
    """How to begin another run with the weights of the one in `folder`, if there are some."""
    with contextlib.suppress(OSError):
        if any((files.absolute(folder) / "checkpoints").iterdir()):
            return f"; to begin it with this one's weights, add --config.init.path={folder}"
    return ""


def _lasting(config: dict) -> dict:
    """The keys of a config that tell its run from others, flat; of its data the fingerprints do."""
    flat = located.unplaced(flatten(config))
    return {k: v for k, v in flat.items() if not k.startswith(MAY_CHANGE)}


def read_config(folder) -> dict:
    """A run's config.json as a nested dict, exactly as written. Raises `BadInput` if it is missing
    or damaged."""
    path = epath.Path(folder) / "config.json"
    require(path.exists(), f"{folder}: no run there (no config.json)")
    try:
        config = from_json(inputs.contents("", path).decode())
    except (ValueError, RecursionError) as error:  # not JSON, or not even text
        raise BadInput(f"{path} is damaged: {error}") from error
    require(isinstance(config, dict), f"{path} is damaged: it holds no config")
    return config


def read_result(folder: epath.Path) -> dict | None:
    """result.json; None if the run is unfinished, or, with a warning, if the file is damaged."""
    result = load_result(folder)
    if result is None and (folder / "result.json").exists():
        logging.warning("%s is damaged: the run counts as unfinished", folder / "result.json")
    return result


def load_result(folder: epath.Path) -> dict | None:
    """result.json; None if it is missing or damaged."""
    path = folder / "result.json"
    result = load_json(path) if path.exists() else None
    valid = isinstance(result, dict) and isinstance(result.get("steps"), int)
    return result if valid else None


def finish(folder: epath.Path, result: dict) -> None:
    """Writes result.json: the run is finished."""
    files.replace_text(folder / "result.json", json.dumps(result, indent=1, sort_keys=True) + "\n")
