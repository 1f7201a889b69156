"""The evaluator of several labels an example: exact over the whole set, whatever the batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import losses
from common.data import loading
from common.devices import mesh
from common.errors import BadInput
from common.evaluators import multi_label
from common.task import EvalContext

SCORES = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
MANY = (np.random.default_rng(1).random((11, 3)) < [0.3, 0.6, 0.0]).astype(np.uint8)


def evaluated(batch_size: int, devices: int, **keys) -> dict:
    source = loading.from_arrays({"x": SCORES, "label": MANY})
    layout = mesh.make_layout(jax.devices()[:devices])
    batches = lambda source, size: loading.eval_batches(source, size, layout)
    context = EvalContext({}, {}, 0, jax.random.key(0), batches, None)
    logits = lambda params, extra, batch, key: batch["x"]
    evaluator = multi_label.evaluator(source, logits, batch_size=batch_size, **keys)
    with jax.set_mesh(layout.mesh):
        return evaluator.run(context)


def test_scores_are_those_of_all_rows_together():
    found = evaluated(4, devices=2)
    assert found == pytest.approx(evaluated(11, devices=1))
    by_class = losses.multi_label_scores(SCORES, MANY)
    assert found["macro_f1"] == pytest.approx(by_class["f1"].mean())
    assert found["micro_f1"] == pytest.approx(by_class["micro_f1"])
    assert found["mean_average_precision"] == pytest.approx(by_class["average_precision"].mean())
    total, weight = losses.multi_label_cross_entropy(SCORES, MANY, jnp.ones(11))
    assert found["loss"] == pytest.approx(float(total / weight), rel=1e-6)
    assert found["subset_accuracy"] == ((SCORES > 0) == MANY).all(axis=1).mean()


def test_scores_of_classes_are_logged_if_asked():
    found = evaluated(11, devices=1, per_class=True)
    assert found["class_f1"].mean() == pytest.approx(found["macro_f1"])
    assert len(found["class_average_precision"]) == 3


def test_one_label_an_example_is_refused():
    source = loading.from_arrays({"label": np.zeros(4, np.int32)})
    with pytest.raises(BadInput, match="multi_label is for several labels an example"):
        multi_label.evaluator(source, None)
