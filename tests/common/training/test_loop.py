"""What is due after a step is a pure function of the program, the step and the log."""

import jax
import pytest
from helpers import DIGITS, load

from common.training.loop import due, next_steps
from common.training.program import prepare

KEYS = {
    "train.duration": "20 steps",
    "train.log_every": "5 steps",
    "checkpoint.every": "8 steps",
    "evals.test.every": "6 steps",
}


def program(**overrides):
    config = load(f"{DIGITS}:mlp", **(KEYS | overrides))
    return prepare(config, jax.devices()[:1])


def evaluations(*values: float, key: str = "eval/test/loss") -> list[dict]:
    return [{"step": 6 * (i + 1), key: value} for i, value in enumerate(values)]


def test_each_kind_is_due_at_its_own_steps():
    made = program()
    found = {step: due(made, step, []) for step in range(21)}
    assert [s for s, now in found.items() if now.evaluate] == [6, 12, 18, 20]
    assert [s for s, now in found.items() if now.save] == [8, 16, 20]
    assert [s for s, now in found.items() if now.last] == [20]
    assert not any(now.stop for now in found.values())


def test_an_evaluation_of_the_best_metric_is_followed_by_a_save():
    made = program(**{"checkpoint.best": "min eval/test/loss"})
    assert not due(made, 6, []).save  # not evaluated yet
    assert due(made, 6, evaluations(0.5)).save
    assert not due(made, 12, evaluations(0.5)).save
    assert due(made, 12, evaluations(0.5, 0.9)).save  # whether it is the best, `Policy` decides


def test_patience_ends_the_run_and_evaluates_all():
    stop = {"train.stop.metric": "min eval/test/loss", "train.stop.patience": 2}
    made = program(**stop)
    history = evaluations(0.5, 0.6, 0.7)
    assert not due(made, 12, history[:2]).stop
    now = due(made, 18, history)
    assert (now.stop, now.last, now.save) == (True, True, True)
    assert now.evaluate == set(made.every)
    assert not due(made, 17, history).stop  # nothing new to decide by


def test_a_metric_of_training_is_read_where_it_is_logged():
    made = program(**{"train.stop.metric": "min train/loss", "train.stop.patience": 1})
    history = [{"step": 5, "train/loss": 1.0}, {"step": 10, "train/loss": 1.0}]
    assert [step for step in range(8, 13) if due(made, step, history).stop] == [10, 12]


@pytest.mark.parametrize("calls", [1, 4, 100])
def test_calls_end_where_something_is_due(calls):
    made = program(**{"train.steps_per_call": calls})
    step, ends = 0, []
    while step < 20:
        steps = next_steps(made, step, range(9, 11))
        assert steps.start == step
        assert 0 < len(steps) <= calls
        step = steps.stop
        ends.append(step)
    assert {5, 6, 8, 9, 10, 11, 12, 15, 16, 18, 20} <= set(ends)
    assert len(ends) == {1: 20, 4: 12, 100: 11}[calls]


def test_the_same_answer_is_given_twice():
    made, history = program(), evaluations(0.5, 0.6)
    before = [dict(line) for line in history]
    assert due(made, 12, history) == due(made, 12, history)
    assert history == before
