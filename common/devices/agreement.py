"""Agreement among the processes of a run: gathers small values, compares them, shares errors.

With one process, everything here is a plain function call.
"""

import contextlib
import itertools
import json

import jax
from jax._src import distributed  # the client has no public name; Orbax uses it as well

from common.devices import ending
from common.errors import BadInput, require

MOST_NAMED = 4  # differences named in one message


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
    if place()[1] == 1:
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


def gather(value, what: str = "") -> list:
    """A small JSON-serialisable value from each process, in process order. All must call it.

    The values go through jax's coordination service, not through devices: processes that do not
    even have the same devices can find out here. Each waits for the slowest.

    Args:
      value: this process's.
      what: what the others are waited for to do, for people.
    """
    own, count = place()
    if count == 1:
        return [value]
    client, number = distributed.global_state.client, next(_CALLS)
    client.key_value_set(f"touchstone/{number}/{own}", json.dumps(value))
    if number > 1:  # all have read what came before the last
        client.key_value_delete(f"touchstone/{number - 2}/{own}")
    values = []
    for process in range(count):
        with ending.busy(f"waiting for process {process} of {count} {what}".strip()):
            values.append(json.loads(_value(client, f"touchstone/{number}/{process}")))
    return values


def place() -> tuple[int, int]:
    """(index of this process, number of processes), without asking for their devices."""
    state = distributed.global_state
    return (0, 1) if state.client is None else (state.process_id, state.num_processes)


_CALLS = itertools.count()  # the n-th call of one process belongs to the n-th of every other


def _value(client, key: str) -> str:
    """The value of a key, once it is there. A process that has ended ends this one by itself
    (`processes`)."""
    while True:
        try:
            return client.blocking_key_value_get(key, 5000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def require_same(facts: dict[str, str], what: str) -> None:
    """Raises `BadInput` in all processes, naming what differs and where, unless all of them give
    the same facts.

    Args:
      facts: {name: value}.
      what: what should have been the same, for the message.
    """
    everybody = gather(facts)
    # What another value of a key adds or takes away (an optimizer's own keys) comes after that key.
    absent = lambda name: any(name not in own for own in everybody)
    names = sorted({name for own in everybody for name in own}, key=lambda n: (absent(n), n))
    differ = []
    for name in names:
        groups: dict[str, list[int]] = {}
        for process, own in enumerate(everybody):
            groups.setdefault(own.get(name, "not there"), []).append(process)
        if len(groups) > 1:
            differ.append(f"{name} is {', '.join(_on(v, ps) for v, ps in groups.items())}")
    more = f"; and {len(differ) - MOST_NAMED} more differ" if len(differ) > MOST_NAMED else ""
    require(
        not differ,
        f"the processes of this run differ: {'; '.join(differ[:MOST_NAMED])}{more}; {what}",
    )


def _on(value: str, processes: list[int]) -> str:
    shown = value if len(value) <= 80 else f"{value[:80]}…"
    numbers = ", ".join(map(str, processes[:8])) + (", …" if len(processes) > 8 else "")
    return f"{shown} on process{'es' if len(processes) > 1 else ''} {numbers}"
