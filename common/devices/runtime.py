"""A run's machine: the compilation cache, memory, profiles, device facts."""

import contextlib
import ctypes
import logging
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata

import jax
from jax.experimental.compilation_cache import compilation_cache

from common import imports, inputs
from common.devices import code, processes
from common.errors import brief, require
from common.task import MOST_STEPS

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
MOST_CPU_DEVICES = 4096  # of a simulated pod, and then some
M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX = -4, -1, -8  # mallopt(3)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml_collections", "numpy")


def start(
    *,
    deterministic: bool = False,
    cache: str = "",
    profile: str = "",
    cpu_devices: int | None = None,
) -> None:
    """Configures jax and joins the run's other processes, if any (`processes.join`).

    Call it before the first computation.

    Args:
      deterministic: on GPU, use only kernels with bitwise reproducible results (slower).
      cache: the folder for compiled programs; "" is JAX_COMPILATION_CACHE_DIR if it is set, else
        `~/.cache/touchstone`; "none" disables the cache.
      profile: the steps to profile into WORKDIR/profile, as "10:20" for 10 to 19; "" is none. To
        look at it: `pip install xprof`, `xprof --logdir WORKDIR/profile`.
      cpu_devices: number of devices to divide a CPU into, for the mesh to split work over. XLA's
        convolutions use one core per device, so one device per core speeds them up; matrix products
        use all cores regardless. None is one, or JAX_NUM_CPU_DEVICES, which takes precedence.

    Raises:
      BadInput: for a value out of range.
      Lost: if another process does not appear.
    """
    profiled(profile)
    require(
        cpu_devices is None or 0 < cpu_devices <= MOST_CPU_DEVICES,
        f"config.runtime.cpu_devices: {cpu_devices} is not in 1 to {MOST_CPU_DEVICES}",
    )
    if cache not in ("", "none"):
        inputs.folder("config.runtime.cache", os.path.expanduser(cache), missing=True)
    started = imports.jax_has_started()
    if started:
        _say_unheeded(deterministic, cpu_devices)
    if cpu_devices is not None and "JAX_NUM_CPU_DEVICES" not in os.environ and not started:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if deterministic and not started and DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}"
    before = jax.config.jax_compilation_cache_dir
    if cache == "none":
        jax.config.update("jax_compilation_cache_dir", None)
    elif cache or not before:
        folder = cache or pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "touchstone"
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if started and jax.config.jax_compilation_cache_dir != before:
        compilation_cache.reset_cache()  # it stays with the folder of the first program otherwise
    _allocator(M_ARENA_MAX, 1)  # for the threads that XLA starts with the backend
    processes.join()
    if jax.default_backend() == "cpu":
        # XLA allocates a step's memory anew each time. glibc would map it and return it to the
        # system, and touching it again costs a page fault every 4 KiB: a third of the time of a
        # BERT step. Keeping it takes up to 1.6 times as much memory.
        _allocator(M_MMAP_MAX, 0)
        _allocator(M_TRIM_THRESHOLD, -1)
    else:
        _allocator(M_ARENA_MAX, 0)


def _say_unheeded(deterministic: bool, cpu_devices: int | None) -> None:
    """Warns of keys that come too late: jax, which runs already, read them as it started."""
    platform, count = jax.default_backend(), jax.local_device_count()
    late = "JAX, which runs already in this process, heeds it only as it starts: restart Python"
    divides = platform == "cpu" and "JAX_NUM_CPU_DEVICES" not in os.environ
    if divides and cpu_devices not in (None, count):
        text = "config.runtime.cpu_devices: %d, but the CPU is %d; %s (the kernel of a notebook)"
        logging.warning(text, cpu_devices, count, late)
    if platform == "gpu" and deterministic and DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        text = "config.runtime.deterministic: %s (the kernel of a notebook), with XLA_FLAGS=%s"
        logging.warning(text, late, DETERMINISTIC)


def _allocator(setting: int, value: int) -> None:
    """Sets a parameter of glibc's malloc, see mallopt(3); without glibc, a no-op."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(setting, value)


def is_main() -> bool:
    """Whether this process writes logs and results."""
    return jax.process_index() == 0


def profiled(text: str) -> range:
    """Parses '10:20' as steps 10 to 19, '' as none. Raises `BadInput` for anything else."""
    if not text:
        return range(0)
    matched = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", text)
    require(
        matched is not None,
        f"config.runtime.profile: {brief(text)}; write the steps as '10:20'",
    )
    first, last = int(matched[1]), int(matched[2])
    require(first < last, f"config.runtime.profile: {text!r} holds no step")
    require(last <= MOST_STEPS, f"config.runtime.profile: no run has {last:,} steps")
    steps = range(first, last)
    return steps


def versions(modules: Iterable[str] = ()) -> dict:
    """The part of `environment` that is known before any device: Python, packages and code."""
    return {
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "code": code.digests(modules),
    }


def environment(modules: Iterable[str] = ()) -> dict:
    """Everything that a result may depend on: commit, versions, code, devices, command line.

    Args:
      modules: import paths of the user's own modules, see `code.digests`.
    """

    def git(*args):
        root = pathlib.Path(__file__).parent
        process = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True)
        return process.stdout.strip() if process.returncode == 0 else ""

    commit = ""
    with contextlib.suppress(OSError):
        commit = git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", "-uno") else ""
        )
    device = jax.devices()[0]
    return {
        "commit": commit,
        "command": sys.argv,
        **versions(modules),
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "host": {"machine": platform.machine(), "cores": os.cpu_count()},
        "flags": {k: os.environ[k] for k in ("XLA_FLAGS", "JAX_PLATFORMS") if k in os.environ},
    }
