"""Distillation against numpy, and runs that learn from another run."""

import contextlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIGITS, ROOT, load, result

from common import predict, tree
from common.compress import distill
from common.compress.distill import Outputs
from common.errors import BadInput
from common.laws import checks as laws
from common.laws import measure
from common.runs import log
from common.training import frozen, saved, train
from common.training.program import abstract_arguments, prepare

RNG = np.random.default_rng(0)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_soft_targets_are_hintons():
    own, theirs = RNG.normal(size=(5, 4)), 3 * RNG.normal(size=(5, 4))
    valid = np.array([1, 1, 0, 1, 1], np.float32)
    p, q = softmax(theirs / 2), softmax(own / 2)
    rows = 4 * (p * np.log(p / q)).sum(axis=-1)
    own, theirs = own.astype(np.float32), theirs.astype(np.float32)
    soft = jax.jit(lambda *arrays: distill.soft_targets(*arrays, 2.0))
    total, weight = soft(own, theirs, valid)
    assert float(total) == pytest.approx((rows * valid).sum(), rel=1e-5)
    assert float(weight) == 4
    assert float(soft(own, own, valid)[0]) == pytest.approx(0, abs=1e-6)
    # At high temperature the gradient is that of half the squared differences, over the classes.
    slope = jax.jit(jax.grad(lambda x: distill.soft_targets(x, theirs, valid, 1e3)[0]))(own)
    centred = lambda x: x - x.mean(axis=-1, keepdims=True)
    near = (centred(own) - centred(theirs)) / 4 * valid[:, None]
    np.testing.assert_allclose(slope, near, atol=2e-2)


def test_several_labels_are_bernoulli_each():
    own, theirs = RNG.normal(size=(3, 2)), RNG.normal(size=(3, 2))
    p, q = 1 / (1 + np.exp(-theirs)), 1 / (1 + np.exp(-own))
    rows = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(axis=-1)
    arrays = jnp.asarray(own, jnp.float32), jnp.asarray(theirs, jnp.float32), np.ones(3, np.float32)
    total, _ = distill.soft_targets(*arrays, None, several=True)
    assert float(total) == pytest.approx(rows.sum(), rel=1e-5)


def test_layers_are_mapped_evenly():
    assert distill.mapped(3, 6) == [1, 3, 5]
    assert distill.mapped(6, 12) == [1, 3, 5, 7, 9, 11]
    assert distill.mapped(4, 4) == [0, 1, 2, 3]
    assert distill.mapped(2, 3) == [1, 2]
    assert distill.mapped(4, 2) == [0, 0, 1, 1]


def test_hidden_states_are_compared_through_a_projection():
    lesson = distill.lesson(teacher="t", hidden=0.5)
    own = Outputs(None, [RNG.normal(size=(2, 3, 4)).astype(np.float32)])
    theirs = Outputs(None, [RNG.normal(size=(2, 3, d)).astype(np.float32) for d in (5, 6)])
    taught = distill.taught(lesson, own, theirs, {"mlm": 1.0}, "mlm")
    assert taught.objective == {"mlm": 1.0, "hidden": 0.5}
    params = taught.init(jax.random.key(0))
    kernel, bias = (params["distill"]["layer_0"][k] for k in ("kernel", "bias"))
    assert kernel.shape == (4, 6)
    each = np.array([[1, 1, 0], [0, 1, 1]], np.float32)
    total, weight = taught.terms(params, own, theirs, None, each)["hidden"]
    errors = np.square(own.hidden[0] @ np.asarray(kernel) + bias - theirs.hidden[1]).mean(axis=-1)
    assert float(total) == pytest.approx((errors * each).sum(), rel=1e-5)
    assert float(weight) == 4
    other = Outputs(None, [np.zeros((2, 2, 4))])
    with pytest.raises(BadInput, match="only the last number may differ"):
        distill.taught(lesson, own, other, {"mlm": 1.0}, "mlm")


def test_projections_are_no_parameters_of_the_model():
    none = {"teacher": "", "temperature": None, "distill": None, "hidden": None}
    params = {"distill": {"layer_0": 1}, "head": 2}
    taught = {"loss": none | {"teacher": "t", "hidden": 1.0}}
    assert distill.without_projections(params, taught) == {"head": 2}
    assert distill.without_projections(params, {"loss": none}) == params


def test_an_optimizer_that_keeps_its_own_is_read_with_the_projections(monkeypatch):
    loss = {"teacher": "t", "temperature": None, "distill": None, "hidden": 1.0}
    optim = {"name": "sgd", "lookahead": "1 steps"}
    config = {"optim": optim, "loss": loss, "train": {}, "evals": {"test": {}}}
    state = types.SimpleNamespace(params={"distill": {"layer_0": 1}, "head": 2}, extra={})
    read = []

    @contextlib.contextmanager
    def opened(config, *rest):
        read.append(config)
        yield None, state, 3

    monkeypatch.setattr(saved, "opened", opened)
    monkeypatch.setattr(saved, "eval_context", lambda program, state, number: state)
    assert saved.evaluated(config, "run", "latest", {}, None) == ({"head": 2}, {}, 3)
    assert [each["loss"] for each in read] == [loss]


def test_shares_of_the_objective():
    lesson = distill.lesson(teacher="t", distill=0.25, temperature=2.0)
    made = distill.taught(lesson, Outputs(0, []), Outputs(0, []), {"mlm": 1.0, "nsp": 1.0}, "mlm")
    assert made.objective == {"mlm": 0.75, "nsp": 1.0, "soft": 0.25}
    assert made.init(jax.random.key(0)) == {}
    assert made.captures == []


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"distill": 0.5}, "loss.distill: set config.loss.teacher"),
        ({"teacher": "t"}, "it teaches nothing"),
        ({"teacher": "t", "distill": 1.5}, r"distill: 1.5 is not in \[0, 1\]"),
        ({"teacher": "t", "distill": 0.5, "temperature": 0.0}, "temperature: 0.0 is not positive"),
        ({"teacher": "t", "hidden": 0.5, "temperature": 2.0}, "it is that of soft targets"),
    ],
)
def test_what_does_not_fit_is_one_line(keys, words):
    with pytest.raises(BadInput, match=words):
        distill.lesson(**keys)


def test_classes_have_to_be_the_same():
    distill.same_classes("t", ("a", "b"), ("a", "b"), 2)
    distill.same_classes("t", ("a", "b"), (), 2)
    for theirs, count in ((("b", "a"), 2), (("a", "c"), 2), ((), 3)):
        with pytest.raises(BadInput, match=r"config\.loss\.teacher: t predicts"):
            distill.same_classes("t", ("a", "b"), theirs, count)


SHORT = {"train.duration": "4 steps", "train.batch_size": 32}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train.run(load(f"{DIGITS}:mlp", **SHORT), folder, show=False)
    return folder


def lessons(folder, **more) -> dict:
    keys = {"loss.teacher": str(folder), "loss.distill": 0.5, "loss.temperature": 2.0}
    return load(f"{DIGITS}:mlp", **(SHORT | {"checkpoint.every": "2 steps"} | keys | more))


@pytest.mark.slow
def test_a_student_learns_from_a_run_and_needs_it_no_more(teacher, tmp_path, compiled_in_haste):
    here, folder = tmp_path / "teacher", tmp_path / "student"
    shutil.copytree(teacher, here)
    config = lessons(here)
    train.run(config, folder, show=False)
    logged = next(line for line in log.read_lines(folder) if "train/loss" in line)
    assert logged["train/loss"] == pytest.approx(
        0.5 * logged["train/hard"] + 0.5 * logged["train/soft"], rel=1e-4
    )
    made = prepare(config)
    assert frozen.KEY in made.hypers
    paths = tree.flatten(made.like)
    assert not any("frozen" in path for path in paths)
    # The parameters of the teacher are arguments of the program, not constants in it.
    lowered = made.step.lower(*abstract_arguments(made)).as_text()
    theirs = tree.count(made.hypers[frozen.KEY])
    assert theirs > 4000
    assert len(lowered) < 400_000

    # Another teacher in the same place is another run.
    train.run(load(f"{DIGITS}:mlp", **(SHORT | {"train.duration": "6 steps"})), here, show=False)
    longer = lessons(here, **{"train.duration": "8 steps"})
    with pytest.raises(BadInput, match="the teacher has changed since the run began; restore it"):
        train.run(longer, folder, show=False)

    # Whoever uses the student does without it.
    shutil.rmtree(here)
    assert saved.evaluate_run(folder)["eval"]["test"] == result(folder)["eval"]["test"]
    picture = np.zeros((8, 8, 1), np.uint8)
    assert predict.load(folder).predict([picture])[0]["class"]
    with pytest.raises(BadInput):
        train.run(longer, folder, show=False)


@pytest.mark.slow
def test_the_laws_hold_for_a_student_that_is_pruned(teacher, compiled_in_haste):
    rule = {"kind": "movement", "sparsity": 0.5, "begin": "2 steps", "end": "4 steps"}
    rule = {f"compress.prune.{key}": value for key, value in rule.items()}
    config = lessons(teacher, **rule, **{"compress.prune.frequency": "1 steps"})
    laws.resume_is_exact(config, 3, devices=jax.devices()[:1])
    laws.mesh_changes_nothing(config, [(1, 2, 4)], steps=6)
    laws.accumulation_changes_nothing(config, steps=6)
    like = measure.on_mesh(config, (1, 2, 4)).like
    masks, params = tree.flatten(like.opt_state["masks"]), tree.flatten(like.params)
    assert all(masks[p].sharding == params[p].sharding for p in masks)
    assert not all(masks[p].sharding.is_fully_replicated for p in masks)


@pytest.mark.slow
def test_a_teacher_of_another_task_is_refused(teacher):
    config = load(
        f"{ROOT}/configs/lm/bert_sotu.py", **{"loss.teacher": str(teacher), "loss.distill": 0.5}
    )
    with pytest.raises(BadInput, match="is a run of vision.classify, and this one is of lm.mlm"):
        prepare(config)
