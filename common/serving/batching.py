"""Requests of many clients as batches of one model: a queue, and the thread that computes.

    batcher = Batcher(loaded, options)
    future = batcher.submit([batcher.fitted(row)], finish)      # from any thread
    batcher.compile(); batcher.run(stop)        # in the thread that computes

Rows of the same shapes are batched, oldest first, as many as have come when the oldest has waited
for `latency` seconds, or as soon as a batch is full. Batches have a few sizes, powers of two, and
no padding rows: those left over open the next batch. So with all lengths in buckets there are few
programs, and all of them can be compiled before the first request. They are timed then: where a row
of a larger batch costs no less, as long texts on a CPU, batches stay small.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np

from common import predict
from common.errors import BadInput, require
from common.task import Predictor

IDLE_SECONDS = 0.1  # between two looks at `stop`, at most
LONGEST = 512  # positions, of models without a limit of their own
TIMED_SECONDS = 0.2  # of one program, over three runs at most
GAIN = 0.95  # of a row's time, that makes a larger batch worth trying on
NEAR = 1.1  # of the least time of a row, to which the smallest batch is preferred


# ------------------------------------------------------------------------------------------ shapes


def example(predictor: Predictor, words: int = 1) -> Any:
    """An input with which a predictor can be tried: a picture, or one or two texts of so many
    words."""
    if predictor.suffixes:
        return np.zeros((32, 32, 3), np.uint8)
    text = " ".join(["[MASK]", *["a"] * words])
    needed = [name for name in predictor.columns if name not in predictor.optional]
    return text if len(needed) < 2 else dict.fromkeys(needed, text)


def longest_of(predictor: Predictor, options: dict, most: int | None = None) -> int:
    """The most positions of a row: `most`, or fewer if the model has fewer, or its texts are cut or
    divided earlier."""
    longest = min(most or LONGEST, predictor.longest or LONGEST)
    try:
        rows = predictor.read(example(predictor, 4 * longest), options)
    except BadInput:  # it is too long
        return longest
    return min(longest, max(map(_length, rows, itertools.repeat(predictor)), default=longest))


def _length(row: dict, predictor: Predictor) -> int:
    return max((len(row[name]) for name in predictor.pads if name in row), default=0)


def fitted(predictor: Predictor, row: dict, longest: int) -> dict[str, np.ndarray]:
    """A row's arrays, padded to one bucket: that of the longest of them, or, where they vary beside
    it and are short, such as the places of masks, to the least.

    Raises:
      BadInput: if it has more positions than `longest`.
    """
    length = _length(row, predictor)
    require(length <= longest, f"{length} positions, and the server takes {longest} at most")
    return _padded(predictor, row, _sizes(predictor, row, predict.bucket(length, longest)))


def _sizes(predictor: Predictor, row: dict, size: int) -> dict[str, int]:
    least = min(predict.SHORTEST, size)
    names = [name for name in predictor.pads if name in row]
    return {name: size if len(row[name]) > least else least for name in names}


def _padded(predictor: Predictor, row: dict, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(array) for name, array in row.items()}
    for name, size in sizes.items():
        arrays[name] = predict.lengthened(arrays[name][:size], size, predictor.pads[name])
    return arrays


def shapes(predictor: Predictor, options: dict, longest: int) -> list[dict[str, np.ndarray]]:
    """A row of each of the shapes that `fitted` returns."""
    (row, *_) = predictor.read(example(predictor), options)
    length = _length(row, predictor)
    if not length:
        texts = predictor.read("a", options) if predictor.texts else []
        return [_padded(predictor, each, {}) for each in (row, *texts)]
    buckets = sorted({predict.bucket(n, longest) for n in range(1, longest + 1)})
    along = {name for name in predictor.pads if name in row and len(row[name]) == length}
    beside = [name for name in predictor.pads if name in row and name not in along]
    rows = []
    for size in buckets:
        least = min(predict.SHORTEST, size)
        for others in sorted({least, size}) if beside else [size]:
            sizes = dict.fromkeys(along, size) | dict.fromkeys(beside, others)
            rows.append(_padded(predictor, row, sizes))
    return rows


def _shape(row: dict[str, np.ndarray]) -> tuple:
    return tuple(sorted((k, a.shape, a.dtype.str) for k, a in row.items()))


# ------------------------------------------------------------------------------------------- sizes


def gains(times: dict[int, float]) -> bool:
    """Whether batches larger than those tried may pay.

    Args:
      times: {size: seconds of a row}, from the least size. The last two must have gained something.
    """
    tried, latest = [*times.values()][:-2], [*times.values()][-2:]
    return not tried or min(latest) < GAIN * min(tried)


def worthwhile(times: dict[int, float]) -> int:
    """The size of the largest batch that pays: the smallest with nearly the least time of a row."""
    least = min(times.values())
    return min(size for size, seconds in times.items() if seconds <= NEAR * least)


# ------------------------------------------------------------------------------------------- queue


@dataclasses.dataclass(eq=False)
class _Job:
    """The rows of an input; its future is done when all of their outputs are there."""

    index: int
    options: dict
    finish: Callable
    future: concurrent.futures.Future
    since: float
    outputs: list
    left: int
    begun: bool = False


class Batcher:
    """The queue, and what empties it; see the module's docstring.

    Attributes:
      observe: called with the number of rows and the seconds of each batch.
      longest: the most positions of a row.
    """

    def __init__(
        self,
        loaded: predict.Loaded,
        options: dict,
        batch: int = predict.BATCH,
        latency: float = 0.005,
        longest: int | None = None,
    ):
        """Args:
        loaded: the model.
        options: of its predictions, checked, for which `compile` compiles.
        batch: the most rows of a batch, for each device.
        latency: seconds that a row waits for others, at most.
        longest: the most positions of a row; None is as `longest_of`.
        """
        self._loaded, self._options = loaded, options
        self._most, self._latency = batch * loaded.ways, latency
        self.longest = longest_of(loaded.predictor, options, longest)
        self.observe: Callable[[int, float], None] = lambda rows, seconds: None
        self._changed = threading.Condition()
        self._groups: dict[tuple, collections.deque] = {}
        self._largest: dict[tuple, int] = {}  # by shape, once it is timed
        self._results = concurrent.futures.ThreadPoolExecutor(1, "results")

    def sizes(self) -> list[int]:
        """The sizes of batches, from the least."""
        ways, sizes = self._loaded.ways, []
        while not sizes or 2 * sizes[-1] <= self._most:
            sizes.append(2 * sizes[-1] if sizes else ways)
        return sizes

    def waiting(self) -> int:
        """The number of rows that wait."""
        with self._changed:
            return sum(map(len, self._groups.values()))

    def fitted(self, row: dict) -> dict[str, np.ndarray]:
        """A row of `Predictor.read` as `submit` takes it; see the function `fitted`."""
        return fitted(self._loaded.predictor, row, self.longest)

    def submit(
        self,
        rows: list[dict],
        finish: Callable[[list[dict]], Any],
        options: dict | None = None,
        kind: Hashable = None,
        index: int = 0,
    ) -> concurrent.futures.Future:
        """The future of `finish(outputs)`, which is called by a thread of its own, with the outputs
        {name: array} of each row. A future that is cancelled in time costs nothing.

        Args:
          rows: as `fitted` returns them.
          finish: makes the result of them.
          options: checked, that compile nothing new; None is those of `compile`.
          kind: equal for equal options.
          index: the number of the input, see `Predictor.apply`.
        """
        options = self._options if options is None else options
        future: concurrent.futures.Future = concurrent.futures.Future()
        outputs = [None] * len(rows)
        job = _Job(index, options, finish, future, time.monotonic(), outputs, len(rows))
        if not rows:
            self._results.submit(self._deliver, [job])
        with self._changed:
            for place, row in enumerate(rows):
                group = self._groups.setdefault((_shape(row), kind), collections.deque())
                group.append((job, place, row))
            self._changed.notify()
        return future

    def compile(self, stop: Callable[[], bool] = lambda: False) -> Iterator[tuple[int, int]]:
        """Compiles and times all programs, one a step; yields (how many are done, of how many at
        most). Ends when `stop()` holds."""
        rows = shapes(self._loaded.predictor, self._options, self.longest)
        sizes = self.sizes()
        most = len(rows) * len(sizes)
        for first, row in enumerate(rows):
            times: dict[int, float] = {}
            for size in sizes:
                if stop():
                    return
                yield first * len(sizes) + len(times), most
                times[size] = self._seconds(row, size) / size
                if not gains(times):
                    break
            self._largest[_shape(row)] = worthwhile(times)
        yield most, most

    def _seconds(self, row: dict, size: int) -> float:
        """The time of a batch, at best, once it is compiled."""
        batch = [row] * size, [0] * size, size, self._options
        self._outputs(*batch)
        begun, times = time.monotonic(), []
        while not times or (len(times) < 3 and time.monotonic() < begun + TIMED_SECONDS):
            start = time.perf_counter()
            self._outputs(*batch)
            times.append(time.perf_counter() - start)
        return min(times)

    def run(self, stop: Callable[[], bool]) -> None:
        """Computes until `stop()` holds and nothing waits."""
        while (batch := self._next(stop)) is not None:
            if batch:
                self._compute(batch)

    def close(self) -> None:
        """Ends its threads."""
        self._results.shutdown(wait=True)

    # ----------------------------------------------------------------------------- the thread

    def _next(self, stop: Callable[[], bool]) -> list | None:
        """The next batch, when it is due; None if there will be none. May be empty."""
        with self._changed:
            while True:
                stopping = stop()
                key = self._due(stopping)
                if key is not None:
                    return self._taken(key)
                if stopping:
                    return None
                wait = IDLE_SECONDS
                if self._groups:
                    oldest = min(group[0][0].since for group in self._groups.values())
                    wait = min(max(oldest + self._latency - time.monotonic(), 0), wait)
                self._changed.wait(wait)

    def _due(self, stopping: bool) -> tuple | None:
        """The group of which the next batch is made now, if it is time: the one whose first row has
        waited longest, else any that fills a batch."""
        for key in [key for key, group in self._groups.items() if not group]:
            del self._groups[key]
        if not self._groups:
            return None
        oldest = min(self._groups, key=lambda key: self._groups[key][0][0].since)
        if stopping or time.monotonic() >= self._groups[oldest][0][0].since + self._latency:
            return oldest
        full = lambda key: len(self._groups[key]) >= self._largest.get(key[0], self._most)
        return next(filter(full, self._groups), None)

    def _taken(self, key: tuple) -> list:
        """Takes the rows of a batch from those that wait, and with them those that nobody wants any
        more."""
        group, most = self._groups[key], self._largest.get(key[0], self._most)
        most = min(most, max(len(group), self._loaded.ways))
        count = max(size for size in self.sizes() if size <= most)
        batch: list = []
        while group and len(batch) < count:
            job, place, row = group.popleft()
            if job.future.done():  # it failed, or was cancelled
                continue
            if not job.begun:
                job.begun = job.future.set_running_or_notify_cancel()
            if job.begun:
                batch.append((job, place, row))
        return batch

    def _compute(self, batch: list) -> None:
        jobs, _, rows = zip(*batch, strict=True)
        size = next(size for size in self.sizes() if size >= len(rows))
        begun = time.monotonic()
        try:
            index = [job.index for job in jobs]
            outputs = self._outputs(rows, index, size, jobs[0].options)
        except Exception as error:
            logging.warning("a batch failed: %s: %s", type(error).__name__, str(error)[:200])
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(error)
            return
        self.observe(len(rows), time.monotonic() - begun)
        complete = []
        for i, (job, place, _) in enumerate(batch):
            job.outputs[place] = {name: array[i] for name, array in outputs.items()}
            job.left -= 1
            if not job.left and not job.future.done():
                complete.append(job)
        self._results.submit(self._deliver, complete)

    def _outputs(self, rows, index, size: int, options: dict) -> dict[str, np.ndarray]:
        return jax.device_get(self._loaded.outputs(list(rows), index, size, options))

    def _deliver(self, jobs: list[_Job]) -> None:
        for job in jobs:
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled
                try:
                    result = job.finish(job.outputs)
                except Exception as error:
                    job.future.set_exception(error)
                else:
                    job.future.set_result(result)
