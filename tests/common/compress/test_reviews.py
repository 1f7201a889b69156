"""What low-rank updates cost in accuracy, on a run as users train it."""

import json
import os
import statistics
import subprocess
import sys

import pytest
from helpers import ROOT, load

from common import tree
from common.training.program import prepare

CONFIG = "configs/lm/finetune_reviews.py"
UPDATES = {"compress.lora.rank": 8, "optim.lr": 1e-3}


def accuracy(folder, **overrides) -> float:
    """Of the test set, after training in a process with the devices that users have."""
    env = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    words = [f"--config.{key}={value}" for key, value in overrides.items()]
    command = [sys.executable, "scripts/train.py", "--config", CONFIG, "--workdir", str(folder)]
    subprocess.run([*command, *words], cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, check=True)
    return json.loads((folder / "result.json").read_text())["eval"]["test"]["accuracy"]


@pytest.mark.measure("lora")
def test_film_reviews_lose_at_most_a_point_with_a_fiftieth_trained(tmp_path):
    made = prepare(load(str(ROOT / CONFIG), **UPDATES))
    share = tree.count(made.optimizer.live(made.like.params)) / tree.count(made.like.params)
    lost = []
    for seed in (0, 1, 2):
        whole = accuracy(tmp_path / f"whole{seed}", seed=seed)
        lost.append(whole - accuracy(tmp_path / f"updates{seed}", seed=seed, **UPDATES))
        print(f"seed {seed}: {whole:.4f}, lost by updates {lost[-1]:.4f}; {share:.2%} trained")
    assert share < 0.02
    assert statistics.fmean(lost) <= 0.01
