"""The same batches, losses and checkpoints for any number of real processes and workers."""

import json
import os
import random
import shutil
import subprocess
import sys

import corpus
import numpy as np
import pytest
from helpers import DIGITS, ROOT, finish, free_port, result, start_all, timeless


def by_slurm(processes: int) -> list[dict[str, str]]:
    """What srun sets in the tasks of a step; jax makes a port of the job's number."""
    step = {
        "SLURM_JOB_ID": str(random.randrange(2**12)),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(processes),
        "SLURM_STEP_NUM_TASKS": str(processes),
        "SLURM_STEP_TASKS_PER_NODE": str(processes),
    }
    return [step | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(processes)]


def by_settings(processes: int) -> list[dict[str, str]]:
    """What is to be set where nothing is found."""
    said = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    return [said | {"JAX_PROCESS_ID": str(i)} for i in range(processes)]


def run(processes: int, workers: int, places=by_settings) -> tuple[dict, list[float]]:
    """({step: {row: digest}} over all processes, losses)."""
    env = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT}/tests/support",
        "JAX_NUM_CPU_DEVICES": str(4 // processes),
        "JAX_PLATFORMS": "cpu",
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests/support/process_batches.py"), str(workers)],
            env=env | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in places(processes)
    ]
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
    ("processes", "workers", "places"),
    [
        pytest.param(2, 0, by_slurm, marks=pytest.mark.slow),
        pytest.param(1, 2, by_settings, marks=pytest.mark.slow),
        pytest.param(2, 2, by_settings, marks=pytest.mark.slow),
        pytest.param(4, 0, by_slurm, marks=pytest.mark.slow),
        pytest.param(4, 2, by_settings, marks=pytest.mark.slow),
    ],
)
def test_batches_and_losses_do_not_know_the_processes(alone, processes, workers, places):
    rows, losses = run(processes, workers, places)
    assert rows == alone[0]
    assert [len(part) for part in rows.values()] == [40, 40, 40]
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)


# ---------------------------------------------------------------------------------- training runs

PIXELS = (
    "--config",
    f"{DIGITS}:mlp",
    "--config.train.duration=60 steps",
    "--config.train.log_every=1 steps",
    "--config.evals.test.every=30 steps",
    "--config.checkpoint.every=20 steps",
    "--config.checkpoint.keep_latest=9",
)
SMALL = {
    "model.layers": 2,
    "model.width": 32,
    "model.hidden": 48,
    "model.kv_heads": 1,
    "data.vocab_size": 300,
    "data.length": 24,
    "train.batch_size": 16,
    "optim.name": "adamw",  # muon takes longer to compile
    "optim.lr": 1e-3,
    "train.duration": "12 steps",
    "train.log_every": "1 steps",
    "evals.valid.every": "6 steps",
}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The command of a small GPT on made-up sentences."""
    folder = tmp_path_factory.mktemp("words")
    name = corpus.write(folder / "texts", documents=40)
    keys = SMALL | {"data.name": name, "data.folder": str(folder / "data")}
    config = f"{ROOT}/configs/lm/gpt_sotu.py"
    return ("--config", config, *(f"--config.{k}={v}" for k, v in keys.items()))


def train(workdir, command, processes: int) -> None:
    started = start_all(
        "train",
        *command,
        "--workdir",
        str(workdir),
        processes=processes,
        JAX_DEFAULT_MATMUL_PRECISION="highest",
    )
    for process in started:
        finish(process)


def same_losses(one, other) -> None:
    """The logs of two runs say the same at the same steps, each once; losses to 1e-5."""
    assert [line["step"] for line in timeless(one)] == [line["step"] for line in timeless(other)]
    for a, b in zip(timeless(one), timeless(other), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if key.endswith("loss"):
                np.testing.assert_allclose(b[key], a[key], rtol=1e-5, err_msg=f"{a['step']} {key}")
    assert result(one)["steps"] == result(other)["steps"] == timeless(one)[-1]["step"]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A finished run of four processes, with all of its checkpoints."""
    folder = tmp_path_factory.mktemp("four") / "run"
    train(folder, PIXELS, 4)
    return folder


@pytest.mark.slow
def test_losses_of_images_do_not_know_the_processes(tmp_path, four):
    for processes in (1, 2):
        train(tmp_path / str(processes), PIXELS, processes)
        same_losses(tmp_path / str(processes), four)


@pytest.mark.slow
def test_losses_of_text_do_not_know_the_processes(tmp_path, words):
    # Of four processes, with a device each, two hold the halves of each sharded parameter.
    command = *words, "--config.mesh.tensor=2", "--config.mesh.data=-1"
    train(tmp_path / "1", command, 1)
    for processes in (2, 4):
        train(tmp_path / str(processes), command, processes)
        same_losses(tmp_path / "1", tmp_path / str(processes))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_checkpoint_of_four_processes_goes_on_with_fewer(tmp_path, four, processes):
    folder = tmp_path / "run"
    shutil.copytree(four, folder)
    (folder / "result.json").unlink()
    for step in (40, 60):
        shutil.rmtree(folder / "checkpoints" / str(step))
    train(folder, PIXELS, processes)
    assert (folder / "checkpoints/40").exists()  # it went on from 20
    same_losses(folder, four)
