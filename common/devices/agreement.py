"""Agreement among the processes of a run: gathers small values, and shares errors.

With one process, everything here is a plain function call.
"""

import contextlib
import json

import jax
import numpy as np
from jax.experimental import multihost_utils

from common.errors import BadInput


@contextlib.contextmanager
def together(*kinds: type[Exception]):
    """Wraps work that each process does on its own: if it fails in one, it fails in all.

    Every process of the run must enter it. With one process it does nothing.

    Args:
      kinds: exceptions, besides `BadInput` and `OSError`, that keep their type in other processes.

    Raises:
      The process's own error if it has one, otherwise that of another process, as a `RuntimeError`
      if its type is not among `kinds`.
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    if jax.process_count() == 1:
        if error is not None:
            raise error
        return
    errors = gather(None if error is None else _encode(error))
    if error is not None:
        raise error
    for process, encoded in enumerate(errors):
        if encoded is not None:
            raise _decode(kinds, process, *encoded)


def _encode(error: Exception) -> list:
    if isinstance(error, OSError) and error.errno:
        return ["OSError", error.errno, error.strerror, str(error.filename)]
    return [type(error).__name__, str(error)]


def _decode(kinds: tuple, process: int, kind: str, *args) -> Exception:
    classes = {cls.__name__: cls for cls in (OSError, BadInput, *kinds)}
    if kind in classes:
        return classes[kind](*args)
    return RuntimeError(f"process {process}: {kind}: {' '.join(map(str, args))}")


def gather(value) -> list:
    """A small JSON-serialisable value from each process, in process order. All must call it."""
    if jax.process_count() == 1:
        return [value]
    raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(raw.size))).reshape(-1)
    padded = np.full(sizes.max(), ord(" "), np.uint8)
    padded[: raw.size] = raw
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]
