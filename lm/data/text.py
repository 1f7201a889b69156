"""Pretraining text, as Sources: rows of tokens that are a pure function of their index.

A corpus (see `corpora`) is divided by whole documents into "train", "valid" and "test"; a corpus of
several sources also has "test-wikipedia" and the like. Each is a stream of tokens (see `store`),
cut into rows. Splits use TFDS's notation, and count rows: `train`, `valid[:256]`, `valid+test`.

Letters: L length, N rows, b requested rows, V vocabulary.
"""

import bisect
import logging
import random
import zlib
from typing import Literal

import jax
import numpy as np
from tokenizers import Tokenizer

from common import inputs
from common.data import fetch, loading
from common.data import splits as grammar
from common.errors import nearest, require
from common.task import Source, split_key
from lm.data import corpora, store
from lm.data import tokenizer as tokenizers
from lm.pretrained import WEIGHTS

Form = Literal["mlm", "pairs", "clm"]
RESIDENT_BYTES = 1 << 30  # smaller sets are resident unless the config decides
CHUNK = 4096  # rows made at a time for a resident set
SEED = 19  # of the pairs
MOST_LENGTH = 1 << 24  # tokens of a row
OUTLINE_ROWS = 1 << 20  # of a set that is absent


def load_sources(
    splits: dict[str, str],
    form: Form,
    *,
    name: str = "sotu",
    train: str = "train",
    tokenizer: str = "wordpiece",
    vocab_size: int = 8192,
    length: int = 128,
    folder: str = "",
    resident: bool | None = None,
    workers: int = 0,
) -> dict[str, Source]:
    """The section `data` of pretraining.

    Rows by their form; tokens are u16, or i32 for more than 65,536 of them:

    mlm: tokens[L], segments[L]. [CLS] and the next L - 1 tokens of the stream, in which a [SEP]
      ends each document; or what begins and ends a text in the tokenizer's template, such as
      `<s>` and `</s>`. Every token is in exactly one row. `segments` numbers the documents in a
      row from 1 ([CLS] belongs to the first); 0 is padding, which only the last row of a stream
      has.
    clm: tokens[L + 1], segments[L + 1]. Consecutive tokens; a row starts with the last token of
      the row before it, so every token is predicted exactly once. A document is <|endoftext|>, its
      tokens, <|endoftext|> (its tokens, [SEP] for WordPiece; see `lm.data.store`).
    pairs: tokens[L], segments[L], types u8[L], next i32[]. [CLS] A [SEP] B [SEP], or the
      tokenizer's own template of a pair, and padding (Devlin et al. 2019, A.2). A and B are whole
      sentences, cut only if they do not fit. In half of the rows B follows A in its document
      (`next` = 1); in the others B comes from another document, and the sentences after A begin
      the next row. `segments` is 1, or 0 for padding; `types` is 1 for B and its [SEP], or as the
      template has it.

    Args:
      splits: {name of the Source: split}; its "train", if any, must equal `train`.
      form: of the rows.
      name: the corpus: "sotu", "prose", "folder:DIR" (your own texts) or "tfds:NAME".
      train: the split to train on, e.g. "train" or "train[:90%]".
      tokenizer: "wordpiece" or "bpe", trained on the corpus; or an existing one: a file or folder,
        the name of prepared weights such as "minilm", or the workdir of a run.
      vocab_size: size of a tokenizer that is trained; unused for an existing one.
      length: L, the number of tokens that the model reads per row.
      folder: folder of prepared corpora and tokens; "" is $TOUCHSTONE_DATA or
        ~/.cache/touchstone/data.
      resident: whether to keep the rows in memory and on the device; None does so up to 1 GiB.
      workers: number of processes that read a set that is not resident; 0 uses threads.

    Returns:
      Sources whose facts are `lm.data.tokenizer.TextFacts`.

    Raises:
      BadInput: if a corpus, split or tokenizer does not exist, or does not suit the form.
    """
    check_length(length)
    loading.check_workers(workers)
    require(splits.get("train", train) == train, "config.data.train: given twice")
    opened = _open(name, tokenizer, vocab_size, folder)
    for note in opened.notes:
        logging.warning("config.data.name: %s: %s", inputs.shown(name), note)
    facts = tokenizers.facts(opened.tokenizer)
    facts = facts._replace(counts=np.array(opened.counts), length=length, form=form)
    special = facts.special
    lacking = [role for role in ("cls", "sep", "mask") if special[role] is None]
    if special["mask"] is not None and facts.begin and facts.end:
        lacking = []  # its template has what stands for [CLS] and [SEP]
    require(
        form == "clm" or not lacking,
        f"config.data.tokenizer: {tokenizer!r} has no {', '.join(lacking)} token, which masked "
        "language models need; use 'wordpiece'",
    )
    tables = {}
    sources = {}
    for key, split in splits.items():
        where = split_key(key)
        for part in grammar.names(split):
            known = part in opened.splits
            require(known, f"{where}: unknown split {part!r}; {nearest(part, opened.splits)}")
            if part not in tables:
                tables[part] = _table(opened, part, facts, where)
        sizes = {part: len(table) for part, table in tables.items()}
        parts = [tables[part][at] for part, at in grammar.ranges(split, sizes, where)]
        reader = _Reader(opened, facts, np.concatenate(parts))
        fingerprint = f"{opened.digest}:{form}:{length}:{split}"
        sources[key] = _source(reader, resident, facts, fingerprint)
    return sources


def check_length(length: int) -> None:
    """Raises `BadInput` unless rows of this many tokens can be made."""
    fits = 8 <= length <= MOST_LENGTH
    require(fits, f"config.data.length: {length} is not in 8 to {MOST_LENGTH:,}")


def outline_sources(splits: dict[str, str], form: Form, section: dict) -> dict[str, Source]:
    """The Sources of `load_sources`, from the config alone: the same shapes, without contents.

    A tokenizer that would be trained is assumed to reach its `vocab_size`; the number of rows is
    made up. For `scripts/compile.py`.

    Args:
      splits, form: as in `load_sources`.
      section: the section `data`.
    """
    kind, length = section["tokenizer"], section["length"]
    trained = kind in tokenizers.KINDS
    tokenizer = (
        tokenizers.stand_in(kind, section["vocab_size"])
        if trained
        else find_tokenizer(kind, section["folder"])
    )
    return dict.fromkeys(("train", *splits), _outline(tokenizer, form, length))


def kept_source(form: Form, section: dict, folder) -> dict[str, Source] | None:
    """{"train": a Source without contents}, by the tokenizer that the run in `folder` keeps; None
    if it keeps none."""
    tokenizer = tokenizers.kept(folder)
    return None if tokenizer is None else {"train": _outline(tokenizer, form, section["length"])}


def _outline(tokenizer: Tokenizer, form: Form, length: int) -> Source:
    facts = tokenizers.facts(tokenizer)
    counts = np.ones(facts.vocab_size, np.int64)
    facts = facts._replace(counts=counts, length=length, form=form)
    empty = store.Store(
        path="",
        tokens=np.zeros(length + 2, store.dtype_of(facts.vocab_size)),
        documents=np.array([0, length + 2]),
        sentences=np.array([0]),
        splits={},
        tokenizer=tokenizer,
        counts=counts,
        digest="outline",
    )
    row = np.array([[0, 1, 1, 2, 1] if form == "pairs" else [0, length + 2]])
    reader = _Reader(empty, facts, row)
    return _source(reader, False, facts, "outline")._replace(size=OUTLINE_ROWS)


def tokenizer_of(section: dict) -> Tokenizer:
    """The tokenizer of a section `data`, of pretraining or of labelled texts."""
    if section["tokenizer"] in tokenizers.KINDS:
        keys = ("name", "tokenizer", "vocab_size", "folder")
        return _open(*(section[key] for key in keys)).tokenizer
    return find_tokenizer(section["tokenizer"], section["folder"])


def find_tokenizer(name: str, folder: str = "") -> Tokenizer:
    """Finds a tokenizer by its files (see `tokenizer.load`), by the name of prepared weights, such
    as "minilm", or by the workdir of a run."""
    path = fetch.find_prepared(name, folder, known=WEIGHTS, where="config.data.tokenizer")
    config = path / "config.json"
    if path.is_dir() and inputs.present(config) and not tokenizers.has_files(path):
        section = inputs.json_object("config.data.tokenizer", config).get("data") or {}
        kinds = {"name": str, "tokenizer": str, "vocab_size": int, "folder": str}
        of_run = isinstance(section, dict) and "tokenizer" in section
        require(
            of_run,
            f"config.data.tokenizer: {path} has no tokenizer, and is not a run that has one",
        )
        where = f"config.data.tokenizer: {config}: data"
        trained = section["tokenizer"] in tokenizers.KINDS
        for key in kinds if trained else ("tokenizer", "folder"):
            inputs.field(section, key, kinds[key], inputs.REQUIRED, where)
        return tokenizer_of(section)
    return tokenizers.load(path)


def _open(name: str, tokenizer: str, vocab_size: int, folder: str) -> store.Store:
    trained = tokenizer in tokenizers.KINDS
    kind = tokenizer if trained else find_tokenizer(tokenizer, folder)
    return store.get(name, kind, vocab_size, folder)


# -------------------------------------------------------------------------------------------- rows


def _table(opened: store.Store, split: str, facts: tokenizers.TextFacts, where: str) -> np.ndarray:
    """The origin of each row of a split: i64[N, 2], its first token and the end of the stream; for
    pairs i64[N, 5], start and end of A and of B, and `next`."""
    form, (first, last) = facts.form, opened.splits[split]
    count = len(opened.documents) - 1
    require(
        last > first,
        f"{where}: none of the {count} documents with a token in it is in {split!r}: whole "
        "documents are held out, by a hash of their names; add documents",
    )
    if form == "pairs":
        ranges = {part: opened.splits[part] for part in corpora.PARTS}
        sizes = ", ".join(f"{b - a} in {part!r}" for part, (a, b) in ranges.items())
        require(
            last - first > 1,
            f"{where}: pairs need two documents, and {split!r} has one ({sizes}); add documents, "
            "or set config.loss.nsp=False",
        )
        return _pairs(opened, range(first, last), facts, SEED + zlib.crc32(split.encode()))
    begin, end = int(opened.documents[first]), int(opened.documents[last])
    stride = facts.length - len(facts.begin) if form == "mlm" else facts.length
    starts = np.arange(begin, end - (form == "clm"), stride)
    return np.stack([starts, np.full_like(starts, end)], 1)


def _pairs(
    opened: store.Store, documents: range, facts: tokenizers.TextFacts, seed: int
) -> np.ndarray:
    """i64[N, 5]: pairs of texts from these documents, as long as the template has room for."""
    rng, room = random.Random(seed), facts.length - len(facts.layouts[1].special)
    ends = opened.documents[documents.start : documents.stop + 1].tolist()
    starts = opened.sentences[slice(*np.searchsorted(opened.sentences, [ends[0], ends[-1]]))]
    cuts = np.searchsorted(starts, ends)
    starts = starts.tolist()
    # The starts of each document's sentences, and the end of its last one: its [SEP].
    tail = len(facts.end)
    bounds = [
        [*starts[a:b], end - tail] for a, b, end in zip(cuts, cuts[1:], ends[1:], strict=False)
    ]
    below = lambda n: int(rng.random() * n)

    def last_fit(where: list[int], i: int, room: int) -> int:
        """The end of as many sentences as fit from the i-th on; at least one."""
        return max(i + 1, bisect.bisect_right(where, where[i] + room) - 1)

    rows, owed, coins = [], 0, []
    for d, own in enumerate(bounds):
        i, count = 0, len(own) - 1
        while i < count:
            j = last_fit(own, i, room)
            coins = coins or ([True, False] if rng.random() < 0.5 else [False, True])
            follows = coins.pop()
            if j == i + 1:
                j = min(i + 2, count)
            # Nothing follows the last sentence. A later row makes up for it, so that B still
            # follows A in half of the rows.
            if follows and j - i < 2:
                follows, owed = False, owed + 1
            elif not follows and owed and j - i >= 2:
                follows, owed = True, owed - 1
            cut = i + 1 + below(max(j - i - 1, 1))
            a, b = own[i], own[cut]
            if follows:
                c, e, i = own[cut], own[j], j
            else:
                other = bounds[(d + 1 + below(len(bounds) - 1)) % len(bounds)]
                k = below(len(other) - 1)
                c = other[k]
                while cut > i + 1 and b - a + other[k + 1] - c > room:
                    cut -= 1
                    b = own[cut]
                e, i = other[last_fit(other, k, room - (b - a))], cut
            # Too long: the longer text is cut, at the end away from the other.
            second = min(e - c, max(room // 2, room - (b - a)))
            rows.append((max(a, b - (room - second)), b, c, c + second, follows))
    return np.array(rows, np.int64)


class _Reader:
    """rows u32[b] -> arrays, from the store on disk; a class, so that it can be pickled for worker
    processes."""

    def __init__(self, opened: store.Store, facts: tokenizers.TextFacts, table):
        self.path, self.table = opened.path, table
        self.form, self.length, self.begin = facts.form, facts.length, facts.begin
        self.pair, self.pad = facts.layouts[1], facts.special["pad"] or 0
        self.tokens, self.documents = opened.tokens, opened.documents

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in ("tokens", "documents")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.tokens, self.documents = (
            np.load(f"{self.path}/{key}.npy", mmap_mode="r") for key in ("tokens", "documents")
        )

    def __call__(self, rows) -> dict[str, np.ndarray]:
        at = self.table[rows]
        return self._pairs(at) if self.form == "pairs" else self._stream(at)

    def _take(self, index: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """The tokens at `index`, padding where not `inside`."""
        tokens = np.where(inside, self.tokens[np.where(inside, index, 0)], self.pad)
        return tokens.astype(np.uint16 if self.tokens.dtype == np.uint16 else np.int32)

    def _stream(self, at: np.ndarray) -> dict[str, np.ndarray]:
        start, end = at[:, :1], at[:, 1:]
        before = len(self.begin)
        index = start + np.arange(self.length - before if self.form == "mlm" else self.length + 1)
        inside = index < end
        tokens = self._take(index, inside)
        document = np.searchsorted(self.documents, index, side="right")
        segments = np.where(inside, document - document[:, :1] + 1, 0)
        # A document has at least two tokens, so at most this many of them are in a row.
        segments = segments.astype(np.min_scalar_type(self.length // 2 + 2))
        if self.form == "mlm":
            first = np.tile(np.array(self.begin, tokens.dtype), (len(tokens), 1))
            tokens = np.concatenate([first, tokens], 1)
            segments = np.concatenate([segments[:, :1].repeat(before, 1), segments], 1)
        return {"tokens": tokens, "segments": segments}

    def _pairs(self, at: np.ndarray) -> dict[str, np.ndarray]:
        a, b, c, d, follows = (column[:, None] for column in at.T)
        place = np.arange(self.length)
        before, between, after = map(len, self.pair.ids)
        middle = before + b - a  # the first [SEP]
        second = middle + between
        last = second + d - c
        index = np.where(place < middle, a + place - before, c + place - second)
        inside = (place >= before) & (place < last) & ((place < middle) | (place >= second))
        tokens = self._take(index, inside)
        types = np.where(place < middle, *self.pair.text_types) * inside
        starts = np.zeros_like(middle), middle, last
        for start, ids, kinds in zip(starts, self.pair.ids, self.pair.types, strict=True):
            for i, (token, kind) in enumerate(zip(ids, kinds, strict=True)):
                special = place == start + i
                tokens[special], types[special] = token, kind
        return {
            "tokens": tokens,
            "segments": (place < last + after).astype(np.uint8),
            "types": types.astype(np.uint8),
            "next": follows[:, 0].astype(np.int32),
        }


def _source(
    reader: _Reader, resident: bool | None, facts: tokenizers.TextFacts, fingerprint: str
) -> Source:
    size = len(reader.table)
    sample = reader(np.zeros(1, np.uint32))
    row_bytes = sum(array.nbytes for array in sample.values())
    if resident or (resident is None and size * row_bytes <= RESIDENT_BYTES):
        arrays = {
            key: np.empty((size, *array.shape[1:]), array.dtype) for key, array in sample.items()
        }
        for start in range(0, size, CHUNK):
            for key, rows in reader(np.arange(start, min(start + CHUNK, size))).items():
                arrays[key][start : start + CHUNK] = rows
        return loading.from_arrays(arrays, True, facts)._replace(fingerprint=fingerprint)
    spec = {
        key: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for key, array in sample.items()
    }
    return Source(size, reader, None, spec, fingerprint, facts)
