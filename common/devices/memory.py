"""Memory: what a run's state takes, a refusal of one that cannot fit, and places that are full.

An allocation that is far too large may neither fail nor end; arithmetic does at once.
"""

import contextlib
import math
import os
import shutil
from typing import Any

import jax

from common.errors import require

FULL_BYTES = 1 << 20  # a file system with less room than this is full
CGROUP = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"


def capacity(device) -> int | None:
    """Bytes of memory of a device; of the machine, for a CPU. None if unknown."""
    if device.platform != "cpu":
        with contextlib.suppress(Exception):  # whatever a plugin raises that does not know
            return (device.memory_stats() or {}).get("bytes_limit")
        return None
    limits = []
    with contextlib.suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in CGROUP:
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            limits.append(int(file.read()))
    return min(limits, default=None)


def local_bytes(tree_of_arrays: Any) -> int:
    """Bytes of the arrays, or ShapeDtypeStructs with shardings, on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree_of_arrays)
    )


def spelled_bytes(count: float) -> str:
    """1536 as "1.5 KiB"."""
    units = "B", "KiB", "MiB", "GiB", "TiB", "PiB"
    power = next((k for k in range(len(units)) if count < 1024 ** (k + 1)), len(units) - 1)
    return f"{count / 1024**power:.4g} {units[power]}"


def require_fits(state: Any, devices: list, what: str, key: str) -> None:
    """Raises `BadInput`, with the bytes, if `state` alone exceeds the memory of a device.

    Args:
      state: ShapeDtypeStructs with shardings.
      devices: those of this process; the devices of a CPU share its memory.
      what: the state, for the message.
      key: what makes it smaller.
    """
    size, room = local_bytes(state), capacity(devices[0])
    if devices[0].platform == "cpu":
        size *= len(devices)
    where = "this machine has" if devices[0].platform == "cpu" else "the device has"
    require(
        room is None or size <= room,
        f"{what} takes {spelled_bytes(size)}, and {where} {spelled_bytes(room or 0)}: make it "
        f"smaller ({key}), or divide it over more devices (config.mesh)",
    )


def full_place(*places: str) -> str | None:
    """The first of these folders whose file system is full; None if none is."""
    for place in places:
        with contextlib.suppress(OSError):
            if shutil.disk_usage(place).free < FULL_BYTES:
                return place
    return None
