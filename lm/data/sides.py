"""The two sides of a pair: the facts of their tokenizers, and pairs as tokens.

Letters: S source positions, T target positions, N pairs.
"""

import collections
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from common.errors import require
from lm.data import tokenizer as tokenizers
from lm.data.parallel import EMPTY
from lm.data.tokenizer import TextFacts

ENCODED = 1 << 16  # texts tokenised at a time


class PairFacts(NamedTuple):
    """What models and tasks know of a set of pairs: `Source.facts`.

    Attributes:
      source, target: of the two tokenizers, which may be one, with the lengths S and T of a row.
      shared: whether they are one.
      start: the token that a decoder reads before a target.
      end: the token that ends a target.
      texts: (source, target) of each row of an evaluation set, in order; () for a training set.
      targets: {source: all its targets in the splits that an evaluation set is of}.
    """

    source: TextFacts
    target: TextFacts
    shared: bool
    start: int
    end: int
    texts: tuple[tuple[str, str], ...] = ()
    targets: dict[str, tuple[str, ...]] | None = None

    @property
    def pads(self) -> tuple[int, int]:
        """The tokens that pad sources and targets."""
        return self.source.special["pad"] or 0, self.target.special["pad"] or 0


def spec(facts: PairFacts) -> dict[str, jax.ShapeDtypeStruct]:
    """What each row of a set has, as `lm.data.pairs` says."""
    kinds = [np.uint16 if of.vocab_size <= 1 << 16 else np.int32 for of in facts[:2]]
    row = {
        "source": (facts.source.length, kinds[0]),
        "source_segments": (facts.source.length, np.uint8),
        "tokens": (facts.target.length, kinds[1]),
        "segments": (facts.target.length, np.uint8),
        "targets": (facts.target.length, kinds[1]),
    }
    return {name: jax.ShapeDtypeStruct((size,), kind) for name, (size, kind) in row.items()}


def make_facts(source, target, lengths: tuple[int, int], start: str) -> PairFacts:
    """The facts of a set by its tokenizers, which are one object if both sides share it.

    Args:
      source, target: tokenizers.
      lengths: S and T.
      start: as in `load_sources`.

    Raises:
      BadInput: if no token could start a target, or end it.
    """
    shared = source is target
    first = tokenizers.facts(source)
    second = first if shared else tokenizers.facts(target)
    begin, end = second.special["cls"], second.special["end"]
    where = "config.data.tokenizer" if shared else "config.data.target_tokenizer"
    require(
        end is not None,
        f"{where}: it has no token that ends a text: none of "
        f"{', '.join(tokenizers.ROLES['end'])}, and its files name no eos_token",
    )
    if start:
        begin = target.token_to_id(start)
        require(begin is not None, f"config.data.start: the tokenizer has no token {start!r}")
    lengths = (side._replace(length=n) for side, n in zip((first, second), lengths, strict=True))
    return PairFacts(*lengths, shared, end if begin is None else begin, end)


def frame(facts: TextFacts) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the ids before those of a source, the ids after them)."""
    before, after = facts.layouts[0].ids
    end = facts.special["end"]
    return before, after if before or after or end is None else (end,)


# ------------------------------------------------------------------------------------------ tokens


class Encoded(NamedTuple):
    """Pairs as tokens.

    Attributes:
      sources, targets: of all pairs, one after the other; sources with their frames, targets with
        their ends.
      bounds: (i64[N + 1], i64[N + 1]), where each pair begins in them.
      rows: i64[N], the number of each of these pairs among those that were encoded.
    """

    sources: np.ndarray
    targets: np.ndarray
    bounds: tuple[np.ndarray, np.ndarray]
    rows: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """i64[N, 2]: the tokens of each source and target."""
        return np.stack([np.diff(bounds) for bounds in self.bounds], axis=1)


def encode(
    pairs: Sequence[tuple[str, str]], facts: PairFacts, notes: collections.Counter, *, cut: bool
) -> Encoded:
    """Tokenises pairs; `notes` counts those that are cut, or left out.

    Args:
      pairs: (source, target) of each.
      facts: of the set.
      notes: {what: how often}.
      cut: whether what is longer than a row is cut, rather than left out.
    """
    before, after = frame(facts.source)
    rooms = facts.source.length - len(before) - len(after), facts.target.length - 1
    require(rooms[0] > 0, "config.data.length: no token of a source fits beside its frame")
    readers, kinds = readers_of(facts), [spec(facts)[name].dtype for name in ("source", "targets")]
    arrays: tuple[list, list] = [], []
    sizes: tuple[list, list] = [], []
    rows, lengths = [], f"{facts.source.length} and {facts.target.length} tokens"
    for first in range(0, len(pairs), ENCODED):
        chunk = pairs[first : first + ENCODED]
        both = [read([pair[side] for pair in chunk]) for side, read in enumerate(readers)]
        flat: tuple[list, list] = [], []
        for row, ids in enumerate(zip(*both, strict=True), first):
            if not all(pairs[row]) or not ids[0]:
                notes[EMPTY] += 1
                continue
            if any(len(own) > room for own, room in zip(ids, rooms, strict=True)):
                what = "cut to" if cut else "left out, as longer than"
                notes[f"pair {what} a row of {lengths}"] += 1
                if not cut:
                    continue
            framed = (*before, *ids[0][: rooms[0]], *after), (*ids[1][: rooms[1]], facts.end)
            for side, own_ids in enumerate(framed):
                flat[side].extend(own_ids)
                sizes[side].append(len(own_ids))
            rows.append(row)
        for side, kind in enumerate(kinds):
            arrays[side].append(np.array(flat[side], kind))
    joined = (np.concatenate(side or [np.zeros(0)]) for side in arrays)
    bounds = tuple(np.cumsum([0, *side], dtype=np.int64) for side in sizes)
    return Encoded(*joined, bounds, np.array(rows, np.int64))


def readers_of(facts: PairFacts) -> tuple[Callable, Callable]:
    """texts -> their ids, for sources and for targets. Text that spells a structural token, such as
    "</s>", becomes the unknown token."""

    def reader(of: TextFacts):
        plain, unknown = tokenizers.reading(of), of.special["unk"]
        structural = frozenset(of.structural)

        def read(texts: Sequence[str]) -> list[list[int]]:
            encoded = plain.encode_batch_fast(list(texts), add_special_tokens=False)
            lists = [each.ids for each in encoded]
            if unknown is None:
                return lists
            return [
                ids
                if structural.isdisjoint(ids)
                else [unknown if i in structural else i for i in ids]
                for ids in lists
            ]

        return read

    first = reader(facts.source)
    return first, first if facts.shared else reader(facts.target)
