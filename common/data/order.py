"""Data order: which examples a training step reads, as a pure function of (seed, step).

Each epoch is a keyed permutation of the set; a checkpoint saves nothing about the data. Numpy on
the host and jax.numpy inside the compiled step compute the same numbers.

With `ByClass`, classes are drawn equally often: the stream is a sequence of blocks, each a keyed
permutation of the K classes; in block b each class yields its b-th row, and its rows have epochs of
their own, each a keyed permutation.

Letters: B global batch, N examples in a set, K classes that have examples.
"""

import dataclasses
import functools
import threading

import jax
import numpy as np

from common.tree import mix

MOST_ROWS = (1 << 31) - 1  # of a set
MOST_BATCH = 1 << 24  # examples: the numbers of a batch's rows alone are computed for each step
ROUNDS = 24
BLOCK = 4096  # rows
GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads consecutive numbers
CLASSES = 0x636C6173  # sets the order of classes apart from that of rows


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: arrays cannot be hashed
class ByClass:
    """The rows of a set by class, for an order in which classes are equally likely.

    Attributes:
      rows: u32[N], those of the first class, then those of the next.
      starts: u32[K], where the rows of each class begin.
      sizes: u32[K], how many it has, at least 1.
    """

    rows: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray


def by_class(labels: np.ndarray) -> ByClass:
    """The rows of a set by their `labels i32[N]`; classes without examples are left out."""
    sizes = np.bincount(labels)
    sizes = sizes[sizes > 0].astype(np.uint32)
    starts = np.cumsum(sizes, dtype=np.uint32) - sizes
    return ByClass(np.argsort(labels, kind="stable").astype(np.uint32), starts, sizes)


def _divide(step, batch_size: int, size: int, xp):
    """(step * batch_size) divided by size, as (quotient, remainder) u32[], without 64-bit
    numbers."""
    quotient, remainder = xp.uint32(0), xp.uint32(0)
    add_quotient, add_remainder = divmod(batch_size, size)
    for bit in reversed(range(32)):
        carry = remainder >= xp.uint32(size - size // 2)
        quotient = quotient * xp.uint32(2) + carry
        remainder = remainder + xp.where(carry, remainder - xp.uint32(size), remainder)
        digit = (step >> xp.uint32(bit)) & xp.uint32(1)
        remainder = remainder + digit * xp.uint32(add_remainder)
        carry = remainder >= xp.uint32(size)
        remainder = xp.where(carry, remainder - xp.uint32(size), remainder)
        quotient = quotient + digit * xp.uint32(add_quotient) + carry
    return quotient, remainder


def rows(seed, step, batch_size: int, size: int | ByClass, xp=np):
    """The rows of a training step: u32[B], each epoch a permutation of the set keyed by (seed,
    epoch).

    The stream is continuous, so a batch may span the end of an epoch; within an epoch every row
    appears exactly once. The permutation is a swap-or-not shuffle (Hoang, Morris & Rogaway
    2012): any size, no tables, no loops whose length depends on data.

    Args:
      seed, step: u32[]; integers, or tracers with `xp=jax.numpy`.
      batch_size: B.
      size: N, at most `MOST_ROWS`; or the rows by class, of which every K positions hold one of
        each class, and a class's epoch each of its rows once. Blocks are counted modulo 2^32.
      xp: numpy or jax.numpy; both compute the same numbers.
    """
    with np.errstate(over="ignore"):
        seed, step = xp.asarray(seed, xp.uint32), xp.asarray(step, xp.uint32)
        blocks = isinstance(size, ByClass)
        length = len(size.sizes) if blocks else size
        epoch, start = _divide(step, batch_size, length, xp)
        position = start + xp.arange(batch_size, dtype=xp.uint32)
        n = xp.uint32(length)
        epoch, position = epoch + position // n, position % n
        if blocks:
            return _balanced(seed, epoch, position, size, xp)[0]
        return _shuffled(seed, epoch, position, n, xp)


def _balanced(seed, block, position, order: ByClass, xp):
    """(rows u32[B], epochs u32[B] of their classes) at a position in each block."""
    rows, starts, sizes = map(xp.asarray, (order.rows, order.starts, order.sizes))
    number = _shuffled(mix(seed ^ xp.uint32(CLASSES)), block, position, xp.uint32(len(sizes)), xp)
    n, epoch = sizes[number], block // sizes[number]
    own = mix(seed ^ mix(number + xp.uint32(1)))  # a seed for each class
    return rows[starts[number] + _shuffled(own, epoch, block % n, n, xp)], epoch


def rows_on_host(seed: int, step: int, batch_size: int, size: int | ByClass) -> np.ndarray:
    """`rows` in numpy, which takes as long for a few thousand rows as for a hundred: computed for
    several steps at once, and cached for the next ones."""
    steps = max(1, BLOCK // batch_size)
    with _block_lock:  # one thread per step: they request the same block concurrently
        block = _block(int(seed), int(step) // steps, batch_size * steps, size)
    start = int(step) % steps * batch_size
    return block[start : start + batch_size]


@functools.lru_cache(maxsize=4)
def _block(seed: int, number: int, count: int, size: int | ByClass) -> np.ndarray:
    block = rows(seed, number, count, size)
    block.flags.writeable = False
    return block


_block_lock = threading.Lock()


def rows_at(seed, index, size: int | ByClass, xp=np):
    """(rows of the set u32[B], epochs u32[B]) at positions `index u32[B]` of the stream, as `rows`
    computes them: for a task that needs to know which rows its batch holds. By class, the epochs
    are those of the row's class: how often the row has been used.

    Positions are modulo 2^32; beyond that many examples the result differs from `rows`.
    """
    with np.errstate(over="ignore"):
        seed, index = xp.asarray(seed, xp.uint32), xp.asarray(index, xp.uint32)
        if isinstance(size, ByClass):
            n = xp.uint32(len(size.sizes))
            return _balanced(seed, index // n, index % n, size, xp)
        n = xp.uint32(size)
        return _shuffled(seed, index // n, index % n, n, xp), index // n


def _shuffled(seed, epoch, row, n, xp):
    """u32[B]: the image of each `row` under the permutation of its epoch."""
    with np.errstate(over="ignore"):
        key = mix(mix(seed + xp.uint32(GOLDEN)) ^ epoch)

        def half(i, row):
            for r in range(1, ROUNDS // 2 + 1):
                number = xp.uint32(i) * xp.uint32(ROUNDS // 2) + xp.uint32(r)
                round_key = mix(key + number * xp.uint32(GOLDEN))
                pivot = round_key % n
                partner = xp.where(pivot >= row, pivot - row, pivot + (n - row))
                coin = mix(xp.maximum(row, partner) ^ mix(round_key)) & xp.uint32(1)
                row = xp.where(coin == 1, partner, row)
            return row

        if xp is np:
            return half(1, half(0, row))
        # A loop, so that the rows are computed once: the compiler would otherwise fuse all rounds
        # into each gather that uses them, and repeat them for every pixel.
        return jax.lax.fori_loop(0, 2, half, row)


def stream_index(step, batch_size: int, xp=np):
    """u32[B]: the positions of a training batch in the stream of examples, modulo 2^32."""
    with np.errstate(over="ignore"):
        return xp.asarray(step, xp.uint32) * xp.uint32(batch_size) + xp.arange(
            batch_size, dtype=xp.uint32
        )
