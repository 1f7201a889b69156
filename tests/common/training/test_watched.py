"""Metrics by which a run decides are there, and numbers, before its first step."""

import jax
import pytest
from helpers import TOY, load

from common.config import changed
from common.errors import BadInput
from common.training import train, watched
from common.training.program import prepare
from common.training.terms import check_task


@pytest.fixture(scope="module")
def program():
    return prepare(load(TOY))


@pytest.fixture(scope="module")
def state(program):
    with jax.set_mesh(program.layout.mesh):
        return program.create(program.hypers)


STOP, BEST = "train.stop.metric", "checkpoint.best"
KEYS = [
    (STOP, "max eval/scores", "unknown 'eval/scores'; did you mean 'eval/scores/"),
    (BEST, "min eval/scores/", "unknown 'eval/scores/'; did you mean 'eval/scores/"),
    (STOP, "max eval/scores/acuracy", "did you mean 'eval/scores/accuracy'"),
    (BEST, "max eval/scores/acuracy", "did you mean 'eval/scores/accuracy'"),
    (BEST, "max eval/scores/accuracy/x", "did you mean 'eval/scores/accuracy'"),
    (STOP, "max eval/scores/Accuracy", "did you mean 'eval/scores/accuracy'"),
    (STOP, "max eval/words/text", "'eval/words/text' is text, which never improves"),
    (BEST, "min eval/words/table", "'eval/words/table' is no single number"),
]


@pytest.mark.parametrize(("key", "text", "says"), KEYS)
def test_a_metric_that_never_decides_is_refused(program, state, tmp_path, key, text, says):
    made = program._replace(config=changed(program.config, **{key: text}))
    with jax.set_mesh(made.layout.mesh), pytest.raises(BadInput, match=f"config.{key}: .*{says}"):
        watched.check(made, state, tmp_path / "run")


def test_a_metric_that_is_there_is_taken_and_only_its_evaluator_runs(program, state, tmp_path):
    rows = []

    def counting(context):
        batches = list(context.batches(program.task.sources["test"], 32))
        rows.append((len(batches), context.workdir))
        return {"loss": 0.5}

    def unwanted(context):
        raise AssertionError("not named")

    evaluators = program.task.evaluators
    evaluators = {
        "scores": evaluators["scores"]._replace(run=counting),
        "words": evaluators["words"]._replace(run=unwanted),
    }
    config = changed(program.config, **{BEST: "min eval/scores/loss"})
    made = program._replace(config=config, task=program.task._replace(evaluators=evaluators))
    with jax.set_mesh(made.layout.mesh):
        watched.check(made, state, tmp_path / "run")
        assert rows == [(1, None)]
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "eval/scores/loss": 0.5}\n')
        watched.check(made, None, tmp_path)  # in the log: not asked again
        assert len(rows) == 1
        watched.check(program._replace(task=made.task), state, tmp_path / "run")  # names none
        assert len(rows) == 1
        config = changed(program.config, **{BEST: "min eval/scores/rare"})
        with pytest.raises(BadInput, match="unknown 'eval/scores/rare'"):
            watched.check(made._replace(config=config), None, tmp_path)
        assert [count for count, _ in rows[1:]] == [1, 4]  # it might be a metric of a late batch


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max train/loss/x", "unknown 'train/loss/x'; did you mean 'train/loss'"),
        ("max train", "unknown (evaluator )?''"),
        ("max train/", "unknown (evaluator )?''"),
        ("max train/losss", "did you mean 'loss'"),
        ("max eval", "unknown (evaluator )?''"),
        ("max time/seconds", "begins with eval or train"),
        ("max evals/scores/loss", "begins with eval or train"),
    ],
)
def test_a_key_of_training_is_checked_whole(program, text, says):
    config = changed(program.config, **{STOP: text})
    with pytest.raises(BadInput, match=says):
        check_task(config, program.task, program.plan)


def test_nothing_is_written_for_a_metric_that_is_refused(tmp_path):
    config = load(TOY, **{BEST: "max eval/scores"})
    with pytest.raises(BadInput, match=r"config.checkpoint.best: .*did you mean 'eval/scores/"):
        train.run(config, tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists()
