"""Files that a user names: whatever is not a readable file, or not what it should hold, is refused
in one line that names it, before it is opened.

Opening a FIFO waits for a writer, reading a device may never end, and a folder, a dangling link or
a name that is too long each raise something else. Each reader here takes `where`, the config key or
flag that names the file, which begins the message; "" leaves it out.

Text with an accident that has one certain meaning is mended, and counted for the caller, who says
so: a `Counter` called `mended`, {accident: how often}, which `said` puts into words.
"""

import collections
import errno
import json
import os
import re
import stat
from typing import Any

from etils import epath

from common.errors import BadInput, brief, require

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
EXTRAS = {"gs": "pip install -e '.[gcs]'", "s3": "pip install s3fs"}  # that read a scheme
LONGEST = 160  # characters of a path in a message
LINE_END = re.compile(r"\r\n|\r|\n")
HALF = "lone surrogate replaced by U+FFFD"


def shown(path) -> str:
    """A path for a message: on one line, and cut in the middle if it is very long."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    text = text if text.isprintable() else repr(text)[1:-1]
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}"


def natural(name: str) -> tuple:
    """A key that sorts names with numbers by their values: a2 before a10."""
    return tuple(int(x) if i % 2 else x for i, x in enumerate(re.split("([0-9]+)", name)))


def _begun(where: str) -> str:
    return f"{where}: " if where else ""


def fault(path, kind: int = stat.S_IFREG) -> str | None:
    """Why `path` cannot be read as a file (or as a folder, if `kind` is S_IFDIR); None if it can.

    Only looks at it. A path with a scheme, such as gs://, is only asked whether it exists.
    """
    text, wanted = os.fspath(path), KINDS.get(kind, "a file")
    if "://" in text:
        return None if epath.Path(path).exists() else f"no such {wanted[2:]}: {shown(text)}"
    try:
        found = stat.S_IFMT(os.stat(text).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(text):
            return f"{shown(text)} is a link to {shown(os.readlink(text))}, which is not there"
        return f"no such {wanted[2:]}: {shown(text)}"
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        return f"{shown(text)} cannot be read: {reason(error)}"
    if found != kind:
        return f"{shown(text)} is {KINDS.get(found, 'a file')}, not {wanted}"
    needed = os.R_OK | (os.X_OK if kind == stat.S_IFDIR else 0)
    return None if os.access(text, needed) else f"{shown(text)} cannot be read: permission denied"


def present(path) -> bool:
    """Whether something has this name, if only a link that leads nowhere. What cannot even be
    looked at counts: its reader says why."""
    text = os.fspath(path)
    if "://" in text:
        return fault(path) is None
    try:
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        pass
    return True


def reason(error: BaseException) -> str:
    """An error's own words, on one line and without the path, which the message has already."""
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ELOOP:
            return "it is a symbolic link that leads back to itself"
        return os.strerror(error.errno).lower()
    text = " ".join(str(error).split())[:LONGEST]
    return text or type(error).__name__


def path(where: str, name: str) -> epath.Path:
    """The path that a user names, with "~" expanded. Raises `BadInput` if it has a scheme, such as
    gs://, that cannot be read here."""
    if "://" in name:
        require(
            not name.lower().startswith(("http://", "https://")),
            f"{_begun(where)}{shown(name)} is not a local file: fetch it, and name what was "
            "fetched",
        )
        try:
            epath.Path(name).exists()
        except Exception as error:  # no library for this scheme, or no such server
            how = EXTRAS.get(name.partition("://")[0]) if isinstance(error, ImportError) else None
            raise BadInput(
                f"{_begun(where)}{shown(name)} cannot be read: {type(error).__name__}: "
                f"{reason(error)}{f': {how}' if how else ''}"
            ) from error
    return epath.Path(name).expanduser()


def file(where: str, path):
    """Returns `path` if it is a regular file that may be read, else raises `BadInput`."""
    wrong = fault(path)
    require(wrong is None, f"{_begun(where)}{wrong}")
    return path


def folder(where: str, path, missing: bool = False):
    """Returns `path` if it is a folder that may be listed, else raises `BadInput`. With `missing`,
    it need not be there."""
    wrong = None if missing and not present(path) else fault(path, stat.S_IFDIR)
    require(wrong is None, f"{_begun(where)}{wrong}")
    return path


def contents(where: str, path) -> bytes:
    """The bytes of a file. Raises `BadInput` if it cannot be read."""
    file(where, path)
    try:
        return epath.Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{_begun(where)}{shown(path)} cannot be read: {reason(error)}") from error


def text(where: str, path) -> str:
    """The text of a file in UTF-8, without a byte order mark, and with lines that end in "\\n".
    Raises `BadInput` if it cannot be read, with the line that is not UTF-8."""
    raw = decoded(where, path, contents(where, path))
    return raw.replace("\r\n", "\n").replace("\r", "\n")


def decoded(where: str, path, data: bytes, encoding: str = "utf-8-sig") -> str:
    """The text of a file's bytes, as it is; see `text`."""
    errors = "strict" if encoding.startswith("utf-8") else "surrogatepass"
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, "replace")
        number = len(LINE_END.findall(before)) + 1
        spelled = encoding.removesuffix("-sig").upper()
        raise BadInput(
            f"{_begun(where)}{shown(path)} cannot be read: line {number} is not {spelled} "
            f"({error.reason}); convert the file to UTF-8"
        ) from error


def whole(words: str, mended: collections.Counter) -> str:
    """`words` with each half of a character (lone surrogate) replaced by U+FFFD."""
    words, count = re.subn("[\ud800-\udfff]", "\ufffd", words)
    if count:
        mended[HALF] += count
    return words


def said(mended: collections.Counter) -> str:
    """What was mended, for a message: "empty text left out (3 times)"."""
    times = lambda count: "once" if count == 1 else f"{count:,} times"
    return ", ".join(f"{what} ({times(count)})" for what, count in sorted(mended.items()))


def impostor(data: bytes) -> str | None:
    """What stands in a file in place of its contents, and what to do; None if nothing known.

    `data` is the file's first bytes, 64 at least if it has them.
    """
    if not data:
        return "an empty file: fetch it again"
    start = data[:64].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself: run `git lfs pull` in its repository"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not the file itself: fetch it again, from the link to the raw file"
    return None


# ------------------------------------------------------------------------------------------- JSON


def json_line(line: str | bytes, mended: collections.Counter | None = None) -> Any:
    """The value of a line of JSON. With `mended`, a string that is not text is mended.

    Raises:
      ValueError: if it is not JSON in UTF-8, is nested too deeply, an object has two values for
        one key, or one of its strings is not text: "\\ud83d" alone is half of a character.
    """
    try:
        line = line.decode("utf-8-sig") if isinstance(line, bytes) else line
        value = json.loads(line, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason})") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if re.search(r"\\u[dD][89a-fA-F]", line):  # only an escape can be a half
        written = json.dumps(value, ensure_ascii=False)
        half = re.search("[\ud800-\udfff]", written)
        if half is not None and mended is None:
            raise ValueError(f"\\u{ord(half[0]):x} is half of a character (a lone surrogate)")
        value = value if half is None else json.loads(whole(written, mended))
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict:
    """The object of these pairs. Raises `ValueError` if a key has two values."""
    made = dict(pairs)
    if len(made) < len(pairs):
        for key, value in pairs:
            if value != made[key]:
                raise ValueError(
                    f"its key {brief(key)} stands twice, with {_brief(value)} and "
                    f"{_brief(made[key])}"
                )
    return made


def json_object(where: str, path) -> dict:
    """The object in a JSON file. Raises `BadInput` if the file holds anything else."""
    return _json(where, path, dict)


def json_list(where: str, path) -> list:
    """The list in a JSON file. Raises `BadInput` if the file holds anything else."""
    return _json(where, path, list)


def _json(where: str, path, kind: type) -> Any:
    words = text(where, path)
    try:
        value = json_line(words)
    except ValueError as error:
        known = impostor(words[:64].encode()) if words else None
        wrong = known or f"not JSON ({reason(error)})"
        raise BadInput(f"{_begun(where)}{shown(path)}: {wrong}") from error
    wanted = {dict: "a JSON object", list: "a JSON list"}[kind]
    require(
        isinstance(value, kind),
        f"{_begun(where)}{shown(path)}: {spelled_type(value)}, not {wanted}",
    )
    return value


SPELLED = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}
MOST = 1 << 31  # sizes in a foreign file are below this
REQUIRED = object()  # the default of a key that must be there


def spelled_type(value: Any) -> str:
    """The type of a JSON value, for messages: 'a string'."""
    return SPELLED.get(type(value)) or f"of type {type(value).__name__}"


def field(config: dict, key: str, kind: type, default: Any, where: str) -> Any:
    """The value of a key of a JSON object, or `default` if it is absent; or null, where the default
    is None.

    Args:
      config: the object.
      key: the key.
      kind: dict, list, str, bool, float (at least 0; also whole numbers) or int. An int is a size:
        positive, and below 2^31.
      default: the value if the key is absent; `REQUIRED` refuses that.
      where: the file, for the error message.

    Raises:
      BadInput: if the value is of another type, or a number out of range.
    """
    value = config.get(key, default)
    require(value is not REQUIRED, f"{where}: {key} is missing")
    if value is None and default is None:
        return None
    kinds = (int, float) if kind is float else (kind,)
    require(
        type(value) in kinds,
        f"{where}: {key} is {_brief(value)}, not {SPELLED[kind]}",
    )
    if kind is int:
        require(0 < value < MOST, f"{where}: {key} = {_brief(value)} is not a positive size")
    if kind is float:
        finite = 0 <= value < 1e38
        require(finite, f"{where}: {key} = {_brief(value)} is not a number of at least 0")
    return value


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
