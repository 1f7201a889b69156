"""Packing: several pairs of sequences in a row, each a segment of its own on both sides.

Rows are filled pair by pair, in the order of the pairs: each goes into the fullest of the open rows
that has room for it on both sides. The same sizes give the same rows.

Letters: N pairs, R rows.
"""

from typing import NamedTuple

import numpy as np

OPEN = 64  # rows that are filled at a time


class Packed(NamedTuple):
    """Pairs in rows.

    Attributes:
      members: i64[N], the numbers of the pairs, row by row.
      bounds: i64[R + 1], where each row begins among them.
    """

    members: np.ndarray
    bounds: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """i64[R], the pairs of each row."""
        return np.diff(self.bounds)


def alone(count: int) -> Packed:
    """A row for each pair."""
    return Packed(np.arange(count), np.arange(count + 1))


def pack(sizes: np.ndarray, room: tuple[int, int], most: int) -> Packed:
    """Packs pairs into rows.

    Args:
      sizes: i64[N, 2], the tokens of each pair's source and target; at most `room`.
      room: tokens that a row holds of sources and of targets.
      most: pairs in a row.
    """
    left = np.tile(np.array(room, np.int64), (OPEN, 1))
    rows: list[list[int]] = [[] for _ in range(OPEN)]
    closed = []
    for pair, (source, target) in enumerate(sizes.tolist()):
        # What remains of a row where the pair fits; negative where it does not.
        fits = (left[:, 0] >= source) & (left[:, 1] >= target)
        remains = np.where(fits, left[:, 0] + left[:, 1], room[0] + room[1] + 1)
        row = int(remains.argmin())
        if not fits[row]:
            row = int(left.sum(axis=1).argmin())
            closed.append(rows[row])
            rows[row], left[row] = [], room
        rows[row].append(pair)
        left[row] -= source, target
        if len(rows[row]) == most:
            left[row] = 0
    closed += [row for row in rows if row]
    members = np.array([pair for row in closed for pair in row], np.int64)
    return Packed(members, np.cumsum([0, *map(len, closed)]))


def laid_out(
    tokens: np.ndarray, bounds: np.ndarray, packed: Packed, rows: np.ndarray, length: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [b, length], segments i64[b, length]) of one side of some rows. Segments count the
    pairs of a row from 1; 0 is padding.

    Args:
      tokens: [T], of all pairs, one after the other.
      bounds: i64[N + 1], where each pair begins among them.
      packed: the rows.
      rows: [b], the numbers of those to lay out.
      length: of a row; what does not fit is a mistake of the caller.
      pad: the token that pads.
    """
    counts = packed.counts[rows]
    row = np.repeat(np.arange(len(rows)), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    pair = packed.members[packed.bounds[rows][row] + number]
    sizes = bounds[pair + 1] - bounds[pair]
    ends = np.cumsum(sizes)
    before = np.concatenate([[0], ends])[np.cumsum(counts) - counts]  # tokens of earlier rows
    first = ends - sizes - before[row]  # each pair's place in its row
    step = np.arange(sizes.sum()) - np.repeat(ends - sizes, sizes)
    at = np.repeat(row * length + first, sizes) + step
    made = np.full(len(rows) * length, pad, tokens.dtype)
    segments = np.zeros(len(rows) * length, np.int64)
    made[at] = tokens[np.repeat(bounds[pair], sizes) + step]
    segments[at] = np.repeat(number + 1, sizes)
    return made.reshape(len(rows), length), segments.reshape(len(rows), length)
