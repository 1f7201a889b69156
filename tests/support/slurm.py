"""A SLURM of this machine alone, for tests: its daemons, with everything that they write in one
folder."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

from helpers import free_port

PROGRAMS = "munged", "slurmctld", "slurmd", "sbatch", "srun"
CONF = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=30
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/slurmd
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """What a SLURM needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextlib.contextmanager
def running(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """The environment by which commands find a SLURM that lives as long as this."""
    host = socket.gethostname().split(".")[0]
    ports = free_port(), free_port()
    (folder / "slurm.conf").write_text(CONF.format(host=host, ports=ports, folder=folder))
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    (folder / "state").mkdir()
    (folder / "slurmd").mkdir()
    env = {"SLURM_CONF": str(folder / "slurm.conf")}
    own = [f"--{name}={folder}/munge.{name[:4]}" for name in ("pid-file", "log-file", "seed-file")]
    commands = (
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.sock", *own,
         f"--key-file={folder}/key"],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    )  # fmt: skip
    with contextlib.ExitStack() as cleanup:
        for command in commands:
            with open(folder / f"{command[0]}.txt", "w") as file:
                daemon = subprocess.Popen(command, env=os.environ | env, stdout=file, stderr=file)
            cleanup.callback(daemon.wait)
            cleanup.callback(daemon.terminate)
            time.sleep(0.5)
        end = time.monotonic() + 60
        while "idle" not in _states(env):
            assert time.monotonic() < end, _said(folder)
            time.sleep(0.2)
        yield env


def _states(env: dict[str, str]) -> str:
    words = ["sinfo", "--noheader", "--format=%t"]
    return subprocess.run(words, env=os.environ | env, capture_output=True, text=True).stdout


def _said(folder: pathlib.Path) -> str:
    files = [*folder.glob("*.txt"), *folder.glob("*.log")]
    return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in files)
