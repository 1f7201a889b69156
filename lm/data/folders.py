"""Folders of texts that a user brings, `folder:DIR`: every .txt, .text, .md and .markdown is a
document, and so is every record of a .jsonl, .ndjson, .json (an object a line), .csv, .tsv or
.parquet (see `common.data.tables`) with a string `text`; it may have a `name`. All but .parquet
also as .gz, .bz2, .xz or .zst. The files of "prose" are read in the same way.

Files of other kinds are passed over and counted, as are hidden ones, silently.
"""

import collections
import os
import re
from collections.abc import Iterable, Iterator

from etils import epath

from common import inputs
from common.data import fetch, parts, tables, textfiles
from common.errors import BadInput, NotPrepared, require

TEXTS = (".txt", ".text", ".md", ".markdown")
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
WHERE = "config.data.name"
SPLIT = "split"  # the column that names the part of a record
# Files that accompany a set, by the first word of their name.
BESIDE = ("readme", "license", "licence", "copying", "notice", "citation", "changelog")
MOST_NAMED = 3  # files or kinds of files that a note lists
HEAD_BYTES = 1 << 24  # of a .json, to see whether it is a table of texts

File = tuple[str, str, epath.Path]  # (source, path within the corpus, path)


def listed(name: str, folder: str, notes: collections.Counter | None = None) -> list[File]:
    """The files of "prose" or "folder:DIR", in order.

    Args:
      name: of the corpus.
      folder: the data folder, for "prose".
      notes: counts files of other kinds, by kind.

    Raises:
      BadInput: if there are none, or what looks like one cannot be read.
    """
    kind, _, argument = name.partition(":")
    own = argument or os.path.join(fetch.data_dir(folder), "prose")
    root = inputs.path(WHERE, own)
    if kind == "prose":
        at = f" --folder {folder}" if folder else ""
        message = f"{WHERE}: 'prose' is not in {root}; run: python scripts/prepare.py prose{at}"
        if not (root / "aws.jsonl").exists():
            raise NotPrepared(message)
    inputs.folder(WHERE, root)
    texts, others = [], []
    for path in _walk(root):
        kind, packing = textfiles.kind_of(path)
        if kind not in TEXTS + TABLES or (packing and kind == ".parquet"):
            # A link to nowhere may have been a folder of texts.
            if not kind + packing and "://" not in str(path) and os.path.islink(path):
                inputs.file(WHERE, path)
            others.append(path.name)
            continue
        inputs.file(WHERE, path)
        if kind == ".json" and not _of_texts(path):
            others.append(path.name)
            continue
        relative = path.relative_to(root)
        _check_name(path, relative.as_posix())
        if kind in TABLES:
            source = relative.name[: -len(kind + packing)]
        else:
            source = relative.parts[0] if len(relative.parts) > 1 else root.name
        texts.append((re.sub(r"\W+", "_", source) or "text", relative.as_posix(), path))
    passed = f"; passed over: {inputs.shown(min(others))}" if others else ""
    passed += f" and {len(others) - 1:,} more" if len(others) > 1 else ""
    kinds = ", ".join(TEXTS + TABLES)
    require(bool(texts), f"{WHERE}: {root} holds no text ({kinds}){passed}")
    if notes is not None and others:
        kinds = collections.Counter("".join(textfiles.kind_of(name)) for name in others)
        for number, (kind, count) in enumerate(kinds.most_common()):
            spelled = inputs.shown(kind) if kind else "without a suffix"
            spelled = spelled if number < MOST_NAMED else "of another kind"
            notes[f"file {spelled} passed over"] += count
    return sorted(texts, key=lambda entry: entry[:2])


def _check_name(path: epath.Path, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        text = f"{WHERE}: {name!r} in {path.parent}: the file's name is not UTF-8"
        raise BadInput(text) from error


def _walk(folder: epath.Path, above: tuple[str, ...] = ()) -> Iterator[epath.Path]:
    """The files below a folder; `above` are the real paths of the folders that lead to it."""
    inputs.folder(WHERE, folder)
    real = os.path.realpath(folder) if "://" not in str(folder) else str(folder)
    require(real not in above, f"{WHERE}: {folder} is a link to a folder above it")
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, (*above, real))
        else:
            yield path


def _of_texts(path: epath.Path) -> bool:
    """Whether a .json begins with an object, on one line, that has a `text`: others are settings,
    lists, notebooks."""
    with textfiles.unpacked(WHERE, path) as file:
        lines = iter(lambda: file.readline(HEAD_BYTES), b"")
        first = next((line for line in lines if line.strip()), b"")
    try:
        record = inputs.json_line(first, collections.Counter())
    except ValueError:
        return False
    return isinstance(record, dict) and "text" in record


# ------------------------------------------------------------------------------------------- parts


def told(files: Iterable[File], notes: collections.Counter) -> dict[str, str]:
    """The parts that the user made: {path within the corpus: part}, or `SPLIT` where a column of
    that name tells the part of each record, or "" for a file that is left out.

    A file is told by its name or a folder's, the outermost first (see `parts.named`), unless it has
    the column. Empty if not every file is told, but for a readme or licence beside them, or if none
    is "train" or none is held out: then a hash decides. Opens tables only.
    """
    found: dict[str, str] = {}
    values: set[str] = set()
    for _, relative, path in files:
        column = _split_column(path) if textfiles.kind_of(path)[0] in TABLES else set()
        if column is None:
            continue
        by_name = next(filter(None, map(parts.named, relative.split("/"))), "")
        found[relative] = SPLIT if column else by_name
        values |= column or ({by_name} - {""})
    others = [path for path, by in found.items() if not by and not beside(path)]
    if "train" in values and len(values) > 1 and not others:
        return found
    alike = sorted(path for path, by in found.items() if by)
    if values - {"train"}:
        first = ", ".join(map(inputs.shown, alike[:MOST_NAMED]))
        more = f" and {len(alike) - MOST_NAMED:,} more" if len(alike) > MOST_NAMED else ""
        why = f"{inputs.shown(min(others))} tells none" if others else "none is 'train'"
        notes[f"a hash decides what is held out, not the parts told by {first}{more}: {why}"] += 1
    return {}


def beside(path: str) -> bool:
    """Whether a file accompanies a set, by its name: a readme, a licence."""
    words = re.split(r"[\W_]+", path.rpartition("/")[2].casefold())
    return words[0] in BESIDE and os.path.splitext(path)[1].lower() in TEXTS


def _split_key(record: dict) -> str | None:
    """The name of the column `split`, however it is spelled."""
    return next((key for key in record if key.strip().casefold() == SPLIT), None)


def _split_of(record: dict) -> str | None:
    """The part that a record tells; None for none that is known."""
    value = record.get(_split_key(record))
    return parts.ALIASES.get(value.strip().casefold()) if isinstance(value, str) else None


def _split_column(path: epath.Path) -> set[str] | None:
    """The parts told by the column of a table; empty if there is no such column, or not every
    record tells one; None if the table holds no text."""
    found: set[str] = set()
    try:
        if not path.stat().length:
            return None
        for _, record in tables.rows(WHERE, path, collections.Counter(), _used):
            if not found and "text" not in record:
                return None
            by = _split_of(record)
            if by is None:
                return set()
            found.add(by)
    except textfiles.Empty:
        return None
    return found


# --------------------------------------------------------------------------------------- documents


def documents(
    files: Iterable[File], told: dict[str, str], notes: collections.Counter
) -> Iterator[tuple[str, str, str, str]]:
    """(name, source, text, part) of each document; the part is "train" where `told` is silent."""
    for source, relative, path in files:
        part = told.get(relative, "train")
        if not part:
            notes[f"file beside the parts left out: {inputs.shown(relative)}"] += 1
        elif textfiles.kind_of(path)[0] not in TABLES:
            yield relative, source, textfiles.read(WHERE, path, notes), part
        elif not path.stat().length:
            notes["empty file left out"] += 1
        else:
            try:
                yield from _records(source, relative, path, part, notes)
            except textfiles.Empty:
                notes["table without records left out"] += 1


def _records(
    source: str, relative: str, path: epath.Path, part: str, notes: collections.Counter
) -> Iterator[tuple[str, str, str, str]]:
    """The documents of a table; one without a name is named after its file and line."""
    kind = textfiles.kind_of(path)[0]
    delimited, silent = kind in tables.DELIMITERS, 0
    for number, record in tables.rows(WHERE, path, notes, _used):
        at = f"{WHERE}: {tables.place(path, number)}"
        if "text" not in record and kind not in tables.LINES:
            lacking = tables.lacking(path, record, "text")
            notes[f"table without a column 'text' passed over: {inputs.shown(path)}{lacking}"] += 1
            return
        require("text" in record, f"{at}, has no 'text'{tables.lacking(path, record, 'text')}")
        text, name = record["text"], record.get("name")
        name = None if delimited and not name else name
        for key, value in (("text", text), ("name", "" if name is None else name)):
            spelled = inputs.spelled_type(value)
            require(isinstance(value, str), f"{at}: {key!r} is {spelled}, not a string")
        by = _split_of(record) if part == SPLIT else part
        require(by is not None, f"{at}: 'split' names no part; was the file changed just now?")
        silent += part != SPLIT and _split_key(record) is not None
        yield f"{relative}:{number}" if name is None else name, source, text, by
    if silent:
        notes[
            f"'split' of {inputs.shown(relative)} not followed, as not all of it tells parts"
        ] += 1


def _used(names: list[str]) -> list[str]:
    """The columns of a table that are read; all, for a message, if it has no text."""
    used = [name for name in names if name.strip().casefold() in ("text", "name", SPLIT)]
    return used if "text" in names else names
