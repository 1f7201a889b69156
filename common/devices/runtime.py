"""The machine around a run: preemption, the compilation cache, profiles, device facts."""

import contextlib
import ctypes
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
from importlib import metadata

import jax
from jax.experimental import multihost_utils

from common.devices import processes
from common.errors import require

PREEMPTED = 75  # EX_TEMPFAIL: run the same command again
M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX = -4, -1, -8  # of mallopt(3)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml_collections", "numpy")


def start(
    *,
    deterministic: bool = False,
    cache: str = "",
    profile: str = "",
    cpu_devices: int | None = None,
) -> None:
    """Prepares jax; call it before the first computation.

    Args:
      deterministic: on GPU, only kernels whose results are the same bits each time (slower).
      cache: the folder of compiled programs; "" is JAX_COMPILATION_CACHE_DIR if it is set, else
        `~/.cache/touchstone`; "none" keeps none.
      profile: the steps to profile, as "10:20", into WORKDIR/profile; "" is none (see `profiled`).
      cpu_devices: devices to make of a CPU, among which the mesh divides the work. XLA's
        convolutions take one core of a device each, so with a device a core they are faster; matrix
        products use all cores anyhow. None is one, or JAX_NUM_CPU_DEVICES, which goes before it.

    Joins the other processes of the run if there are any; see `processes.join`.

    Raises:
      BadInput: for a value out of range.
      Lost: if another process is not there.
    """
    profiled(profile)
    require(
        cpu_devices is None or cpu_devices > 0,
        f"config.runtime.cpu_devices: {cpu_devices} is not positive",
    )
    if cpu_devices is not None and "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # a second run in this process: they are made
            jax.config.update("jax_num_cpu_devices", cpu_devices)
    if deterministic:
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
        )
    if cache == "none":
        jax.config.update("jax_compilation_cache_dir", None)
    elif cache or not jax.config.jax_compilation_cache_dir:
        folder = cache or pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "touchstone"
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    _allocator(M_ARENA_MAX, 1)  # of threads that XLA begins with the backend
    processes.join()
    if jax.default_backend() == "cpu":
        # XLA allocates the memory of a step anew each time. glibc would map it and give it back,
        # and to touch it again costs a page fault every 4 KiB: a third of the time of a BERT's
        # step. Kept, it is up to 1.6 times as much.
        _allocator(M_MMAP_MAX, 0)
        _allocator(M_TRIM_THRESHOLD, -1)
    else:
        _allocator(M_ARENA_MAX, 0)


def _allocator(setting: int, value: int) -> None:
    """Sets something of glibc's malloc, see mallopt(3); elsewhere does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(setting, value)


def is_main() -> bool:
    """Whether this process writes logs and results."""
    return jax.process_index() == 0


def profiled(text: str) -> range:
    """'10:20' as the steps 10 to 19, '' as none. Raises `BadInput` for anything else."""
    if not text:
        return range(0)
    matched = re.fullmatch(r"(\d+):(\d+)", text)
    require(matched is not None, f"config.runtime.profile: {text!r}; write the steps as '10:20'")
    steps = range(int(matched[1]), int(matched[2]))
    require(len(steps) > 0, f"config.runtime.profile: {text!r} holds no step")
    return steps


class Told:
    """Whether this process was told to end, by SIGTERM or SIGINT.

    SIGTERM may come again and again, as it does where one parent after the other ends (prctl(2),
    PR_SET_PDEATHSIG); a second SIGINT is an interrupt. Use as a context manager; the old handlers
    come back behind it.

    Attributes:
      signal: the last one, or None.
    """

    _numbers = signal.SIGTERM, signal.SIGINT

    def __init__(self):
        self.signal: int | None = None
        self._old: dict = {}

    def __enter__(self):
        for number in self._numbers:
            with contextlib.suppress(ValueError):  # not the main thread: leave signals alone
                self._old[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _notice(self, number, _frame):
        self.signal = number
        if number == signal.SIGINT:
            signal.signal(number, self._old[number])


class Preemption(Told):
    """`Told` as a question asked between steps. With several processes SIGTERM is jax's, which
    tells all of them, and SIGINT is passed on as one."""

    def __enter__(self):
        self._numbers = Told._numbers[1:] if jax.process_count() > 1 else Told._numbers
        self._asked = 0
        return super().__enter__()

    def _notice(self, number, frame):
        super()._notice(number, frame)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def noticed(self) -> bool:
        """Whether to save and leave now; with several processes all get the same answer to the
        same question, counted from the first."""
        self._asked += 1
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self.signal is not None


def environment() -> dict:
    """What a result may depend on: commit, versions, devices, command line."""

    def git(*words):
        root = pathlib.Path(__file__).parent
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = ""
    with contextlib.suppress(OSError):
        commit = git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", "-uno") else ""
        )
    device = jax.devices()[0]
    return {
        "commit": commit,
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "host": {"machine": platform.machine(), "cores": os.cpu_count()},
        "flags": {k: os.environ[k] for k in ("XLA_FLAGS", "JAX_PLATFORMS") if k in os.environ},
    }
