"""The lines of a run's log as they stand in its files: read, put to the test, and mended.

A log is metrics.jsonl, or, where files cannot be appended to, numbered parts in `metrics/`. Nothing
here takes what it cannot read for the end of a log: damage is named by file and line number, and
what is removed is kept in a copy.
"""

import codecs
import itertools
import json
import logging
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from common import inputs
from common.errors import require
from common.runs import files

NAME = "metrics.jsonl"
PART = re.compile(r"part_(\d+)\.jsonl")


class Entry(NamedTuple):
    """A line of a log, as it stands in its file.

    Attributes:
      file: metrics.jsonl, or a part.
      number: of the line in that file, from 1.
      text: without the end of the line.
      line: its contents; None if they cannot be read.
      damage: what is wrong with it; "" if it is intact.
    """

    file: epath.Path
    number: int
    text: bytes
    line: dict | None
    damage: str


def log_files(workdir: epath.PathLike) -> list[epath.Path]:
    """The files of a run's log, in order. A log that came from a disk to an object store goes on in
    parts; on a disk, parts count only as long as there is no metrics.jsonl."""
    workdir = epath.Path(workdir)
    one = [workdir / NAME] if (workdir / NAME).exists() else []
    return one if one and files.can_append(workdir) else one + _parts(workdir)


def _parts(workdir: epath.Path) -> list[epath.Path]:
    folder = workdir / "metrics"
    found = folder.glob("part_*.jsonl") if folder.exists() else ()
    return sorted((part for part in found if PART.fullmatch(part.name)), key=part_number)


def part_number(part: epath.Path) -> int:
    return int(PART.fullmatch(part.name)[1])


def parse(file: epath.Path, raw: bytes) -> tuple[list[Entry], list[str]]:
    """(the lines of a file, what else stands there that may go).

    Blank lines, a byte order mark, and the line ends of Windows may go: some editors add them.
    Lines end at line feeds alone, as JSON may hold U+2028 and the like.
    """
    extras = []
    if raw.startswith(codecs.BOM_UTF8):
        extras.append("a byte order mark")
        raw = raw.removeprefix(codecs.BOM_UTF8)
    texts = raw.removesuffix(b"\n").split(b"\n") if raw else []
    entries = []
    for number, text in enumerate(texts, 1):
        if text.strip():
            line, damage = _parse_line(text)
            entries.append(Entry(file, number, text.removesuffix(b"\r"), line, damage))
    blank, windows = len(texts) - len(entries), sum(text.endswith(b"\r") for text in texts)
    extras += [f"{blank} blank line{'s'[: blank > 1]}"] if blank else []
    extras += ["carriage returns"] if windows else []
    return entries, extras


def _parse_line(text: bytes) -> tuple[dict | None, str]:
    """(contents, ""), or (None, what is wrong with it)."""
    try:
        line = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError:
        utf16 = text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return None, "it is UTF-16; save it as UTF-8" if utf16 else "it is not text in UTF-8"
    except (ValueError, RecursionError):
        return None, "it holds NUL bytes" if b"\0" in text else "it is not a JSON object"
    if not isinstance(line, dict):
        return None, "it is not a JSON object"
    if type(line.get("step")) is not int or line["step"] < 0:
        return None, "it has no step"
    clock = [value for key, value in line.items() if key.startswith("time/")]
    if not all(value is None or isinstance(value, int | float) for value in clock):
        return None, "a time is not a number"
    if not isinstance(line.get("digests", {}), dict):
        return None, "its digests are no object"
    return line, ""


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, with those damaged that come too late in the log or repeat an earlier one."""
    checked: list[Entry] = []
    step, seen = 0, {}  # values of this step: {key: line number}
    for entry in entries:
        line, damage = entry.line, ""
        if line is not None and line["step"] < step:
            damage = f"step {line['step']} comes after step {step}"
        elif line is not None:
            if line["step"] > step:
                step, seen = line["step"], {}
            keys = [key for key in line if key.startswith(("train/", "eval/"))]
            again = [seen[key] for key in keys if key in seen]
            damage = f"it repeats line {again[0]}, step {step}" if again else ""
            seen |= dict.fromkeys(keys, entry.number)
        checked.append(entry._replace(damage=damage) if damage else entry)
    return checked


def entries_of(workdir: epath.PathLike) -> tuple[list[Entry], dict[str, list[str]]]:
    """(every line of a run's log, {file: what else stands there that may go}): see `parse` and
    `in_order`. Raises `BadInput` if a file cannot be read."""
    entries, extras = [], {}
    for file in log_files(workdir):
        own, more = parse(file, inputs.contents("", file))
        entries += own
        extras |= {os.fspath(file): more} if more else {}
    return in_order(entries), extras


def intact(entries: Sequence[Entry]) -> list[Entry]:
    """The lines before the first damaged one."""
    return list(itertools.takewhile(lambda entry: not entry.damage, entries))


def readable(workdir: epath.PathLike) -> list[Entry]:
    """The lines of a run's log, without one at the end that a crash cut off.

    Raises:
      BadInput: for damage before the end.
    """
    entries, _ = entries_of(workdir)
    whole = intact(entries)
    rest = entries[len(whole) :]
    for entry in rest[:1]:
        torn = len(rest) == 1 and entry.line is None and bool(whole)
        require(torn, f"{entry.file} is damaged at line {entry.number}: {entry.damage}")
    return whole


# ----------------------------------------------------------------------------------------- mending


def rewrite(file: epath.Path, entries: Sequence[Entry]) -> None:
    """Makes these lines, as they stand, the contents of a file, atomically."""
    files.replace_text(file, b"".join(entry.text + b"\n" for entry in entries).decode())


def mend(workdir: epath.PathLike) -> None:
    """Removes what is no line, and everything from the first damaged line on. Each file is kept as
    it was under another name, with a warning."""
    entries, extras = entries_of(workdir)
    whole = intact(entries)
    for entry in entries[len(whole) :][:1]:
        extras.setdefault(os.fspath(entry.file), []).append(
            f"everything from line {entry.number} on ({entry.damage})"
        )
    for file in log_files(workdir):
        own = [entry for entry in whole if os.fspath(entry.file) == os.fspath(file)]
        behind = len(own) < sum(os.fspath(entry.file) == os.fspath(file) for entry in entries)
        if os.fspath(file) in extras or behind:
            removed = ", ".join(extras.get(os.fspath(file), ["everything"]))
            logging.warning("%s: removed %s; the file as it was is %s", file, removed, keep(file))
            rewrite(file, own)


def keep(file: epath.Path) -> str:
    """Copies a file to FILE.before-mending, or -2 and so on; the name of the copy."""
    raw, folder = file.read_bytes(), file.parent
    stem = f"{file.name}.before-mending"
    names = itertools.chain([stem], (f"{stem}-{k}" for k in itertools.count(2)))
    name = next(name for name in names if not (folder / name).exists())
    (folder / name).write_bytes(raw)
    return name
