"""The processes of a multi-process run: how they find each other, and end together.

The same command, started on every host of a TPU slice, by `srun`, by `mpirun` or as the pods of an
indexed Kubernetes Job (a JobSet consists of these), joins the others by itself; elsewhere three
settings give the address of process 0, the number of processes and the index of this one (`join`).
All processes execute every step together, so none can continue without the others:

- SIGTERM or Ctrl-C on any process makes all save and exit with 75 (`ending.PREEMPTED`); before the
  first step all end at once.
- A process that fails reports why; the others repeat it, and all exit with its code.
- When a process dies (killed, out of memory), the others exit with `LOST`, at once and with one
  line: each holds a connection to process 0, which relays to all (`_Links`).
- If no connection reports it (a host vanished, or the network blocks them), jax does: it misses the
  heartbeats, sent by native threads, after `HEARTBEAT_SECONDS`, those of process 0 sooner. It
  prints many lines and aborts; the exit code is still `LOST`. Occasionally jax is also the first
  to notice that process 0 was killed.

A native crash (SIGABRT) also exits with `LOST`. The newest checkpoint is kept in each case; start
all processes again.
"""

import atexit
import contextlib
import ctypes
import importlib.util
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

from common import imports
from common.devices import agreement, ending
from common.devices.terminal import say
from common.errors import require

LOST = int(signal.SIGABRT)  # exit code 6: another process is gone; start all of them again
ADOPTED = ("1", "2", *map(str, ending.TOLD))  # exit codes of one that become those of the others
JOIN_SECONDS = 180  # how long processes wait for each other at startup
HEARTBEAT_SECONDS = 20  # a process that is silent for this long is gone
LEAVE_SECONDS = 2  # grace for a process to report its own error once another has ended
METHODS = {"said": "deactivate", "slurm": "slurm", "ompi": "ompi"}  # jax's names; else it detects
GONE = r"(?i)gloo|nccl|connection|coordination|barrier|heartbeat|unavailable|deadline|socket|peer"


class Lost(Exception):
    """Another process of the run is gone, or never appeared."""


def join() -> None:
    """Joins the other processes of the run, if there are any.

    The environment shows whether there are: TPU hosts, SLURM, Open MPI, Kubernetes (see
    `_launcher`). Explicit settings take precedence: JAX_COORDINATOR_ADDRESS, the HOST:PORT at which
    process 0 listens, JAX_NUM_PROCESSES and JAX_PROCESS_ID (also command-line flags:
    `cli.add_place`); JAX_NUM_PROCESSES=1 makes this process run alone in any environment. Does
    nothing if the processes have already joined.

    Raises:
      BadInput: if the settings are inconsistent, or jax has already started.
      Lost: if the others cannot be found. If they do not appear within `JOIN_SECONDS`, the process
        reports that in one line and exits with `LOST`, where jax would abort.
    """
    if jax.distributed.is_initialized():
        return
    arguments = places(os.environ)
    if arguments is None:
        return
    require(
        not imports.jax_has_started(),
        "--config: a file that it is read from computes with jax, before the processes of the run "
        "have joined; use numpy there",
    )
    where = arguments.get("coordinator_address", "found automatically")
    if arguments.get("process_id") == 0 and "coordinator_address" in arguments:
        _require_free(arguments["coordinator_address"])
    if jax.config.jax_cpu_collectives_implementation is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # jax aborts when another process is gone: make that a reliable exit code.
    libc = ctypes.CDLL(None)
    libc.signal(int(signal.SIGABRT), ctypes.cast(libc._exit, ctypes.c_void_p))
    with _join_timeout(where):
        try:
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=JOIN_SECONDS + 60,  # `_join_timeout` expires first
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
            _own_sigterm(libc)
            _LINKS.open((arguments.get("coordinator_address") or "").rpartition(":")[0])
        except Exception as error:  # of any kind: jax asks launchers, name and metadata servers
            reason = f"{type(error).__name__}: {_first_line(error)}"
            raise Lost(f"cannot join the other processes ({where}): {reason}") from error


def _own_sigterm(libc) -> None:
    """Takes SIGTERM back from jax, which would wait with it for the next step, however far that is.
    `ending` hands it on where the run saves first."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    ours = signal.getsignal(signal.SIGTERM)
    theirs = libc.signal(int(signal.SIGTERM), None)
    with contextlib.suppress(ValueError):  # not the main thread: nothing is ours
        signal.signal(signal.SIGTERM, ours)
        if theirs:
            tell = lambda code, text: _LINKS.tell_end(code, text)
            ending.of_several(handler(theirs), tell)
            return
    libc.signal(int(signal.SIGTERM), theirs)


@contextlib.contextmanager
def _join_timeout(where: str):
    """Reports a long wait for the other processes, and ends this one after `JOIN_SECONDS`."""
    joined = threading.Event()

    def watch():
        if joined.wait(10):
            return
        say(f"waiting for the other processes of the run ({where})")
        if not joined.wait(JOIN_SECONDS - 10):
            message = f"no answer from the other processes ({where}) in {JOIN_SECONDS} s"
            say(f"error: {message}; start all of them again")
            os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        joined.set()


def _require_free(address: str) -> None:
    """Raises `Lost` if the port of HOST:PORT is taken, on which jax would crash."""
    port = int(address.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            raise Lost(f"{address}: process 0 cannot listen on this port ({error})") from error


def places(env: Mapping[str, str]) -> dict | None:
    """Arguments for `jax.distributed.initialize`; None if this process is alone.

    Args:
      env: the environment.

    Raises:
      BadInput: if the settings are inconsistent, or omit what the environment does not show.
    """
    address, count, number = (
        env.get(name) for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    )
    count, number = _integer("processes", count), _integer("process", number)
    if count is not None:
        require(count >= 1, f"processes: at least 1, got {count}")
        last = count - 1
        require(number is None or 0 <= number <= last, f"process: 0 to {last}, got {number}")
        if count == 1:
            return None
    if address is not None:
        _, colon, port = address.rpartition(":")
        valid = colon and port.isdecimal() and 0 < int(port) < 2**16
        require(valid, f"coordinator: {address!r}; write HOST:PORT, of process 0")
    arguments = {"coordinator_address": address, "num_processes": count, "process_id": number}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    launcher = "said" if len(arguments) == 3 else _launcher(env)
    require(
        launcher is not None or not arguments,
        "of several processes each needs --coordinator HOST:PORT, --processes N and --process I; "
        f"got only {', '.join(f'{key}={value}' for key, value in arguments.items())}",
    )
    if launcher is None:
        return None
    if launcher in METHODS:
        arguments["cluster_detection_method"] = METHODS[launcher]
    if launcher in ("slurm", "ompi") and _has_own_gpus(env):
        arguments["local_device_ids"] = []  # all of them
    return arguments


def _integer(name: str, text: str | None) -> int | None:
    require(text is None or text.isdecimal(), f"{name}: a whole number, got {text!r}")
    return None if text is None else int(text)


def _launcher(env: Mapping[str, str]) -> str | None:
    """The launcher of this process and others: "slurm", "ompi", "tpu", "k8s"; None if it is alone:
    on a laptop, in a shell of a SLURM allocation, on the only host of a small TPU slice.

    Raises:
      BadInput: if there are others but jax cannot find them.
    """
    if int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        require(
            "OMPI_MCA_orte_hnp_uri" in env,
            "this Open MPI does not show where process 0 is: give --coordinator HOST:PORT "
            "--processes $OMPI_COMM_WORLD_SIZE --process $OMPI_COMM_WORLD_RANK",
        )
        return "ompi"
    slurm = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
    # Count the step's tasks: a shell in an allocation of many tasks is a step of one.
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
    """The number of hosts in the run's TPU slices; 1 if jax does not use TPUs."""
    if not (jax.config.jax_platforms or "").startswith("tpu"):  # jax sets it if there are TPUs
        return 1
    names = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")  # Kubernetes
    slices = env.get("MEGASCALE_NUM_SLICES")
    if names is None and "TPU_SKIP_MDS_QUERY" not in env:
        names = _attribute("worker-network-endpoints")
        matched = re.search(r"MEGASCALE_NUM_SLICES: *'?(\d+)", _attribute("tpu-env"))
        slices = slices or (matched and matched[1])
    return len((names or "").split(",")) * int(slices or 1)


def _attribute(name: str) -> str:
    """A metadata attribute of this TPU VM; "" if it cannot be read."""
    request = urllib.request.Request(
        f"http://{os.environ.get('GCE_METADATA_IP', 'metadata.google.internal')}"
        f"/computeMetadata/v1/instance/attributes/{name}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.read().decode()
    except OSError:
        return ""


def _has_own_gpus(env: Mapping[str, str]) -> bool:
    """Whether a SLURM or Open MPI process should use all the GPUs that it sees: it is alone on its
    host or sees only one. If not, jax gives the host's first process the first GPU, and so on."""
    counts = env.get("SLURM_STEP_TASKS_PER_NODE", ""), env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
    alone = any(re.fullmatch(r"1(\(x\d+\))?", tasks) for tasks in counts)
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    return "JAX_LOCAL_DEVICE_IDS" not in env and (alone or (visible != "" and "," not in visible))


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]


# ---------------------------------------------------------------------------------- ending together


class _Links:
    """Connections between process 0 and each other one, over which they learn that one has ended.

    A line of text gives the reason; end of file without one means that the process was killed.
    """

    def __init__(self):
        self._number, self._count = 0, 1
        self._links: dict[int, socket.socket] = {}
        self._reason = ""
        self._ending = threading.Lock()

    def open(self, host: str) -> None:
        """Connects the processes; all must call it. One that cannot connect goes without."""
        self._number, self._count = agreement.place()
        server_info, server = {}, None
        if self._number == 0:
            server = socket.create_server(("", 0))
            server_info = {"host": host or _own_address(), "port": server.getsockname()[1]}
            server_info["key"] = secrets.token_hex(8)
        server_info = agreement.gather(server_info)[0]
        atexit.register(self.tell, "bye")
        if server is not None:
            _in_background(self._accept, server, server_info["key"])
            return
        try:
            link = socket.create_connection((server_info["host"], server_info["port"]), timeout=10)
            link.settimeout(None)
            link.sendall(f"{server_info['key']} {self._number}\n".encode())
        except OSError as error:
            logging.warning("no connection to process 0 (%s): its end is noticed later", error)
            return
        self._links[0] = link
        _in_background(self._listen, 0, link.makefile(encoding="utf-8", errors="replace"))

    def _accept(self, server: socket.socket, key: str) -> None:
        while len(self._links) < self._count - 1:
            link, _ = server.accept()
            _in_background(self._authenticate, link, key)

    def _authenticate(self, link: socket.socket, key: str) -> None:
        file = link.makefile(encoding="utf-8", errors="replace")
        words = file.readline().split()
        if len(words) == 2 and words[0] == key:
            self._links[int(words[1])] = link
            self._listen(int(words[1]), file)

    def _listen(self, number: int, file) -> None:
        """Listens to a process until it ends; then ends this one too, unless it ended cleanly."""
        try:
            text = file.readline().strip()
        except OSError:
            text = ""
        if text != "bye":
            self._reason = self._reason or text
            self.end(text or f"{LOST} process {number} is gone", LEAVE_SECONDS if text else 0)

    def tell(self, text: str) -> None:
        """Sends a line over every connection."""
        for link in list(self._links.values()):
            with contextlib.suppress(OSError):
                link.sendall(f"{text}\n".encode())

    def end(self, text: str, wait: float) -> None:
        """Ends this process because another ended, unless it ends by itself first.

        Args:
          text: the other one's exit code and reason.
          wait: seconds for this process to report an error of its own.
        """
        if self._number == 0:
            self.tell(text)
        time.sleep(wait)
        if self._ending.acquire(blocking=False):
            code, _, reason = (self._reason or text).partition(" ")
            message = f"another process of this run ended: {reason}; the newest checkpoint is kept"
            # Its error would recur after a restart, so a person has to fix it first.
            code = int(code) if code in ADOPTED else LOST
            advice = "" if code != LOST else "; start all processes again"
            say(f"error: {message}{advice}")
            self._exit(code)

    def leave(self, code: int, text: str) -> None:
        """Ends this process because of an error of its own."""
        with self._ending:
            self.tell_end(code, text)
            self._exit(code)

    def tell_end(self, code: int, text: str) -> None:
        """Tells the others why this process ends, those too that are only just joining."""
        end = time.monotonic() + 2 * LEAVE_SECONDS
        while self._number == 0 and len(self._links) < self._count - 1 and time.monotonic() < end:
            time.sleep(0.05)
        self.tell(f"{code} process {self._number}: {text}"[:500].replace("\n", " "))

    def _exit(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if self._number == 0:  # jax aborts the others when process 0 is gone: let them exit first
            time.sleep(2 * LEAVE_SECONDS)
        os._exit(code)


_LINKS = _Links()


def leave(code: int, why: str) -> None:
    """Ends this process, which failed, and tells the others why; never returns.

    An ordinary exit would wait for them at a jax barrier.
    """
    _LINKS.leave(code, why)


def give_up(error: BaseException) -> None:
    """Ends this process after an error for which `is_lost` holds; never returns."""
    time.sleep(1)  # a connection may yet tell which process it was
    _LINKS.end(f"{LOST} {_first_line(error)}", 0)
    threading.Event().wait()  # another thread ends it


def is_lost(error: BaseException | None) -> bool:
    """Whether an error, as collectives and barriers raise it, is due to the loss of another process
    of the run."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, jax.errors.JaxRuntimeError) and re.search(GONE, str(error)):
            return jax.distributed.is_initialized()
        error = error.__cause__ or error.__context__
    return False


def _in_background(function, *args) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()


def _own_address() -> str:
    """The address at which other hosts reach this one, judging by its routes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # no host has it; nothing is sent
            return probe.getsockname()[0]
        except OSError:
            return "localhost"
