"""The same global batches, and losses, for any number of real processes and workers."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT


def run(processes: int, workers: int) -> tuple[dict, list[float]]:
    """({step: {row: digest}} over all processes, losses)."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT}/tests/support",
        "JAX_NUM_CPU_DEVICES": str(4 // processes),
        "JAX_PLATFORMS": "cpu",
    }
    started = []
    for i in range(processes):
        own = {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(i),
        }
        started.append(
            subprocess.Popen(
                [sys.executable, str(ROOT / "tests/support/process_batches.py"), str(workers)],
                env=env | (own if processes > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    rows: dict[str, dict[str, str]] = {}
    for process in started:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        found = json.loads(out.splitlines()[-1])
        assert found["processes"] == processes
        for step, part in found["rows"].items():
            assert not set(part) & set(rows.get(step, {}))  # no row is read twice
            rows.setdefault(step, {}).update(part)
    return rows, found["losses"]


@pytest.fixture(scope="module")
def alone():
    return run(1, 0)


@pytest.mark.parametrize(
    ("processes", "workers"),
    [
        (2, 0),
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(2, 2, marks=pytest.mark.slow),
        pytest.param(4, 0, marks=pytest.mark.slow),
        pytest.param(4, 2, marks=pytest.mark.slow),
    ],
)
def test_batches_and_losses_do_not_know_the_processes(alone, processes, workers):
    rows, losses = run(processes, workers)
    assert rows == alone[0]
    assert [len(part) for part in rows.values()] == [40, 40, 40]
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
