"""What int8 costs after training, on runs as users train them."""

import json
import os
import statistics
import subprocess
import sys

import pytest
from helpers import ROOT


def said(name: str, *argv: str) -> dict:
    """The JSON that scripts/NAME.py prints, as a process with the devices that users have."""
    env = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, str(ROOT / f"scripts/{name}.py"), *argv]
    done = subprocess.run(
        command, cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def quantized(folder, config: str, *overrides: str) -> dict:
    """Trains a config and quantizes the run: {metric of the test set: (before, after)}."""
    said("train", "--config", f"configs/{config}", "--workdir", f"{folder}/run", *overrides)
    told = said("quantize", "--workdir", f"{folder}/run", "--to", f"{folder}/int8")
    before, after = told["before"]["test"], told["after"]["test"]
    pairs = {key: (before[key], after[key]) for key in ("loss", "accuracy")}
    print(config, *overrides, told["bytes"], pairs)
    return pairs


@pytest.mark.measure("quantize")
def test_bert_sotu_loses_at_most_two_hundredths_of_a_nat(tmp_path):
    before, after = quantized(tmp_path, "lm/bert_sotu.py")["loss"]
    assert after - before <= 0.02


@pytest.mark.measure("quantize")
def test_fashion_mnist_loses_at_most_a_fifth_of_a_point(tmp_path):
    lost = []
    for seed in (0, 1, 2):
        words = "vision/fashion_mnist.py:small", f"--config.seed={seed}"
        before, after = quantized(tmp_path / str(seed), *words)["accuracy"]
        lost.append(before - after)
    assert statistics.fmean(lost) <= 0.002
