"""Calibration against a loop in numpy, and evaluators by kind."""

import jax
import numpy as np
import pytest
from helpers import DIGITS, exit_code, load

from common.data import loading
from common.errors import BadInput
from common.evaluators import calibration
from common.training import loop
from common.training.program import initial_state, prepare

KIND = "common.evaluators.calibration"


def reference(logits, labels, bins: int) -> tuple[float, float]:
    """(expected calibration error, Brier score), a row at a time."""
    cells = [[] for _ in range(bins)]
    brier = 0.0
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        cells[min(int(np.float32(p.max()) * bins), bins - 1)].append((p.max(), p.argmax() == label))
        brier += ((p - np.eye(len(p))[label]) ** 2).sum()
    gaps = [
        len(c) * abs(np.mean([x for x, _ in c]) - np.mean([y for _, y in c])) for c in cells if c
    ]
    return sum(gaps) / len(labels), brier / len(labels)


bin_sums = jax.jit(calibration.bin_sums, static_argnums=3)
brier_sums = jax.jit(calibration.brier)


@pytest.mark.parametrize(("rows", "classes", "bins"), [(101, 3, 15), (7, 2, 1), (64, 11, 4)])
def test_it_is_what_a_loop_finds(rows, classes, bins):
    rng = np.random.default_rng(rows)
    logits = rng.normal(size=(rows, classes)).astype(np.float32) * 2
    labels = rng.integers(0, classes, rows)
    sums, weight = bin_sums(logits, labels, np.ones(rows, np.float32), bins)["bins"]
    values = calibration.summary(np.asarray(sums, np.float64), float(weight))
    total, weight = brier_sums(logits, labels, np.ones(rows, np.float32))
    ece, brier = reference(logits, labels, bins)
    assert values["ece"] == pytest.approx(ece, abs=1e-6)
    assert float(total / weight) == pytest.approx(brier, rel=1e-5)
    assert values["reliability"][0].sum() == rows
    assert values["mce"] >= values["ece"] > 0


def test_padding_weighs_nothing_and_certainty_falls_into_the_last_bin():
    logits, labels = np.array([[50.0, 0.0], [0.0, 0.0]], np.float32), np.array([0, 1])
    sums, weight = bin_sums(logits, labels, np.array([1.0, 0.0], np.float32), 10)["bins"]
    values = calibration.summary(np.asarray(sums, np.float64), float(weight))
    assert (float(weight), values["ece"], values["reliability"][0, 9]) == (1.0, 0.0, 1.0)


def test_frequencies_that_are_the_probabilities_are_calibrated():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200_000, 4)).astype(np.float32)
    probabilities = np.asarray(jax.nn.softmax(logits))
    labels = (probabilities.cumsum(axis=1) > rng.random((len(logits), 1))).argmax(axis=1)
    valid = np.ones(len(logits), np.float32)
    sums, weight = bin_sums(logits, labels, valid, 15)["bins"]
    true = calibration.summary(np.asarray(sums, np.float64), float(weight))["ece"]
    sums, weight = bin_sums(3 * logits, labels, valid, 15)["bins"]
    boastful = calibration.summary(np.asarray(sums, np.float64), float(weight))["ece"]
    assert true < 0.005 < 0.1 < boastful  # a share of 200,000 has a deviation of 0.001


def test_a_section_names_its_kind():
    keys = {"evals.test.kind": KIND, "evals.test.every": "2 epochs"}
    config = load(f"{DIGITS}:mlp", **keys)
    assert config["evals"]["test"] == {
        "kind": KIND, "split": "test", "every": "2 epochs", "batch_size": 512, "bins": 15
    }  # fmt: skip
    made = prepare(config, jax.devices()[:1])
    with jax.set_mesh(made.layout.mesh):
        context = loop.eval_context(made, initial_state(made), 0)
        values = made.task.evaluators["test"].run(context)
    assert values["reliability"][0].sum() == 360
    assert set(values) == {"loss", "brier", "ece", "mce", "reliability"}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("common.evaluators.calibratio", "there is no module"),
        ("common.losses", "has no function `evaluator`"),
        ("lm.mlm", "needs masked, predict, and vision.classify offers logits"),
        ("", None),
    ],
)
def test_a_kind_that_does_not_fit_is_one_line(kind, message, capsys):
    words = ["--config", DIGITS, "--dry-run", "--config.evals.test.kind", kind]
    if message is None:
        assert load(DIGITS, **{"evals.test.kind": kind})["evals"]["test"]["views"] == "none"
        return
    assert exit_code("train", *words) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: config.evals.test.kind: ")
    assert message in text
    assert text.count("\n") == 1


@pytest.mark.parametrize("label", [np.zeros((4, 3), np.uint8), np.zeros(4, np.float32)])
def test_other_labels_are_told_apart(label):
    have = "several labels" if label.ndim == 2 else "numbers"
    with pytest.raises(BadInput, match=f"of a class each; these have {have}"):
        calibration.evaluator(loading.from_arrays({"label": label}), None)


def test_keys_of_another_kind_are_refused():
    with pytest.raises(BadInput, match="views"):
        load(DIGITS, **{"evals.test.kind": KIND, "evals.test.views": "flip"})
