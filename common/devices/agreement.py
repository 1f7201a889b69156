"""What the processes of a run agree on: small values gathered from all, errors shared by all.

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
    """A part of the work that every process does for itself: if it fails in one, it fails in all.

    Every process of the run must enter it. With one process it does nothing.

    Args:
      kinds: exceptions, besides `BadInput` and `OSError`, that keep their type in other processes.

    Raises:
      The process's own error if it has one; elsewhere the error of another process, `RuntimeError`
      in place of types that are not among `kinds`.
    """
    error = None
    try:
        yield
    except Exception as found:
        error = found
    if jax.process_count() == 1:
        if error is not None:
            raise error
        return
    said = gather(None if error is None else _spell(error))
    if error is not None:
        raise error
    for other, words in enumerate(said):
        if words is not None:
            raise _unspell(kinds, other, *words)


def _spell(error: Exception) -> list:
    if isinstance(error, OSError) and error.errno:
        return ["OSError", error.errno, error.strerror, str(error.filename)]
    return [type(error).__name__, str(error)]


def _unspell(kinds: tuple, process: int, kind: str, *words) -> Exception:
    known = {cls.__name__: cls for cls in (OSError, BadInput, *kinds)}
    if kind in known:
        return known[kind](*words)
    return RuntimeError(f"process {process}: {kind}: {' '.join(map(str, words))}")


def gather(value) -> list:
    """A small value that JSON can say from each process, in their order. All must call it."""
    if jax.process_count() == 1:
        return [value]
    raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(raw.size))).reshape(-1)
    padded = np.full(sizes.max(), ord(" "), np.uint8)
    padded[: raw.size] = raw
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]
