"""Pairs of texts as Sources: rows of tokens for models that read a source and write a target.

The sets are those of `lm.data.parallel`. Splits are in TFDS's notation, in which `valid[:100]` is
100 pairs. Rows of the training set are packed with several pairs (see `lm.data.packing`); rows of
the other sets are one pair each, in order of their length.

Letters: S source positions, T target positions, N rows, V vocabulary.
"""

import collections
import hashlib
import logging
from collections.abc import Sequence

import numpy as np

from common import inputs
from common.data import loading, order
from common.data import splits as grammar
from common.errors import require
from common.task import Source, split_key
from lm.data import own, packing, parallel, sides, text
from lm.data import tokenizer as tokenizers
from lm.data.packing import Packed
from lm.data.sides import Encoded, PairFacts

KINDS = (*tokenizers.KINDS, *tokenizers.SYMBOLS)  # of tokenizers that are trained
MOST_PAIRS = 255  # in a row
OUTLINE_ROWS = 1 << 20  # of a set that is absent
MULTIPLE = 8  # rows of evaluation sets are as long as the longest, rounded up to this
WHERE = "config.data.name"


def load_sources(
    splits: dict[str, str],
    *,
    name: str = "cmudict",
    train: str = "train",
    source: str = "source",
    target: str = "target",
    tokenizer: str = "bpe",
    target_tokenizer: str = "",
    vocab_size: int = 8192,
    start: str = "",
    length: int = 128,
    target_length: int | None = None,
    folder: str = "",
    resident: bool | None = None,
    workers: int = 0,
) -> dict[str, Source]:
    """The section `data` of translation.

    Rows: source[S], source_segments u8[S], tokens[T], segments u8[T], targets[T]. Tokens are u16,
    or i32 for more than 65,536 of them. `tokens` are what the decoder reads, the start and then the
    target; `targets` what it is to predict there, the target and then its end. Segments count the
    pairs of a row from 1, alike on both sides; 0 is padding. A source is framed as its tokenizer
    frames a text, or else ends with its end.

    A pair that is longer than a row is left out of training; in evaluation it is cut, except for
    the text that translations are compared with.

    Args:
      splits: {name of the Source: split}; its "train", if any, must equal `train`.
      name: the set: "cmudict" (letters to phonemes), "bible", "help", "pairs:FILE" (your own .tsv,
        .csv, .jsonl or .parquet), "pairs:A,B" (two files of lines), "pairs:DIR" or "tfds:NAME".
      train: the split to train on, e.g. "train" or "train+valid".
      source, target: names of the two sides: columns of a table, suffixes of files of lines, or
        features of a TFDS set, such as "en" and "de".
      tokenizer: "bpe", "wordpiece", "characters" or "words" (between white space), trained on the
        training pairs; or an existing one: a file or folder, the name of prepared weights, or the
        workdir of a run.
      target_tokenizer: of the targets, likewise; "" is one tokenizer for both sides.
      vocab_size: most tokens of a tokenizer that is trained; unused for an existing one.
      start: the token that a decoder reads first, such as "<pad>" for T5; "" is [CLS] or the like,
        or, without it, the end of a text.
      length: S, the number of source tokens per row.
      target_length: T, the number of target tokens per row; None is `length`.
      folder: folder of prepared sets and weights; "" is $TOUCHSTONE_DATA or
        ~/.cache/touchstone/data. For a tfds set, the folder where TFDS keeps its sets.
      resident: whether to keep the rows in memory and on the device; None does so up to 1 GiB.
      workers: number of processes that read a set that is not resident; 0 uses threads.

    Returns:
      Sources whose facts are `lm.data.sides.PairFacts`.

    Raises:
      BadInput: if a set, split or tokenizer does not exist, or a line is not of a pair.
    """
    lengths = length, length if target_length is None else target_length
    for each in lengths:
        text.check_length(each)
    loading.check_workers(workers)
    require(splits.get("train", train) == train, "config.data.train: given twice")
    corpus = parallel.read(name, folder, source, target)
    ranges = {
        key: grammar.ranges(split, corpus.sizes, split_key(key), shuffled=True)
        for key, split in splits.items()
    }
    used = dict.fromkeys(part for pieces in ranges.values() for part, _ in pieces)
    members = {part: corpus.take(part) for part in used}
    of_part = {part: [(pair[0],) for pair in pairs] for part, pairs in members.items()}
    own.warn_of_repeated(ranges, of_part, name)
    wanted = {
        key: [pair for part, at in pieces for pair in members[part][at]]
        for key, pieces in ranges.items()
    }
    names = tokenizer, target_tokenizer
    made = _tokenizers(wanted.get("train", []), names, vocab_size, folder)
    facts = sides.make_facts(*made, lengths, start)
    sources = {}
    for key, pairs in wanted.items():
        notes: collections.Counter = collections.Counter()
        encoded = sides.encode(pairs, facts, notes, cut=key != "train")
        where = f"{split_key(key)}: {splits[key]}"
        require(len(encoded.rows) > 0, f"{where} has no pair: {inputs.said(notes)}")
        if notes:
            logging.warning("%s: %s: %s: %s", WHERE, inputs.shown(name), where, inputs.said(notes))
        if key == "train":
            sources[key] = _packed(encoded, facts, resident)
        else:
            parts = dict.fromkeys(part for part, _ in ranges[key])
            known = _targets(pair for part in parts for pair in members[part])
            sources[key] = _alone(encoded, pairs, facts, known, resident)
    return sources


def outline_sources(splits: dict[str, str], section: dict) -> dict[str, Source]:
    """The Sources of `load_sources`, from the config alone: the same shapes, without contents.

    A tokenizer that would be trained is assumed to reach its `vocab_size`; the number of rows is
    made up. For `scripts/compile.py`.

    Args:
      splits: {name of the Source: split}.
      section: the section `data`.
    """
    if section["name"] == "cmudict":
        return load_sources(splits, **section)
    names, size = (section["tokenizer"], section["target_tokenizer"]), section["vocab_size"]
    made = [
        tokenizers.stand_in(kind, size)
        if kind in KINDS
        else text.find_tokenizer(kind, section["folder"])
        for kind in names
        if kind
    ]
    lengths = section["length"], section["target_length"] or section["length"]
    facts = sides.make_facts(made[0], made[-1], lengths, section["start"])
    return dict.fromkeys(("train", *splits), empty(facts, OUTLINE_ROWS))


def empty(facts: PairFacts, size: int) -> Source:
    """A set of `size` rows of zeros, in the right shapes."""
    return own.empty(sides.spec(facts), size, facts)


# -------------------------------------------------------------------------------------- tokenizers


def _tokenizers(pairs: Sequence[tuple[str, str]], names: tuple[str, str], size: int, folder: str):
    """The tokenizers of sources and of targets; the same object if they share one."""
    both = [[pair[side] for pair in pairs] for side in (0, 1)]
    texts = [both[0] + both[1]] if not names[1] else both
    made = []
    for name, of in zip(names, texts, strict=False):
        if name in KINDS:
            made.append(tokenizers.train(name, size, of))
        else:
            made.append(text.find_tokenizer(name, folder))
    return made[0], made[-1]


# -------------------------------------------------------------------------------------------- rows


class _Reader:
    """rows u32[b] -> arrays; a class, so that it can be pickled for worker processes."""

    def __init__(self, encoded: Encoded, packed: Packed, facts: PairFacts):
        self.encoded, self.packed = encoded, packed
        self.start, self.pads = facts.start, facts.pads
        self.lengths = facts.source.length, facts.target.length

    def __call__(self, rows) -> dict[str, np.ndarray]:
        rows = np.asarray(rows, np.int64)
        (source, source_segments), (targets, segments) = (
            packing.laid_out(tokens, bounds, self.packed, rows, length, pad)
            for tokens, bounds, length, pad in zip(
                self.encoded[:2], self.encoded.bounds, self.lengths, self.pads, strict=True
            )
        )
        before = np.pad(segments, ((0, 0), (1, 0)))[:, :-1]
        tokens = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        tokens = np.where(segments == before, tokens, np.array(self.start, tokens.dtype))
        tokens = np.where(segments == 0, np.array(self.pads[1], tokens.dtype), tokens)
        return {
            "source": source,
            "source_segments": source_segments.astype(np.uint8),
            "tokens": tokens,
            "segments": segments.astype(np.uint8),
            "targets": targets,
        }


def _packed(encoded: Encoded, facts: PairFacts, resident: bool | None) -> Source:
    """A training set. Pairs are shuffled first: neighbours in a file are alike."""
    count = len(encoded.rows)
    shuffled = order.rows(0, 0, count, count).astype(np.int64)
    room = facts.source.length, facts.target.length
    packed = packing.pack(encoded.sizes[shuffled], room, MOST_PAIRS)
    packed = packed._replace(members=shuffled[packed.members])
    return _source(encoded, packed, facts, resident)


def _alone(
    encoded: Encoded, pairs: Sequence, facts: PairFacts, known: dict, resident: bool | None
) -> Source:
    """An evaluation set, in order of length, so that short translations end together."""
    ordered = np.lexsort((encoded.rows, *encoded.sizes.T))
    packed = packing.alone(len(ordered))._replace(members=ordered)
    texts = tuple(tuple(pairs[row]) for row in encoded.rows[ordered].tolist())
    targets = {source: known[source] for source, _ in texts}
    longest = -(-encoded.sizes.max(axis=0) // MULTIPLE) * MULTIPLE
    cut = [min(int(n), side.length) for n, side in zip(longest, facts[:2], strict=True)]
    shown = facts._replace(
        source=facts.source._replace(length=cut[0]), target=facts.target._replace(length=cut[1])
    )
    made = _source(encoded, packed, shown, resident)
    sha = hashlib.sha256(f"{made.fingerprint} {texts}".encode()).hexdigest()[:16]
    return made._replace(facts=facts._replace(texts=texts, targets=targets), fingerprint=sha)


def _targets(pairs) -> dict[str, tuple[str, ...]]:
    """{source: its targets}."""
    known = collections.defaultdict(dict)
    for source, target in pairs:
        known[source][target] = None
    return {source: tuple(targets) for source, targets in known.items()}


def _source(encoded: Encoded, packed: Packed, facts: PairFacts, resident: bool | None) -> Source:
    reader, size = _Reader(encoded, packed, facts), len(packed.bounds) - 1
    spec = sides.spec(facts)
    sha = hashlib.sha256()
    for array in (*encoded[:2], *encoded.bounds, *packed):
        sha.update(np.ascontiguousarray(array))
    sha.update(f"{facts.start} {facts.end} {facts.pads} {spec}".encode())
    row_bytes = sum(np.dtype(s.dtype).itemsize * s.shape[0] for s in spec.values())
    made = Source(size, reader, None, spec, sha.hexdigest()[:16], facts)
    if resident or (resident is None and size * row_bytes <= text.RESIDENT_BYTES):
        made = made._replace(resident=reader(np.arange(size)))
    return made
