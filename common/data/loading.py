"""Sources in memory, and batches on the devices: resident, or prefetched by the host.

Small sets are resident: they live on the device and the step gathers its own rows. Others are
prefetched by grain, in threads or worker processes; each process reads exactly the rows that its
devices hold.

Letters: B global batch, N examples in a set, b rows requested.
"""

import contextlib
import hashlib
import itertools
import logging
import multiprocessing
import os
import pathlib
import queue
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from common.data import order
from common.devices import ending, mesh, processes
from common.devices.memory import full_place
from common.errors import require
from common.task import Source

RESTARTS = 3  # of data workers, in one start of a run
STOPPED_SECONDS = 5.0  # a worker that is stopped for so long, and waited for, is replaced
# As grain says it of one that worked; as `_watched`, and Python, of one that only just started.
KILLED = "terminated unexpectedly|killed as it started|can only join a started process"

# ----------------------------------------------------------------------------------------- sources


def from_arrays(arrays: dict[str, np.ndarray], resident: bool = True, facts: Any = None):
    """A Source over in-memory arrays [N, ...]; its fingerprint covers bytes, names and dtypes."""
    sizes = {len(a) for a in arrays.values()}
    require(len(sizes) == 1, f"arrays of a set differ in length: {sorted(sizes)}")
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
        facts=facts,
        labels=(lambda: arrays["label"]) if "label" in arrays else None,
    )


def balanced(source: Source) -> Source:
    """The training set in an order in which classes are equally likely (`order.ByClass`).

    Raises:
      BadInput: unless each example has one class, known without reading the example.
    """
    labels = None if source.labels is None else source.labels()
    has_classes = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"
    has_classes = has_classes and len(labels) == source.size and labels.min() >= 0
    require(
        has_classes,
        "config.train.sampling: 'balanced' is for sets whose examples have one class each, known "
        "without reading them (`Source.labels`); leave it at 'uniform'",
    )
    return source._replace(by_class=order.by_class(labels))


# ----------------------------------------------------------------------------------------- batches

MOST_WORKERS = 1024


def check_workers(workers: int) -> None:
    """Raises `BadInput` unless the key `data.workers` is a number of processes."""
    fits = 0 <= workers <= MOST_WORKERS
    require(fits, f"config.data.workers: {workers} is not in 0 to {MOST_WORKERS}")


def batch_shapes(source: Source, batch_size: int, sharding=None) -> dict:
    """{name: ShapeDtypeStruct [B, ...]}: the shapes and dtypes of a batch.

    Args:
      source: the set.
      batch_size: B.
      sharding: of the rows; None leaves it unspecified.
    """
    spec = source.spec | {
        "index": jax.ShapeDtypeStruct((), jnp.uint32),
        "valid": jax.ShapeDtypeStruct((), jnp.float32),
    }
    return {
        name: jax.ShapeDtypeStruct((batch_size, *row.shape), row.dtype, sharding=sharding)
        for name, row in spec.items()
    }


def gather(seed, step, batch_size: int, size: int | order.ByClass, resident: dict) -> dict:
    """Gathers the training batch of `step` from resident arrays, inside the compiled step;
    `size` is `Source.order`."""
    rows = order.rows(seed, step, batch_size, size, jnp)
    batch = {name: array[rows] for name, array in resident.items()}
    return batch | {
        "index": order.stream_index(step, batch_size, jnp),
        "valid": jnp.ones(batch_size, jnp.float32),
    }


class _ReadStep:
    """Step -> this process's rows of the batch. A class, so that it can be pickled for workers."""

    def __init__(self, source: Source, seed: int, batch_size: int, local: np.ndarray):
        self.source, self.seed, self.batch_size, self.local = source, seed, batch_size, local

    def __call__(self, step):
        rows = order.rows_on_host(self.seed, step, self.batch_size, self.source.order)[self.local]
        index = order.stream_index(step, self.batch_size)[self.local]
        return self.source.read(rows) | {"index": index, "valid": np.ones(len(rows), np.float32)}


def _begin_worker(*_) -> None:
    """Makes a worker ignore Ctrl-C, which a terminal sends to workers too: the parent saves first,
    then ends them. If the parent is killed, the worker notices and exits."""
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
    steps: range,
    batch_size: int,
    layout: mesh.Layout,
    *,
    workers: int = 0,
) -> Iterator[dict]:
    """Global training batches of consecutive steps, prefetched.

    Args:
      source: the training set.
      seed: of the data order.
      steps: the range of steps.
      batch_size: B.
      layout: the mesh that the batches are sharded over.
      workers: 0 reads in threads, n > 0 in n worker processes. The batches are the same.

    Raises:
      Lost: if workers are killed more than `RESTARTS` times.
    """
    read = _ReadStep(source, seed, batch_size, mesh.local_rows(layout, batch_size))
    batches = _outliving(read, steps, workers) if workers else _read_ahead(read, steps, 0)
    return prefetch(mesh.to_global(layout, batch_size, batch) for batch in batches)


def _read_ahead(read: _ReadStep, steps: range, workers: int) -> Iterator[dict]:
    """This process's rows of consecutive steps, read in threads or worker processes."""
    import grain  # a third of a second, which runs on resident data need not wait for

    rows = grain.MapDataset.range(steps.start, steps.stop).map(read)
    options = grain.ReadOptions(
        num_threads=0 if workers else 4, prefetch_buffer_size=0 if workers else 4
    )
    batches = rows.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags; ours are elsewhere
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=_begin_worker,
        )
    return iter(batches)


def _outliving(read: _ReadStep, steps: range, workers: int) -> Iterator[dict]:
    """`_read_ahead` in worker processes that are replaced when they are stopped, or killed, as by a
    kernel short of memory: what a step reads is a function of the step."""
    # Python's tracker of what workers share deletes it when they are killed; it need not say so.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    step = steps.start
    for restart in itertools.count():
        try:
            for batch in _watched(_read_ahead(read, range(step, steps.stop), workers)):
                yield batch
                step += 1
            return
        except (RuntimeError, AssertionError) as error:
            if not re.search(KILLED, str(error)):
                raise
            for pid in workers_of(os.getpid()):  # all read anew
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            code = re.search(r"exit code (-?\d+)", str(error))
            reason = f"exit code {code[1]}" if code else "killed as it started"
            if full := full_place("/dev/shm"):
                reason += f"; {full} is full, through which workers hand over their batches"
            if restart == RESTARTS:
                raise processes.Lost(
                    f"a data worker ended {restart + 1} times before step {step + 1} ({reason}); "
                    "lower config.data.workers if memory is short"
                ) from error
            logging.warning("a data worker ended (%s): started again at step %d", reason, step + 1)


def _watched(batches: Iterator[dict]) -> Iterator[dict]:
    """The same batches, fetched by a thread, so that a worker that was stopped is noticed: it is
    killed, which raises here."""
    fetched: queue.Queue = queue.Queue(maxsize=1)
    ended = threading.Event()

    def put(item) -> None:
        while not ended.is_set():
            with contextlib.suppress(queue.Full):
                fetched.put(item, timeout=0.5)
                return

    def fetch() -> None:
        try:
            for batch in batches:
                put((batch, None))
                if ended.is_set():
                    return
            put((None, None))
        except Exception as error:
            put((None, error))

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    try:
        while True:
            try:
                batch, error = fetched.get(timeout=STOPPED_SECONDS)
            except queue.Empty:
                ending.now_busy("waiting for the data workers")
                multiprocessing.active_children()  # buries those that ended: grain notices
                for pid, state in workers_of(os.getpid()).items():
                    if state in ("T", "t"):
                        os.kill(pid, signal.SIGKILL)
                    elif state == "Z":  # killed as it started: the thread waits for it for ever
                        os.waitpid(pid, 0)
                        raise RuntimeError("a worker was killed as it started") from None
                continue
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        ended.set()


def workers_of(process: int) -> dict[int, str]:
    """{process: its state} of the processes that a process has spawned, as in proc(5); none where
    there is no /proc."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            spawned = state == "Z" or b"multiprocessing.spawn" in (folder / "cmdline").read_bytes()
            if int(parent) == process and spawned:
                found[int(folder.name)] = state
    return found


def prefetch(batches: Iterator[dict], depth: int = 2) -> Iterator[dict]:
    """Yields the same batches, with the host-to-device copies of the next `depth - 1` in flight."""
    queue: deque = deque()
    for batch in batches:
        queue.append(batch)
        if len(queue) >= depth:
            yield queue.popleft()
    yield from queue


def eval_batches(source: Source, batch_size: int, layout: mesh.Layout) -> Iterator[dict]:
    """Global batches over a finite set, in its own order; the last is padded with `valid` = 0."""
    local = mesh.local_rows(layout, batch_size)

    def read(start):
        rows = start + local.astype(np.int64)
        valid = rows < source.size
        rows = np.where(valid, rows, 0).astype(np.uint32)
        batch = source.read(rows) | {"index": rows, "valid": valid.astype(np.float32)}
        return mesh.to_global(layout, batch_size, batch)

    return prefetch(read(start) for start in range(0, source.size, batch_size))
