"""The task of answering questions: its metrics are of questions, and it learns."""

import corpus
import jax
import numpy as np
import pytest
from helpers import ROOT, load

from common.training import program, train
from common.training.loop import eval_context
from lm import answer, bert, spans

SMALL = {
    "model.layers": 1, "model.width": 32, "model.hidden": 48, "model.heads": 2,
    "init.path": "", "init.skip": "()", "data.length": 24, "data.stride": 7,
    "data.question_length": 5, "train.batch_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """Overrides that name a small set and its tokenizer."""
    folder = tmp_path_factory.mktemp("answer")
    tokenizer = corpus.tokenizer(folder, "wordpiece", 300)
    return {"data.name": corpus.questions(folder, 80), "data.tokenizer": tokenizer}


def config(made_up: dict, **overrides) -> dict:
    return load(f"{ROOT}/configs/lm/answer.py", **(SMALL | made_up | overrides))


def reference(facts, rows, start, end, longest: int) -> list[tuple[float, float, str]]:
    """(score of no answer, score of the best span, its text) of each question, by loops."""
    best = [(np.inf, -np.inf, "") for _ in facts.questions]
    for row, number in enumerate(facts.question):
        none, score, text = best[number]
        begin, stop = rows["context"][row]
        for i in range(begin, stop):
            for j in range(i, min(i + longest, stop)):
                if start[row, i] + end[row, j] > score:
                    score = start[row, i] + end[row, j]
                    tokens = facts.characters[number][
                        [facts.first[row] + k - begin for k in (i, j)]
                    ]
                    text = facts.questions[number].context[tokens[0, 0] : tokens[1, 1]]
        best[number] = min(none, start[row, 0] + end[row, 0]), score, text
    return best


def test_metrics_are_of_questions_whatever_the_windows(made_up):
    made = program.prepare(config(made_up), jax.devices()[:1])
    with jax.set_mesh(made.layout.mesh):
        state = program.initial_state(made)
    state = state._replace(params=jax.tree.map(lambda x: x * 3, state.params))
    source = made.task.sources["test"]
    facts, rows = source.facts, source.read(np.arange(source.size))
    assert source.size > 1.5 * len(facts.questions) > 0
    fields = {k: v for k, v in made.config["model"].items() if k != "module"}
    model = bert.SpanAnswerer(vocab_size=300, **fields)
    inputs = rows["tokens"], rows["segments"], rows["types"]
    start, end = jax.jit(lambda p, *i: model.apply({"params": p}, *i))(state.params, *inputs)
    start, end = np.asarray(start), np.asarray(end)
    losses = []
    for logits, place in ((start, rows["span"][:, 0]), (end, rows["span"][:, 1])):
        for row, at in enumerate(place):
            real = logits[row, : rows["segments"][row].sum()].astype(np.float64)
            losses.append(np.log(np.exp(real).sum()) - real[at])
    best = reference(facts, rows, start, end, 3)
    margins = [none - score for none, score, _ in best]
    threshold = float(np.median(margins))
    apply = lambda params, extra, batch, key: model.apply(
        {"params": params}, *(batch[k] for k in ("tokens", "segments", "types"))
    )
    evaluator = answer.evaluator(
        source, apply, null_threshold=threshold, batch_size=7, max_answer_length=3
    )
    with jax.set_mesh(made.layout.mesh):
        found = evaluator.run(eval_context(made, state, 0))
    right = [[text for text, _ in question.answers] for question in facts.questions]
    guesses = ["" if none - score > threshold else text for none, score, text in best]
    assert 0 < guesses.count("") < len(guesses)
    values = np.array([spans.scores(*pair) for pair in zip(guesses, right, strict=True)])
    assert found["exact_match"] == pytest.approx(values[:, 0].mean())
    assert found["f1"] == pytest.approx(values[:, 1].mean())
    none = np.array([not texts for texts in right])
    assert 0 < none.sum() < len(none)
    assert found["answerable_f1"] == pytest.approx(values[~none, 1].mean())
    assert found["unanswerable_accuracy"] == pytest.approx(values[none, 0].mean())
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.slow
def test_it_learns_which_questions_have_an_answer(made_up, tmp_path, compiled_in_haste):
    quick = {"train.duration": "8 epochs", "optim.lr": 0.01, "checkpoint.every": "100%"}
    quick |= {"evals.valid": None, "evals.test.every": "100%", "model.dropout": None}
    quick |= {"data.name": corpus.questions(tmp_path, 300, sentences=2), "data.length": 32}
    test = train.run(config(made_up, **quick), tmp_path / "run", show=False)["eval"]["test"]
    assert test["exact_match"] > 0.9
    assert test["unanswerable_accuracy"] > 0.9
    assert test["answerable_f1"] > 0.9
