"""Sets that a user brings in files: which files, and the split of each example.

    file:PATH        one file; its records may each name a `split`
    folder:DIR       files that are each named for their part: `train.jsonl`, `dev-v2.0.json`

A set without splits of its own is divided by a hash of its texts: 20% "test", and of the rest 10%
"valid" and 90% "train", so that a text is never on two sides; if that leaves a part of a small set
empty, the texts with the lowest hashes are moved.
"""

import collections
import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from common import inputs
from common.data import parts, tables
from common.errors import BadInput, brief, require
from common.task import Source, split_key
from lm.data import folders, text
from lm.data import tokenizer as tokenizers

WHERE = "config.data.name"
Ranges = dict[str, list[tuple[str, slice]]]  # of each Source: pieces of splits


# ------------------------------------------------------------------------------------------- files


class File(NamedTuple):
    """A file of a set: the part that its name tells, None for a set in one file; and its path."""

    part: str | None
    path: epath.Path

    def place(self, number: int) -> str:
        """Where a record is within the set: "line 3", or "train.jsonl, line 3" of a folder."""
        line = tables.line(self.path, number)
        return line if self.part is None else f"{self.path.name}, {line}"


def files(name: str) -> list[File]:
    """The files of "file:PATH" or "folder:DIR", in order.

    Raises:
      BadInput: for another name, what cannot be read, or a file of the folder that is named for no
        part, or for more than one.
    """
    kind, _, argument = name.partition(":")
    known = kind in ("file", "folder") and bool(argument)
    require(known, f"{WHERE}: unknown {brief(name)}; write 'file:PATH' or 'folder:DIR'")
    path = inputs.path(WHERE, argument)
    if kind == "file":
        return [File(None, inputs.file(WHERE, path))]
    inputs.folder(WHERE, path)
    named = []
    for file in sorted(path.iterdir()):
        if file.name.startswith(".") or folders.beside(file.name):
            continue
        inputs.file(WHERE, file)
        part = parts.named(file.name)
        require(
            bool(part),
            f"{WHERE}: {inputs.shown(file)} is not named for one part of the set: train, valid (or "
            "dev) or test; rename it, or move it away",
        )
        named.append(File(part, file))
    require(bool(named), f"{WHERE}: {inputs.shown(path)} holds no files")
    return named


def shown(name: str) -> str:
    """The config key and the set, which begin messages."""
    return f"{WHERE}: {inputs.shown(name.partition(':')[2])}"


def text_facts(tokenizer: str, folder: str) -> tokenizers.TextFacts:
    """The facts of a tokenizer that frames texts: by its template, or with [CLS] and [SEP].

    Args:
      tokenizer, folder: as in `lm.data.text.find_tokenizer`.

    Raises:
      BadInput: if it cannot be read, or has neither.
    """
    facts = tokenizers.facts(text.find_tokenizer(tokenizer, folder))
    lacking = [role for role in ("cls", "sep") if facts.special[role] is None]
    require(
        bool(facts.layouts[0].special) or not lacking,
        f"config.data.tokenizer: {tokenizer!r} has no {', '.join(lacking)} token",
    )
    return facts


def empty(spec: dict[str, jax.ShapeDtypeStruct], size: int, facts: Any) -> Source:
    """A set of `size` rows of zeros."""
    zeros = lambda rows: {k: np.zeros((len(rows), *s.shape), s.dtype) for k, s in spec.items()}
    return Source(size, zeros, None, spec, "outline", facts)


def row_spec(facts: tokenizers.TextFacts) -> dict[str, jax.ShapeDtypeStruct]:
    """What each row of a set has: {"tokens", "segments", "types"}."""
    dtype = np.uint16 if facts.vocab_size <= 1 << 16 else np.int32
    row = {"tokens": dtype, "segments": np.uint8, "types": np.uint8}
    return {name: jax.ShapeDtypeStruct((facts.length,), kind) for name, kind in row.items()}


def rows_of(
    lines: Sequence[tuple[np.ndarray, np.ndarray]], facts: tokenizers.TextFacts
) -> dict[str, np.ndarray]:
    """{"tokens", "segments" (0 is padding), "types"} of N rows [N, L].

    Args:
      lines: (tokens, types) of each, as `lm.data.templates.Layout.row` has them.
      facts: of the tokenizer, with the length L.
    """
    columns = {k: np.zeros((len(lines), *s.shape), s.dtype) for k, s in row_spec(facts).items()}
    columns["tokens"] += facts.special["pad"] or 0
    for row, (tokens, types) in enumerate(lines):
        columns["tokens"][row, : len(tokens)], columns["types"][row, : len(tokens)] = tokens, types
        columns["segments"][row, : len(tokens)] = 1
    return columns


def check_string(value: Any, key: str, where: str) -> None:
    """Raises `BadInput` unless the value of a record's key is a string."""
    spelled = inputs.spelled_type(value)
    require(isinstance(value, str), f"{where}: {key!r} is {spelled}, not a string")


# ------------------------------------------------------------------------------------------ splits


def split_of(record: dict, where: str, part: str | None = None) -> str | None:
    """The split that a record names, in a column `split` in upper or lower case; None for none.

    Args:
      record: {column: value}.
      where: the file and line, which begins messages.
      part: the part that the name of the record's file tells, if any.

    Raises:
      BadInput: if that is not a name, there are two such columns, or the file tells another part.
    """
    named = [key for key in record if key.strip().casefold() == "split"]
    require(len(named) < 2, f"{where}: {brief(named)[1:-1]} are both the split; remove one")
    split = record[named[0]] if named else None
    if split is None:
        return part
    check_string(split, "split", where)
    split = split.strip()
    valid = bool(re.fullmatch(r"[\w-]+", split))
    require(valid, f"{where}: split {brief(split)} is not a name of letters, digits, _ and -")
    same = part in (None, parts.ALIASES.get(split.casefold()))
    require(same, f"{where}: split {brief(split)}, in a file that is named for {part!r}")
    return part or split


def part(texts: tuple[str, ...]) -> str:
    """The split of an example, by a hash of its texts: 72% "train", 8% "valid", 20% "test"."""
    digest = _rank(texts)
    first, second = (int.from_bytes(digest[i : i + 8], "big") / 2**64 for i in (0, 8))
    return "test" if first < 0.2 else "valid" if second < 0.1 else "train"


def _rank(texts: tuple[str, ...]) -> bytes:
    return hashlib.sha256("\x1e".join(texts).encode()).digest()


def assign_splits(
    examples: Sequence[tuple],
    shown: str,
    notes: collections.Counter,
    by_hash: Callable = part,
) -> list[str]:
    """The split of each example: its own, or by the hash of its texts, with no part empty.

    Args:
      examples: (its own split, or None for all of them; its texts; …).
      shown: the config key and file, which begins messages.
      notes: counts what was moved.
      by_hash: texts -> their split.

    Raises:
      BadInput: if two splits differ in case only, or there are too few different texts.
    """
    if examples[0][0] is not None:
        splits = [split for split, *_ in examples]
        alike = collections.defaultdict(list)
        for split in dict.fromkeys(splits):
            alike[split.casefold()].append(split)
        twice = next((names for names in alike.values() if len(names) > 1), None)
        require(
            twice is None,
            f"{shown}: the splits {brief(twice)[1:-1]} differ in case only; spell them alike",
        )
        return splits
    moved = parts.moves((texts, by_hash(texts), _rank(texts)) for _, texts, *_ in examples)
    distinct = len({texts for _, texts, *_ in examples})
    require(
        moved is not None,
        f"{shown}: too few different texts ({distinct}, in {len(examples):,} examples) for "
        "'train', 'valid' and 'test'; add examples, or a split to each",
    )
    for to in moved.values():
        notes[f"text moved into '{to}', which had none by the hash of its texts"] += 1
    return [moved.get(texts) or by_hash(texts) for _, texts, *_ in examples]


def check_same(has: Sequence[bool], what: str, places: Sequence[str], shown: str) -> None:
    """Raises `BadInput` if some examples have something, such as a `split`, and others have not.

    Args:
      has: of each example.
      what: that which they have.
      places: where each of them stands: "line 3".
      shown: the config key and file, which begins the message.
    """
    if len(set(has)) > 1:
        one, other = (places[has.index(value)] for value in (True, False))
        raise BadInput(f"{shown}: {one} has a {what}, and {other} has none")


def warn_of_repeated(
    ranges: Ranges, texts: Mapping[str, Sequence[tuple[str, ...]]], name: str, what: str = "text"
) -> None:
    """Warns of each Source some of whose examples, though not trained on, have the text of one that
    is.

    Args:
      ranges: the pieces of splits that each Source is.
      texts: {split: the texts of its examples}.
      name: of the data set.
      what: "text", or what `texts` tell in place of it, such as "picture".
    """
    trained, known = collections.defaultdict(set), set()
    for part, at in ranges.get("train", ()):
        trained[part].update(range(at.start, at.stop))
        known.update(texts[part][at])
    for key, pieces in ranges.items():
        held = [(part, row) for part, at in pieces for row in range(at.start, at.stop)]
        held = [texts[part][row] for part, row in held if row not in trained[part]]
        twice = [each for each in held if each in known]
        if twice:
            logging.warning(
                "%s: %s: %s of the %s examples of %s that are not trained on have the %s of "
                "one that is, first %s",
                *(WHERE, inputs.shown(name), f"{len(twice):,}", f"{len(held):,}", split_key(key)),
                what,
                brief(twice[0][0]),
            )
