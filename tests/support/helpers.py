"""What several tests use: loading configs, running scripts in this process and in others."""

import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

from common import cli, config
from common.training import program

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = str(ROOT / "configs/vision/digits.py")
TOY = str(ROOT / "tests/support/toy_config.py")


def load(path: str, **overrides) -> dict:
    """A completed config as nested dicts: load(DIGITS, **{"optim.lr": 0.1})."""
    words = [f"--config.{key}={value}" for key, value in overrides.items()]
    return config.plain(config.load(path, words, program.sections))


def script(name: str):
    """The module of scripts/NAME.py."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return module


def exit_code(name: str, *argv: str) -> int:
    """Runs a script in this process as from a shell; its exit code."""
    try:
        cli.exit(lambda: script(name).main(list(argv)))
    except SystemExit as error:
        return error.code
    raise AssertionError("cli.exit returned")


def start(name: str, *argv: str, devices: int = 1, **env: str) -> subprocess.Popen:
    """Starts scripts/NAME.py as a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / f"scripts/{name}.py"), *argv],
        cwd=ROOT,
        env=os.environ
        | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": f"{ROOT}:{ROOT}/tests/support"}
        | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Waits for a process, checks its exit code, and returns what it printed on standard output."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    return out if code == 0 else err


def wait_for(condition, seconds: float = 120) -> None:
    """Returns when `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def start_all(
    name: str, *argv: str, processes: int, devices: int = 4, **env: str
) -> list[subprocess.Popen]:
    """Starts scripts/NAME.py as processes of one run, with `devices` in all."""
    own = [()]
    if processes > 1:
        said = "--coordinator", f"localhost:{free_port()}", "--processes", str(processes)
        own = [(*said, "--process", str(i)) for i in range(processes)]
    return [start(name, *argv, *words, devices=devices // processes, **env) for words in own]


def timeless(workdir) -> list[dict]:
    """The log of a run without its clock."""
    lines = pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines
    ]


def same(a, b) -> None:
    """Two runs have the same log and end the same."""
    assert timeless(a) == timeless(b)
    for key in ("steps", "digest", "eval", "parameters"):
        assert result(a)[key] == result(b)[key]


def result(workdir) -> dict:
    """The result.json of a run."""
    return json.loads(pathlib.Path(workdir, "result.json").read_text())
