"""Runs of scripts/train.py with a fault at one of the system calls that change their workdir: the
process is killed there, or the call fails.

The calls are seen by interrupt.c, which is preloaded, so those of libraries in C++ count as well.
A run is a fork of a process that has imported everything, but started no thread and no jax backend
(`Trainer`): it begins as a process of its own would, without the seconds that importing takes.
"""

import ctypes
import errno
import faulthandler
import gc
import json
import mmap
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

from helpers import DIGITS, ROOT, load, script

from common import cli

KILLS = {"before": -1, "half": -2, "after": -3}  # as interrupt.c has them
SECONDS = 120  # a run that takes longer hangs
LOG = 1 << 20  # bytes


class Fault(NamedTuple):
    """What happens at which call.

    Attributes:
      what: "before", "half" (of a write's bytes) or "after" it the process is killed; the name of
        an errno makes it fail, once.
      kind: "open" (for writing), "write", "fsync", "truncate", "rename", "link", "unlink", "mkdir",
        "rmdir"; or "any" of them.
      nth: which one, from 1, of those of its kind and place.
      where: what its path in the workdir matches, an extended regular expression; a rename's is the
        old one.
    """

    what: str
    kind: str
    nth: int
    where: str = ""


NONE = Fault("none", "any", 0)


class Ended(NamedTuple):
    """How a run ended.

    Attributes:
      code: its exit code, or minus the signal.
      said: what it printed.
      calls: (kind, path in the workdir) of each call, in order.
      hit: the one that had the fault, or None if the run did not get there.
    """

    code: int
    said: str
    calls: list[tuple[str, str]]
    hit: tuple[str, str] | None


def build(folder: pathlib.Path, compiler: str) -> pathlib.Path:
    """Compiles interrupt.c into a folder; returns the library."""
    library = folder / "interrupt.so"
    source = pathlib.Path(__file__).with_suffix(".c")
    command = [compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", library, source]
    subprocess.run([*command, "-ldl"], check=True)
    return library


class Trainer:
    """A process that runs scripts/train.py, one run after the other. A context manager."""

    def __init__(self, library: pathlib.Path, *under: str):
        """Starts it with `library`, which `build` made, under a command such as strace."""
        # One thread: numpy's would be missing in a fork.
        env = {
            "LD_PRELOAD": str(library),
            "OPENBLAS_NUM_THREADS": "1",
            "JAX_NUM_CPU_DEVICES": "1",
            "PYTHONPATH": f"{ROOT}:{ROOT}/tests/support",
        }
        self._process = subprocess.Popen(
            [*under, sys.executable, __file__],
            cwd=ROOT,
            env=os.environ | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, words: tuple[str, ...], workdir: pathlib.Path, fault: Fault = NONE) -> Ended:
        """Runs `train.py WORDS --workdir WORKDIR` to its end."""
        asked = {"words": [*words, "--workdir", str(workdir)], "below": str(workdir)}
        self._process.stdin.write(json.dumps(asked | fault._asdict()) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        lines = answer["calls"].splitlines()
        calls = [tuple(line.removeprefix("!").split(" ", 1)) for line in lines]
        hit = [call for line, call in zip(lines, calls, strict=True) if line.startswith("!")]
        return Ended(answer["code"], answer["said"], calls, hit[0] if hit else None)


# -------------------------------------------------------------------------- a Trainer's process


def _serve() -> list[str]:
    """Forks for each request on standard input; returns, in the fork, what to run."""
    while request := sys.stdin.readline():
        asked, shared = json.loads(request), mmap.mmap(-1, LOG)
        with tempfile.TemporaryFile() as said:
            pid = os.fork()
            if pid == 0:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                faulthandler.dump_traceback_later(SECONDS, exit=True)
                _arm(shared, asked["below"], Fault(*(asked[name] for name in Fault._fields)))
                return asked["words"]
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            said.seek(0)
            answer = {
                "code": code,
                "said": said.read().decode(errors="replace"),
                "calls": shared[:].rstrip(b"\0").decode(errors="replace"),
            }
        shared.close()
        print(json.dumps(answer), flush=True)
    sys.exit(0)


def _arm(log: mmap.mmap, below: str, fault: Fault) -> None:
    """Tells interrupt.c what is to happen to this process."""
    arm, text = ctypes.CDLL(None).interrupt, ctypes.c_char_p
    arm.argtypes = [text, ctypes.c_void_p, ctypes.c_size_t, text, text, ctypes.c_long, ctypes.c_int]
    code = KILLS.get(fault.what) or getattr(errno, fault.what, 0)
    strings = below.encode(), fault.kind.encode(), (fault.where or ".").encode()
    memory = ctypes.c_char.from_buffer(log)
    _arm.kept = memory, strings  # as long as the process lives
    folder, kind, where = strings
    wrong = arm(folder, ctypes.addressof(memory), LOG, kind, where, fault.nth, code)
    assert wrong == 0, f"{fault.where}: not a regular expression"


if __name__ == "__main__":
    import tensorflow_datasets  # noqa: F401  # as the data do, later

    del os.environ["LD_PRELOAD"]  # not for git
    train = script("train")
    load(f"{DIGITS}:mlp")  # imports the task and the model
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"a fork would lack {len(threads) - 1} threads"
    gc.freeze()  # a fork then shares this memory
    words = _serve()
    sys.argv = [train.__file__, *words]
    cli.exit(train.main)
