"""Token stores: a corpus as one array of token ids on disk, built once and then memory-mapped.

A store is a folder in `tokens/` of the data folder, named after the corpus and a hash of all that
it was made from: the files' sizes and times, the tokenizer's settings, the format. It holds

    tokenizer.json   the tokenizer; beside it special_tokens_map.json, if it names its tokens' roles
    tokens.npy       u16[T] or u32[T]: the documents, concatenated
    documents.npy    i64[D + 1]: the start of each document, and T
    sentences.npy    i64[S]: the start of each sentence
    counts.npy       i64[V]: the count of each token in the training documents
    names.json       the names of the documents
    index.json       {split: [first document, last + 1]}, the sha256 of each file above, and notes:
                     what was repaired, left out or moved, and which texts are held out in vain
    *.checked        when a file too large to be read at each start was last found whole

Documents are ordered train, valid, test, and by source within each, so that every split is one
range of tokens. A document is its tokens between `document_begin` and `end` of the tokenizer's
facts: its tokens and [SEP] for BERT's, whose [CLS] belongs to a row; <|endoftext|>, its tokens and
<|endoftext|> for GPT-2's; `<s>`, its tokens and `</s>` for Llama's.

Text that spells a structural token, such as [SEP] or <|endoftext|>, is plain text, so that
documents end, and words are masked, only where the task says so. Other tokens that were added to
a tokenizer, special or not, are one token, as the tokenizer has it.
"""

import array
import collections
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from common import inputs
from common.data import fetch, made
from common.errors import BadInput, require
from lm.data import corpora, tokenizer

VERSION = 1
LOADED = 2  # the version of stores whose tokenizer was loaded
BATCH = 1 << 20  # characters tokenised at a time
CHECKED_BYTES = 1 << 30  # larger files are checked against their sha256 once, until they change
TALK_BYTES = 30_000_000  # larger corpora show their progress on a terminal
ARRAYS = ("tokens", "documents", "sentences", "counts")

# The end of a sentence: a full stop or the like before white space and a possible start of a
# sentence, but not after an initial or a title; or the end of a paragraph. White space belongs to
# the sentence after it, as in tokenizers.
SENTENCE = re.compile(
    r"(?<![\s.][A-Z]\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bNo\.)"
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]]))(?=\s+[\"'“‘(\[]*[A-Z0-9])"
    r"|(?<=\S)(?=[^\S\n]*\n[^\S\n]*\n)"
)


class Store(NamedTuple):
    """An open store, as described above. `splits`: {split: (first document, last + 1)}. `notes`:
    what a run that reads it should say."""

    path: str
    tokenizer: Tokenizer
    tokens: np.ndarray
    documents: np.ndarray
    sentences: np.ndarray
    counts: np.ndarray
    splits: dict[str, tuple[int, int]]
    digest: str
    notes: tuple[str, ...] = ()


def sentences(text: str) -> list[str]:
    """The sentences of a text; their concatenation is the text."""
    cuts = [0, *(match.start() for match in SENTENCE.finditer(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(cuts) if a < b]


def get(name: str, kind: str | Tokenizer, vocab_size: int, folder: str = "") -> Store:
    """The store of a corpus, built if it is missing or damaged or the corpus has changed.

    Args:
      name: of the corpus, as in `lm.data.corpora`.
      kind: "wordpiece" or "bpe", trained on the documents of "train"; or a tokenizer.
      vocab_size: of a trained tokenizer.
      folder: the data folder.

    Raises:
      BadInput: if the corpus does not exist, or has nothing to train on.
    """
    trained = isinstance(kind, str)
    settings = [kind, vocab_size] if trained else [LOADED, tokenizer.files(kind)]
    made_from = [VERSION, corpora.stamp(name, folder), settings]
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    stem = re.sub(r"\W+", "_", name).strip("_")[-40:]
    path = pathlib.Path(fetch.data_dir(folder), "tokens", f"{stem}-{key}")
    build = lambda into: _build(into, name, kind, vocab_size, folder)
    return made.folder(path, _open, build, f"the tokens of {name}", elsewhere=True)


def _open(path: pathlib.Path) -> Store | None:
    """The store at `path`, or None if there is none or it is damaged."""
    try:
        index = json.loads((path / "index.json").read_text())
        for file, (size, sha256) in index["files"].items():
            if os.path.getsize(path / file) != size or not _is_whole(path / file, sha256):
                return None
        if "notes" not in index and any(a == b for a, b in map(index["splits"].get, corpora.PARTS)):
            return None  # an older version left parts empty
        arrays = {key: np.load(path / f"{key}.npy", mmap_mode="r") for key in ARRAYS}
        return Store(
            path=str(path),
            tokenizer=tokenizer.load(path),
            splits={split: tuple(at) for split, at in index["splits"].items()},
            digest=index["digest"],
            notes=tuple(index.get("notes", ())),
            **arrays,
        )
    except (BadInput, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_whole(file: pathlib.Path, sha256: str) -> bool:
    """Whether a file has its sha256. For a large one the answer stands beside it, with its size and
    time of change, so that it is read in full only when it is new or has been changed."""
    status = file.stat()
    if status.st_size < CHECKED_BYTES:
        return fetch.sha256(file) == sha256
    note = file.with_name(f"{file.name}.checked")
    stamp = f"{sha256} {status.st_size} {status.st_mtime_ns}\n"
    with contextlib.suppress(OSError, ValueError):
        if note.read_text() == stamp:
            return True
    if fetch.sha256(file) != sha256:
        return False
    with contextlib.suppress(OSError):  # a folder that cannot be written: checked every time
        temporary = note.with_name(f".{note.name}.{os.getpid()}")
        temporary.write_text(stamp)
        os.replace(temporary, note)
    return True


# ---------------------------------------------------------------------------------------- building


class _TrainingTexts:
    """The texts of the training documents; may be iterated more than once."""

    def __init__(self, name: str, folder: str):
        self.name, self.folder = name, folder

    def __iter__(self):
        for document in corpora.documents(self.name, self.folder):
            if document.part == "train":
                yield document.text


class _Part:
    """One part under construction: its metadata; its tokens go to a file."""

    def __init__(self, path: pathlib.Path):
        self.path, self.file = path, path.open("wb")
        self.names, self.sources, self.ends, self.sentences = [], [], [0], []
        self.texts = array.array("Q")  # a hash of each text

    def add(self, document: corpora.Document, pieces: list[list[int]], prefix, suffix, dtype):
        """Appends a document, unless it has no token. Returns whether it has."""
        ids = [*prefix, *itertools.chain.from_iterable(pieces), *suffix]
        start = self.ends[-1] + len(prefix)
        starts = itertools.accumulate((len(piece) for piece in pieces[:-1]), initial=start)
        nonempty = [at for at, piece in zip(starts, pieces, strict=True) if piece]
        if not nonempty:
            return False  # only white space
        self.sentences.extend(nonempty)
        self.ends.append(self.ends[-1] + len(ids))
        self.names.append(document.name)
        self.sources.append(document.source)
        self.texts.append(
            int.from_bytes(hashlib.sha256(document.text.encode()).digest()[:8], "big")
        )
        np.array(ids, dtype).tofile(self.file)
        return True


def dtype_of(vocab_size: int) -> np.dtype:
    """The dtype of tokens on disk."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _build(into: pathlib.Path, name: str, kind, vocab_size: int, folder: str) -> None:
    total = corpora.size(name, folder)
    verbose = sys.stderr.isatty() and total > TALK_BYTES
    if isinstance(kind, str):
        if verbose:
            sys.stderr.write(f"training the tokenizer on {name}\n")
        kind = tokenizer.train(kind, vocab_size, _TrainingTexts(name, folder))
    for file, contents in tokenizer.files(kind).items():
        (into / file).write_text(contents, encoding="utf-8")
    facts = tokenizer.facts(kind)
    dtype = dtype_of(facts.vocab_size)
    parts = {part: _Part(into / part) for part in corpora.PARTS}
    notes = _tokenise(parts, kind, facts, dtype, name, folder, total=total if verbose else 0)
    for part in parts.values():
        part.file.close()
    counted = sum(len(part.names) for part in parts.values())
    require(
        bool(parts["train"].names),
        f"config.data.name: {name!r} has {counted} documents, and none to train on; add documents",
    )
    said = [inputs.said(notes)] if notes else []
    _finish(into, parts, facts.vocab_size, dtype, said + _repeated(parts))


def _repeated(parts: dict[str, _Part]) -> list[str]:
    """A sentence that counts the held-out documents with the text of a training document, if there
    are any."""
    train, said = np.array(parts["train"].texts, np.uint64), []
    for name in ("valid", "test"):
        held = parts[name]
        twice = np.flatnonzero(np.isin(np.array(held.texts, np.uint64), train))
        if len(twice):
            first = f"first {held.names[twice[0]]!r}"
            said.append(f"{len(twice):,} of the {len(held.names):,} in {name!r} ({first})")
    return [f"documents whose text is also in 'train': {' and '.join(said)}"] if said else []


def _tokenise(parts, kind, facts, dtype, name, folder, *, total) -> collections.Counter:
    """Tokenises every document into the file of its part. Returns notes: {what: how often}."""
    require(
        bool(facts.end),
        "config.data.tokenizer: it has no token that ends a document: none of "
        f"{', '.join(tokenizer.ROLES['end'])}, and its files name no eos_token",
    )
    plain = tokenizer.reading(facts)
    divide = sentences if _divides(plain) else lambda text: [text]
    frame = facts.document_begin, facts.end
    started, seen, notes = time.monotonic(), 0, collections.Counter()
    for batch in _batches(corpora.documents(name, folder, notes)):
        texts = [divide(document.text) or [""] for document in batch]
        flat = list(itertools.chain.from_iterable(texts))
        ids = iter([e.ids for e in plain.encode_batch_fast(flat, add_special_tokens=False)])
        for document, divided in zip(batch, texts, strict=True):
            pieces = list(itertools.islice(ids, len(divided)))
            if not parts[document.part].add(document, pieces, *frame, dtype):
                notes["text without a token left out"] += 1
        seen += sum(len(text.encode()) for text in flat)
        if total:
            share = min(seen / total, 1)
            left = (time.monotonic() - started) * (1 / share - 1)
            sys.stderr.write(f"\rtokenising {name}: {share:.0%}, {left:.0f} s left ")
    if total:
        sys.stderr.write(f"\rtokenising {name}: done in {time.monotonic() - started:.0f} s\n")
    return notes


def _divides(plain: Tokenizer) -> bool:
    """Whether a text's sentences, one by one, have the tokens of the text: each step must treat
    them alike wherever a sentence ends, before white space."""
    described = json.loads(plain.to_str())
    model, pre = described["model"]["type"], described["pre_tokenizer"] or {}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    alike = pre.items() >= bytes_.items() and described["normalizer"] is None
    alike |= model == "WordPiece" and pre.get("type") == "BertPreTokenizer"
    alike &= (described["normalizer"] or {}).get("type", "BertNormalizer") == "BertNormalizer"
    # A structural token is text; others may hold white space, or take in what is beside them.
    reach = lambda t: t["lstrip"] or t["rstrip"] or re.search(r"\s", t["content"])
    return alike and not any(reach(t) for t in described["added_tokens"] if not t["special"])


def _batches(documents: Iterator[corpora.Document]) -> Iterator[list[corpora.Document]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size > BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _finish(
    into: pathlib.Path, parts: dict[str, _Part], vocab_size: int, dtype, notes: list[str]
) -> None:
    """Concatenates the parts, and writes the index last."""
    lengths = [part.ends[-1] for part in parts.values()]
    bases = [0, *itertools.accumulate(lengths)]
    with (into / "tokens.npy").open("wb") as joined:
        header = {"descr": dtype.str, "fortran_order": False, "shape": (bases[-1],)}
        np.lib.format.write_array_header_1_0(joined, header)
        for part in parts.values():
            with part.path.open("rb") as file:
                shutil.copyfileobj(file, joined)
            part.path.unlink()
    shift = lambda key: [
        np.array(getattr(part, key), np.int64) + base
        for part, base in zip(parts.values(), bases, strict=False)
    ]
    documents = np.concatenate([*(ends[:-1] for ends in shift("ends")), [bases[-1]]])
    np.save(into / "documents.npy", documents)
    np.save(into / "sentences.npy", np.concatenate(shift("sentences")))
    counts = np.zeros(vocab_size, np.int64)
    train = np.load(into / "tokens.npy", mmap_mode="r")[: lengths[0]]
    for start in range(0, len(train), 1 << 24):
        counts += np.bincount(train[start : start + (1 << 24)], minlength=vocab_size)
    np.save(into / "counts.npy", counts)
    names = [name for part in parts.values() for name in part.names]
    (into / "names.json").write_text(json.dumps(names))
    files = sorted(file.name for file in into.iterdir())
    described = {file: (os.path.getsize(into / file), fetch.sha256(into / file)) for file in files}
    splits = _splits(parts)
    content = [described[f] for f in files if f not in ("names.json", "special_tokens_map.json")]
    digest = hashlib.sha256(json.dumps([content, splits]).encode()).hexdigest()[:16]
    index = {"files": described, "splits": splits, "digest": digest, "notes": notes}
    (into / "index.json").write_text(json.dumps(index, indent=1))


def _splits(parts: dict[str, _Part]) -> dict[str, tuple[int, int]]:
    """{"train": documents, …}, and {"train-SOURCE": …} if there are several sources."""
    mixed = len({source for part in parts.values() for source in part.sources}) > 1
    ranges, base = {}, 0
    for name, part in parts.items():
        ranges[name] = base, base + len(part.names)
        for source, run in itertools.groupby(part.sources if mixed else []):
            size = len(list(run))
            ranges[f"{name}-{source}"] = base, base + size
            base += size
        base = ranges[name][1]
    return ranges
