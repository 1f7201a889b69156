"""The other processes of a run: how they find each other, and end together.

The same command, started on every host of a TPU slice, by `srun`, by `mpirun` or as the pods of an
indexed Kubernetes Job (a JobSet is made of them), joins the others by itself; elsewhere three
settings say where process 0 is, how many there are and which one this is (`join`). All of them do
every step together, so none can go on without the others:

- SIGTERM, or Ctrl-C, on any of them saves on all, and all exit with 75 (`runtime.PREEMPTED`).
- One that fails says why; the others repeat it, and all exit with its code.
- One that is gone (killed, out of memory) ends the others with `LOST`, at once and in one line:
  each holds a connection to process 0, and that one to all (`_Lines`).
- Where no connection tells (a host vanished, the network lets none through), jax does: heartbeats,
  which native threads send, are missed after `HEARTBEAT_SECONDS`, those of process 0 sooner. Jax
  prints what it knows, many lines, and aborts; the exit code is `LOST` all the same. Now and then
  it is also the first to notice that process 0 was killed.

A native crash (SIGABRT) has the code `LOST`, too. The newest checkpoint is kept in each case; start
all processes again.
"""

import atexit
import contextlib
import ctypes
import importlib.util
import json
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from common.errors import require

LOST = int(signal.SIGABRT)  # 6, an exit code: another process is gone: start all of them again
FAILED = ("1", "2")  # exit codes that the others take over
JOIN_SECONDS = 180  # how long processes wait for each other at the start
HEARTBEAT_SECONDS = 20  # a process that was silent for so long is gone
LEAVE_SECONDS = 2  # what a process gets to say of itself why it ends, once another one has ended
METHODS = {"said": "deactivate", "slurm": "slurm", "ompi": "ompi"}  # jax's names; else it looks
GONE = r"(?i)gloo|nccl|connection|coordination|barrier|heartbeat|unavailable|deadline|socket|peer"


class Lost(Exception):
    """Another process of the run is gone, or never came."""


def join() -> None:
    """Joins the other processes of the run, if there are any.

    Where this process has a place among others is found in the environment: TPU hosts, SLURM,
    Open MPI, Kubernetes (see `_found`). Settings of one's own come first: JAX_COORDINATOR_ADDRESS,
    the HOST:PORT at which process 0 is to listen, JAX_NUM_PROCESSES and JAX_PROCESS_ID (the command
    lines have them as flags, too: `cli.add_place`); JAX_NUM_PROCESSES=1 says that this one is
    alone, whatever is found. Does nothing if the processes are joined.

    Raises:
      BadInput: if the settings make no sense.
      Lost: if the others cannot be found. Where they do not come within `JOIN_SECONDS`, the process
        says so in a line and exits with `LOST`: jax would abort.
    """
    if jax.distributed.is_initialized():
        return
    found = places(os.environ)
    if found is None:
        return
    where = found.get("coordinator_address", "found by what started them")
    if found.get("process_id") == 0 and "coordinator_address" in found:
        _require_free(found["coordinator_address"])
    if jax.config.jax_cpu_collectives_implementation is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # What aborts is jax, and then another process is gone: with an exit code to rely on.
    libc = ctypes.CDLL(None)
    libc.signal(int(signal.SIGABRT), ctypes.cast(libc._exit, ctypes.c_void_p))
    with _patience(where):
        try:
            jax.distributed.initialize(
                **found,
                initialization_timeout=JOIN_SECONDS + 60,  # ours comes first
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
            _LINES.open((found.get("coordinator_address") or "").rpartition(":")[0])
        except Exception as error:  # of any kind: jax asks launchers, name and metadata servers
            what = f"{type(error).__name__}: {_first_line(error)}"
            raise Lost(f"cannot join the other processes ({where}): {what}") from error


@contextlib.contextmanager
def _patience(where: str):
    """Says what is waited for, and ends the process when it has taken too long."""
    came = threading.Event()

    def watch():
        if came.wait(10):
            return
        print(f"waiting for the other processes of the run ({where})", file=sys.stderr, flush=True)
        if not came.wait(JOIN_SECONDS - 10):
            what = f"no answer from the other processes ({where}) in {JOIN_SECONDS} s"
            print(f"error: {what}; start all of them again", file=sys.stderr, flush=True)
            os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        came.set()


def _require_free(address: str) -> None:
    """Raises `Lost` if nothing can listen at the port of HOST:PORT: jax would crash."""
    port = int(address.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            raise Lost(f"{address}, for process 0 to listen, is not free ({error})") from error


def places(env: Mapping[str, str]) -> dict | None:
    """What to tell `jax.distributed.initialize`; None where this process is alone.

    Args:
      env: the environment.

    Raises:
      BadInput: if the settings make no sense, or leave open what cannot be found.
    """
    address, count, number = (
        env.get(name) for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    )
    count, number = _whole("processes", count), _whole("process", number)
    if count is not None:
        require(count >= 1, f"processes: at least 1, got {count}")
        last = count - 1
        require(number is None or 0 <= number <= last, f"process: 0 to {last}, got {number}")
        if count == 1:
            return None
    if address is not None:
        _, colon, port = address.rpartition(":")
        good = colon and port.isdecimal() and 0 < int(port) < 2**16
        require(good, f"coordinator: {address!r}; write HOST:PORT, of process 0")
    said = {"coordinator_address": address, "num_processes": count, "process_id": number}
    said = {key: value for key, value in said.items() if value is not None}
    found = "said" if len(said) == 3 else _found(env)
    require(
        found is not None or not said,
        "of several processes each needs --coordinator HOST:PORT, --processes N and --process I; "
        f"known is {', '.join(f'{key}={value}' for key, value in said.items())}",
    )
    if found is None:
        return None
    if found in METHODS:
        said["cluster_detection_method"] = METHODS[found]
    if found in ("slurm", "ompi") and _has_own_gpus(env):
        said["local_device_ids"] = []  # all of them
    return said


def _whole(name: str, text: str | None) -> int | None:
    require(text is None or text.isdecimal(), f"{name}: a whole number, got {text!r}")
    return None if text is None else int(text)


def _found(env: Mapping[str, str]) -> str | None:
    """What started this process together with others: "slurm", "ompi", "tpu", "k8s"; None if it
    is alone: on a laptop, in a shell of a SLURM allocation, on the one host of a small TPU slice.

    Raises:
      BadInput: if there are others, and jax cannot find them.
    """
    if int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        require(
            "OMPI_MCA_orte_hnp_uri" in env,
            "this Open MPI does not tell where process 0 is: give --coordinator HOST:PORT "
            "--processes $OMPI_COMM_WORLD_SIZE --process $OMPI_COMM_WORLD_RANK",
        )
        return "ompi"
    slurm = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
    # Of the step: a shell in an allocation of many tasks is a step of one.
    tasks = env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1"))
    if all(f"SLURM_{name}" in env for name in slurm) and int(tasks) > 1:
        return "slurm"
    if _tpu_hosts(env) > 1:
        return "tpu"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        require(
            importlib.util.find_spec("kubernetes") is not None,
            "this pod is one of an indexed Job: pip install 'jax[k8s]' for it to find the others, "
            "or give --processes 1 if it is alone",
        )
        return "k8s"
    return None


def _tpu_hosts(env: Mapping[str, str]) -> int:
    """How many hosts the TPU slices of this run have; 1 if jax is not to use TPUs."""
    if not (jax.config.jax_platforms or "").startswith("tpu"):  # jax sets it where there are any
        return 1
    names = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")  # Kubernetes
    slices = env.get("MEGASCALE_NUM_SLICES")
    if names is None and "TPU_SKIP_MDS_QUERY" not in env:
        names = _attribute("worker-network-endpoints")
        told = re.search(r"MEGASCALE_NUM_SLICES: *'?(\d+)", _attribute("tpu-env"))
        slices = slices or (told and told[1])
    return len((names or "").split(",")) * int(slices or 1)


def _attribute(name: str) -> str:
    """What a TPU VM is told about itself; "" if there is no such thing."""
    request = urllib.request.Request(
        f"http://{os.environ.get('GCE_METADATA_IP', 'metadata.google.internal')}"
        f"/computeMetadata/v1/instance/attributes/{name}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def _has_own_gpus(env: Mapping[str, str]) -> bool:
    """Whether a process of SLURM or Open MPI is to use all the GPUs that it sees, since it is alone
    on its host or shown one only. If not, jax lets the first process there use the first GPU, …"""
    each = env.get("SLURM_STEP_TASKS_PER_NODE", ""), env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
    alone = any(re.fullmatch(r"1(\(x\d+\))?", tasks) for tasks in each)
    shown = env.get("CUDA_VISIBLE_DEVICES", "")
    return "JAX_LOCAL_DEVICE_IDS" not in env and (alone or (shown != "" and "," not in shown))


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]


# ---------------------------------------------------------------------------------- ending together


class _Lines:
    """The connections on which processes hear that another one ends: from process 0 to each.

    A line of text says why; an end without one says that the process was killed.
    """

    def __init__(self):
        self._number = 0
        self._lines: dict[int, socket.socket] = {}
        self._heard = ""
        self._ending = threading.Lock()

    def open(self, host: str) -> None:
        """Connects all processes, which all call it; what cannot connect goes without."""
        self._number = jax.process_index()
        told, server = {}, None
        if self._number == 0:
            server = socket.create_server(("", 0))
            told = {"host": host or _own_address(), "port": server.getsockname()[1]}
            told["key"] = secrets.token_hex(8)
        told = json.loads(_broadcast(json.dumps(told)))
        atexit.register(self.tell, "bye")
        if server is not None:
            _in_background(self._accept, server, told["key"])
            return
        try:
            line = socket.create_connection((told["host"], told["port"]), timeout=10)
            line.settimeout(None)
            line.sendall(f"{told['key']} {self._number}\n".encode())
        except OSError as error:
            logging.warning("no line to process 0 (%s): its end is noticed later", error)
            return
        self._lines[0] = line
        _in_background(self._hear, 0, line.makefile(encoding="utf-8", errors="replace"))

    def _accept(self, server: socket.socket, key: str) -> None:
        while len(self._lines) < jax.process_count() - 1:
            line, _ = server.accept()
            _in_background(self._greet, line, key)

    def _greet(self, line: socket.socket, key: str) -> None:
        file = line.makefile(encoding="utf-8", errors="replace")
        words = file.readline().split()
        if len(words) == 2 and words[0] == key:
            self._lines[int(words[1])] = line
            self._hear(int(words[1]), file)

    def _hear(self, number: int, file) -> None:
        """Listens to one process until it ends; ends this one if that was no proper end."""
        try:
            text = file.readline().strip()
        except OSError:
            text = ""
        if text != "bye":
            self._heard = self._heard or text
            self.end(text or f"{LOST} process {number} is gone", LEAVE_SECONDS if text else 0)

    def tell(self, text: str) -> None:
        """Sends a line to whom there is a connection."""
        for line in list(self._lines.values()):
            with contextlib.suppress(OSError):
                line.sendall(f"{text}\n".encode())

    def end(self, text: str, wait: float) -> None:
        """Ends this process because of another one, unless it ends by itself before.

        Args:
          text: that one's exit code, and what it said.
          wait: seconds for it to say something itself.
        """
        if self._number == 0:
            self.tell(text)
        time.sleep(wait)
        if self._ending.acquire(blocking=False):
            code, _, said = (self._heard or text).partition(" ")
            what = f"another process of this run ended: {said}; the newest checkpoint is kept"
            # What failed there would fail again: that is for a person to mend.
            code = int(code) if code in FAILED else LOST
            again = "" if code != LOST else "; start all processes again"
            print(f"error: {what}{again}", file=sys.stderr, flush=True)
            self._exit(code)

    def leave(self, code: int, text: str) -> None:
        """Ends this process because of itself."""
        with self._ending:
            self.tell(f"{code} process {self._number}: {text}"[:500].replace("\n", " "))
            self._exit(code)

    def _exit(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if self._number == 0:  # jax aborts the others when process 0 is gone: they go first
            time.sleep(2 * LEAVE_SECONDS)
        os._exit(code)


_LINES = _Lines()


def leave(code: int, why: str) -> None:
    """Ends this process, which failed, and tells the others why; never returns.

    An ordinary exit would wait for them at a barrier of jax.
    """
    _LINES.leave(code, why)


def give_up(error: BaseException) -> None:
    """Ends this process after an error for which `is_lost`; never returns."""
    time.sleep(1)  # a line may know better which process it was
    _LINES.end(f"{LOST} {_first_line(error)}", 0)
    threading.Event().wait()  # another thread ends it


def is_lost(error: BaseException | None) -> bool:
    """Whether an error comes from another process of the run being gone: what collectives and
    barriers raise then."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, jax.errors.JaxRuntimeError) and re.search(GONE, str(error)):
            return jax.distributed.is_initialized()
        error = error.__cause__ or error.__context__
    return False


def _in_background(function, *args) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()


def _broadcast(text: str) -> str:
    """The text of process 0, in all."""
    padded = np.frombuffer(text.encode().ljust(512), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).decode().strip()


def _own_address() -> str:
    """The address by which other hosts know this one, as far as its routes tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of no host; nothing is sent
            return probe.getsockname()[0]
        except OSError:
            return "localhost"
