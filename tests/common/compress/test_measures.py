"""What compression costs, on real data: figures for the READMEs, by `python -m tests.measure`."""

import numpy as np
import pytest
from helpers import ROOT, load

from common.training import train

FASHION = f"{ROOT}/configs/vision/fashion_mnist.py:small"
SOTU = f"{ROOT}/configs/lm/bert_sotu.py"


@pytest.mark.measure("pruning")
def test_fashion_mnist_with_80_percent_zeros_loses_half_a_point_at_most(tmp_path):
    rule = {"kind": "magnitude", "sparsity": 0.8, "begin": "5%", "end": "60%"}
    pruned = {f"compress.prune.{key}": value for key, value in rule.items()}
    reached = {}
    for name, keys in (("dense", {}), ("pruned", pruned)):
        for seed in (0, 1, 2):
            config = load(FASHION, seed=seed, **keys)
            result = train.run(config, tmp_path / f"{name}_{seed}")
            reached.setdefault(name, []).append(result["eval"]["test"]["accuracy"])
    print(reached)
    assert np.mean(reached["pruned"]) >= np.mean(reached["dense"]) - 0.005


@pytest.mark.measure("distillation")
def test_a_taught_bert_beats_itself_alone(tmp_path):
    sizes = {"model.width": 384, "model.heads": 6, "model.hidden": 1536, "evals.test.show": 0}
    teacher = tmp_path / "teacher"
    results = [train.run(load(SOTU, **sizes, **{"model.layers": 6}), teacher)]
    lesson = {"loss.teacher": str(teacher), "loss.distill": 0.5, "loss.temperature": 2.0}
    for name, keys in (("alone", {}), ("taught", lesson)):
        config = load(SOTU, **sizes, **{"model.layers": 3}, **keys)
        results.append(train.run(config, tmp_path / name))
    teacher, alone, taught = (result["eval"]["test"]["loss"] for result in results)
    print({"teacher": teacher, "alone": alone, "taught": taught})
    assert taught < alone
