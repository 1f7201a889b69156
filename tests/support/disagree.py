"""Processes of one run of which one was started otherwise: what differs, and the check that all of
them refuse together, soon, in one line that names it."""

import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

from helpers import DIGITS, ROOT, free_port, load

from common.config import flatten

WITHIN = 30.0  # seconds from the start of the last process to the end of all


class Case(NamedTuple):
    """One process among others.

    Attributes:
      key: what the message must name.
      words: what this process has on its command line besides.
      common: what all of them have there.
      env: what it has in its environment.
      folder: where it runs; None is where the others do.
      processes: how many there are.
      odd: the index of the one that differs.
      late: the index of one that starts `seconds` later, or None.
      seconds: that delay.
    """

    key: str
    words: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    processes: int = 2
    odd: int = 1
    late: int | None = None
    seconds: float = 4.0
    common: tuple[str, ...] = ("--config", f"{DIGITS}:mlp")
    folder: str | None = None


# Another value of the same type, for keys of which any other would do. Another task knows no key of
# this one's model, and is refused before the processes join.
OTHERS = {
    "model.module": "vision.cnn:CNN", "model.dropout": 0.25, "model.hidden": (32,),
    "train.duration": "7 steps", "optim.name": "sgd", "optim.schedule": "linear", "mesh.data": 1,
    "checkpoint.best": "max eval/test/accuracy", "train.stop.metric": "min eval/test/loss",
    "init.path": "elsewhere", "init.step": 3, "runtime.profile": "1:3", "runtime.cache": "none",
    "runtime.cpu_devices": 2, "log.wandb": "project", "train.average": 0.9, "data.train": "test",
    "data.resident": True, "data.image_size": 16, "evals.test.split": "train",
}  # fmt: skip


def other(key: str, value) -> str | None:
    """Another value for a key of a config, as on a command line; None if there is none."""
    if key in OTHERS:
        return str(OTHERS[key])
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, int):
        return str(value + 1)
    if isinstance(value, float):
        return str(value / 2 + 0.125)
    if isinstance(value, str) and value.split(" ")[-1] in ("steps", "epochs", "epoch"):
        return "3 steps"
    return None


def cases() -> list[Case]:
    """Each key of a config for which there is another value, in turn on each process, among two or
    four, with a late start of either; another workdir; and failures before joining."""
    found = []
    for key, value in sorted(flatten(load(f"{DIGITS}:mlp")).items()):
        text = other(key, value)
        if text is None:
            continue
        number = len(found)
        processes = 4 if number % 4 == 3 else 2
        odd = number % processes
        late = (None, odd, (odd + 1) % processes)[number % 3]
        words = (f"--config.{key}={text}",)
        found.append(Case(f"config.{key}", words, (), processes, odd, late))
    again = [case for case in found if case.key.split(".")[1] in ("checkpoint", "train", "mesh")]
    found += [case._replace(processes=4, odd=0, late=3) for case in again]
    found.append(Case("--workdir", ("--workdir", "/tmp/touchstone-elsewhere")))
    found.append(Case("--workdir", ("--workdir", "/tmp/touchstone-elsewhere"), odd=0, late=1))
    found.append(Case("config.seed", ("--config.seed=many",), late=0))  # fails before it joins
    found.append(Case("config.optim.lr", ("--config.optim.lrr=1",), odd=0, late=1))
    return found


def refused(case: Case, folder: pathlib.Path) -> str:
    """Starts the processes of a case and checks how they end; returns the line that they say."""
    place = "--coordinator", f"localhost:{free_port()}", "--processes", str(case.processes)
    common = *case.common, "--workdir", str(folder / "run"), *place
    started = []
    order = [i for i in range(case.processes) if i != case.late]
    order += [] if case.late is None else [case.late]
    for i in order:
        if i == case.late:
            time.sleep(case.seconds)
        own = case.words if i == case.odd else ()
        env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests/support"}
        env |= {"JAX_NUM_CPU_DEVICES": "1"} | (dict(case.env) if i == case.odd else {})
        if any("cpu_devices" in word for word in case.words):
            env.pop("JAX_NUM_CPU_DEVICES")
        words = [str(ROOT / "scripts/train.py"), *common, "--process", str(i), *own]
        at = (i == case.odd and case.folder) or folder
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, *words], env=env, cwd=at, **pipes))
    end = time.monotonic() + WITHIN
    lines = []
    try:
        for process in started:
            _, said = process.communicate(timeout=max(end - time.monotonic(), 0.1))
            assert process.returncode == 2, f"{case}: exit code {process.returncode}: {said}"
            lines.append(said.strip().splitlines()[-1])
    finally:
        for process in started:
            process.kill()
    for line in lines:
        assert line.startswith("error: "), line
        assert case.key in line, f"{case.key} is not named: {line}"
    assert any(f"process {case.odd}" in line or "on process" in line for line in lines), lines
    assert not (folder / "run" / "checkpoints").exists()
    return next(line for line in lines if "process" in line)
