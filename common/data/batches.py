"""The order of rows, reading them, and batches on the devices. The position is the step: no state.

The rows of training step s are a pure function of (seed, s): `order` is a keyed permutation of each
epoch, the same numbers from numpy and from inside a compiled step. Small sets are resident: they
lie on the device and the step gathers its own rows. Others are read on the host by grain, ahead of
time, by threads or worker processes, each process reading exactly the rows that its devices hold.

Letters: B global batch, N examples in a set, b rows asked for.
"""

import functools
import hashlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from common.devices import mesh
from common.errors import require
from common.task import Source
from common.tree import mix

ROUNDS = 24
BLOCK = 4096  # rows
GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads consecutive numbers


def _divide(step, batch_size: int, size: int, xp):
    """(step * batch_size) divided by size, as (quotient, remainder) u32[], without 64-bit
    numbers."""
    quotient, remainder = xp.uint32(0), xp.uint32(0)
    add_quotient, add_remainder = divmod(batch_size, size)
    for bit in reversed(range(32)):
        carry = remainder >= xp.uint32(size - size // 2)
        quotient = quotient * xp.uint32(2) + carry
        remainder = remainder + xp.where(carry, remainder - xp.uint32(size), remainder)
        one = (step >> xp.uint32(bit)) & xp.uint32(1)
        remainder = remainder + one * xp.uint32(add_remainder)
        carry = remainder >= xp.uint32(size)
        remainder = xp.where(carry, remainder - xp.uint32(size), remainder)
        quotient = quotient + one * xp.uint32(add_quotient) + carry
    return quotient, remainder


def order(seed, step, batch_size: int, size: int, xp=np):
    """The rows of a training step: u32[B], each epoch a permutation of the set keyed by (seed,
    epoch).

    Positions run on without a break, so a batch may span the end of an epoch, and over an epoch
    every row comes exactly once. The permutation is a swap-or-not shuffle (Hoang, Morris & Rogaway
    2012): any size, no tables, no loops whose length depends on data.

    Args:
      seed, step: u32[]; numbers, or traced with `xp=jax.numpy`.
      batch_size: B.
      size: N, below 2^31.
      xp: numpy or jax.numpy; both give the same numbers.
    """
    with np.errstate(over="ignore"):
        seed, step = xp.asarray(seed, xp.uint32), xp.asarray(step, xp.uint32)
        epoch, start = _divide(step, batch_size, size, xp)
        position = start + xp.arange(batch_size, dtype=xp.uint32)
        n = xp.uint32(size)
        return _shuffled(seed, epoch + position // n, position % n, n, xp)


def order_on_host(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """`order` by numpy, which takes as long for a few thousand rows as for a hundred: worked out
    for several steps at once, and kept for the next ones."""
    steps = max(1, BLOCK // batch_size)
    with _working_out:  # a thread each reads a step, and all ask for one block at a time
        block = _block(int(seed), int(step) // steps, batch_size * steps, size)
    start = int(step) % steps * batch_size
    return block[start : start + batch_size]


@functools.lru_cache(maxsize=4)
def _block(seed: int, number: int, rows: int, size: int) -> np.ndarray:
    found = order(seed, number, rows, size)
    found.flags.writeable = False
    return found


_working_out = threading.Lock()


def rows_at(seed, index, size: int, xp=np):
    """(rows of the set u32[B], epochs u32[B]) at the positions `index u32[B]` of the stream: what
    `order` gives, for a task that must know which rows it was given.

    Positions are counted modulo 2^32; behind that many examples these are others.
    """
    with np.errstate(over="ignore"):
        seed, index, n = xp.asarray(seed, xp.uint32), xp.asarray(index, xp.uint32), xp.uint32(size)
        return _shuffled(seed, index // n, index % n, n, xp), index // n


def _shuffled(seed, epoch, row, n, xp):
    """u32[B]: where each `row` goes in the permutation of its epoch."""
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
        # A loop, so that the rows are worked out once: the compiler would otherwise fuse all rounds
        # into each gather that uses them, and repeat them for every pixel.
        return jax.lax.fori_loop(0, 2, half, row)


def stream_index(step, batch_size: int, xp=np):
    """u32[B]: the positions of a training step in the stream of examples (modulo 2^32)."""
    with np.errstate(over="ignore"):
        return xp.asarray(step, xp.uint32) * xp.uint32(batch_size) + xp.arange(
            batch_size, dtype=xp.uint32
        )


# ----------------------------------------------------------------------------------------- sources


def from_arrays(arrays: dict[str, np.ndarray], resident: bool = True, facts: dict | None = None):
    """A Source over arrays [N, ...] in memory; fingerprinted by their bytes, names and types."""
    sizes = {len(a) for a in arrays.values()}
    require(len(sizes) == 1, f"arrays of one set have different lengths: {sorted(sizes)}")
    sha = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array))
    return Source(
        size=sizes.pop(),
        read=lambda rows: {name: array[rows] for name, array in arrays.items()},
        resident=arrays if resident else None,
        spec={n: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for n, a in arrays.items()},
        fingerprint=sha.hexdigest()[:16],
        facts=facts or {},
    )


# ----------------------------------------------------------------------------------------- batches


def batch_shapes(source: Source, batch_size: int, sharding=None) -> dict:
    """{name: ShapeDtypeStruct [B, ...]}: a batch of a set without its contents.

    Args:
      batch_size: B.
      sharding: of the rows; None is left open.
    """
    spec = source.spec | {
        "index": jax.ShapeDtypeStruct((), jnp.uint32),
        "valid": jax.ShapeDtypeStruct((), jnp.float32),
    }
    return {
        name: jax.ShapeDtypeStruct((batch_size, *one.shape), one.dtype, sharding=sharding)
        for name, one in spec.items()
    }


def gather(seed, step, batch_size: int, size: int, resident: dict) -> dict:
    """The training batch of `step`, taken from resident arrays inside the compiled step."""
    rows = order(seed, step, batch_size, size, jnp)
    batch = {name: array[rows] for name, array in resident.items()}
    return batch | {
        "index": stream_index(step, batch_size, jnp),
        "valid": jnp.ones(batch_size, jnp.float32),
    }


class _ReadStep(grain.transforms.Map):
    """Step -> the host's rows of its batch. A class, so that worker processes can be sent it."""

    def __init__(self, source: Source, seed: int, batch_size: int, local: np.ndarray):
        self.source, self.seed, self.batch_size, self.local = source, seed, batch_size, local

    def map(self, step):
        rows = order_on_host(self.seed, step, self.batch_size, self.source.size)[self.local]
        index = stream_index(step, self.batch_size)[self.local]
        return self.source.read(rows) | {"index": index, "valid": np.ones(len(rows), np.float32)}


def _begin_worker(*_) -> None:
    """A terminal's Ctrl-C reaches workers too; the parent saves first, and then ends them. A parent
    that was killed cannot: they see that it is gone, and go."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def train_batches(
    source: Source,
    seed: int,
    start: int,
    stop: int,
    batch_size: int,
    layout: mesh.Layout,
    workers: int = 0,
) -> Iterator[dict]:
    """Global training batches of the steps start <= step < stop, read ahead of their use.

    Args:
      workers: 0 reads by threads; more than 0 by that many processes. The batches are the same.
    """
    read = _ReadStep(source, seed, batch_size, mesh.local_rows(layout, batch_size))
    steps = grain.MapDataset.range(start, stop).map(read)
    options = grain.ReadOptions(
        num_threads=0 if workers else 4, prefetch_buffer_size=0 if workers else 4
    )
    batches = steps.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags; ours are elsewhere
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=_begin_worker,
        )
    return prefetch(mesh.to_global(layout, batch_size, batch) for batch in batches)


def prefetch(batches: Iterator[dict], depth: int = 2) -> Iterator[dict]:
    """The same batches, with the copies of the next `depth - 1` already under way."""
    queue: deque = deque()
    for batch in batches:
        queue.append(batch)
        if len(queue) >= depth:
            yield queue.popleft()
    yield from queue


def eval_batches(source: Source, batch_size: int, layout: mesh.Layout) -> Iterator[dict]:
    """Global batches over a finite set in its own order; the last is padded with `valid` = 0."""
    local = mesh.local_rows(layout, batch_size)

    def read(start):
        rows = start + local.astype(np.int64)
        valid = rows < source.size
        rows = np.where(valid, rows, 0).astype(np.uint32)
        batch = source.read(rows) | {"index": rows, "valid": valid.astype(np.float32)}
        return mesh.to_global(layout, batch_size, batch)

    return prefetch(read(start) for start in range(0, source.size, batch_size))
