"""The task of extractive question answering: find the span of a context that answers a question,
or say that none does.

The model is named by its import path, `config.model.module = "lm.bert:SpanAnswerer"`, and called as
`model(tokens, segments, types, train)`, for the logits of where an answer begins and ends; it needs
a field `vocab_size`. Its optional `flops(L)` counts a row's forward pass, for MFU.
`config.init.path` names the initial parameters, as in `lm.classify`.

Letters: B batch, L positions.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import evaluate, losses
from common.errors import require
from common.nn import model as models
from common.nn.layers import identity
from common.runs import facts as run_facts
from common.sections import call
from common.task import (
    Evaluator,
    Predictor,
    Source,
    Task,
    held_out,
    padding,
    splits,
    training_flops,
)
from lm import predict_spans, spans, weights
from lm.data import questions, tokenizer
from lm.data.questions import QuestionFacts
from lm.data.tokenizer import TextFacts

MODEL = "lm.bert:SpanAnswerer"
GIVEN = ("vocab_size",)
SIGNS = {"exact_match": 1}  # see `common.losses.SIGNS`


def sections(config) -> dict[str, Callable]:
    """{section: the function that it feeds}; see `common.task`."""
    return {
        "model": models.section(config, MODEL, GIVEN),
        "data": questions.load_sources,
        **evaluate.sections(config, evaluator),
    }


def sources(config: dict) -> dict[str, Source]:
    """The training set, and each evaluator's set under the evaluator's name."""
    return call(questions.load_sources, config["data"], splits(config))


def span_loss(start, end, span, segments, valid):
    """The mean of two cross-entropies, of where an answer begins and where it ends, over all
    positions but padding (Devlin et al. 2019, section 4.2).

    Args:
      start, end: f32[B, L] logits.
      span: i32[B, 2], the positions of the answer's first and last token; 0 for none.
      segments: i32[B, L], 0 on padding.
      valid: f32[B] weights.

    Returns:
      (sum f32[], weight f32[]) in nats.
    """
    each = [
        losses.softmax_cross_entropy(_unpadded(logits, segments), span[:, i], valid)
        for i, logits in enumerate((start, end))
    ]
    return (each[0][0] + each[1][0]) / 2, each[0][1]


def _unpadded(logits, segments):
    """Logits with no probability on padding."""
    return jnp.where(segments > 0, logits, jnp.finfo(logits.dtype).min)


def evaluator(
    source: Source,
    span_logits: Callable,
    *,
    split: str = "valid",
    every: str = "1 epoch",
    batch_size: int = 64,
    max_answer_length: int = 30,
    null_threshold: float = 0.0,
) -> Evaluator:
    """A section `evals.NAME`: loss per window and, over questions, exact match and F1 by SQuAD's
    rules, from 0 to 1. The answer is the best span of all windows of a question. If the data set
    has questions without an answer, no span may be the answer, too, and the metrics of either kind
    of question are told apart: `answerable_f1` and `unanswerable_accuracy`.

    Args:
      source: the set.
      span_logits: (params, extra, batch, key) -> (start f32[B, L], end f32[B, L]), as in
        evaluation.
      split: the split to evaluate, e.g. "valid" or "test[:500]".
      every: how often to evaluate, as a duration; the last step is always evaluated.
      batch_size: rows evaluated at a time; affects the result only by rounding.
      max_answer_length: the most tokens of an answer.
      null_threshold: how far, in logits, the score of no answer must lie above that of the best
        span for the answer to be none.
    """
    del split  # `sources` has read it
    facts: QuestionFacts = source.facts
    positive = f"config.evals: max_answer_length = {max_answer_length} is not positive"
    require(max_answer_length > 0, positive)

    def rows(params, extra, batch, key):
        start, end = span_logits(params, extra, batch, key)
        score, first, last = spans.likeliest(start, end, batch["context"], max_answer_length)
        each = start, end, batch["span"], batch["segments"], jnp.ones_like(batch["valid"])
        loss, _ = jax.vmap(lambda *row: span_loss(*(x[None] for x in row)))(*each)
        best = {"null": start[:, 0] + end[:, 0], "score": score, "first": first, "last": last}
        return best | {"loss": loss, "valid": batch["valid"]}

    def finish(rows):
        context = source.read(np.arange(source.size, dtype=np.uint32))["context"]
        best = best_answers(facts, rows, context[:, 0], null_threshold)
        right = [[text for text, _ in question.answers] for question in facts.questions]
        scores = np.array([spans.scores(*pair) for pair in zip(best, right, strict=True)])
        exact, f1 = scores.T
        answerable = np.array([bool(texts) for texts in right])
        sums = {
            "loss": (rows["loss"].sum(dtype=np.float64), source.size),
            "exact_match": (exact.sum(), len(exact)),
            "f1": (f1.sum(), len(f1)),
        }
        if facts.unanswerable:
            sums["answerable_f1"] = f1[answerable].sum(), answerable.sum()
            sums["unanswerable_accuracy"] = exact[~answerable].sum(), (~answerable).sum()
        return losses.ratio(sums)

    made = evaluate.collecting_evaluator(source, rows, finish, batch_size=batch_size)
    return Evaluator(every, made)


def best_answers(
    facts: QuestionFacts, rows: dict, begins: np.ndarray, null_threshold: float
) -> list[str]:
    """The answer to each question, "" for none: the best span of its windows.

    Args:
      facts: of the set.
      rows: {"score", "first", "last": [N, 1], of the best span of each window; "null": [N]}.
      begins: i32[N], the position of each row at which its window begins.
      null_threshold: as in `evaluator`.
    """
    answers = []
    bounds = np.searchsorted(facts.question, np.arange(len(facts.questions) + 1))
    for number, question in enumerate(facts.questions):
        windows = range(bounds[number], bounds[number + 1])
        best = max(windows, key=lambda row: rows["score"][row, 0])
        none = min(rows["null"][row] for row in windows)
        if facts.unanswerable and none - rows["score"][best, 0] > null_threshold:
            answers.append("")
            continue
        shift = facts.first[best] - begins[best]
        ends = (int(rows[key][best, 0] + shift) for key in ("first", "last"))
        (start, _), (_, end) = (facts.characters[number][token] for token in ends)
        answers.append(question.context[start:end])
    return answers


weights_settings = weights.settings  # see `common.task`


def model_of(config: dict, facts: TextFacts, constrain: Callable = identity) -> nn.Module:
    """The model that a config describes, for the facts of a tokenizer. `constrain` pins activations
    to a mesh."""
    return models.build(config, constrain, vocab_size=facts.vocab_size)


def make(config: dict, sources: dict[str, Source], constrain: Callable) -> Task:
    """The task; see `common.task`."""
    facts: TextFacts = sources["train"].facts.text
    model = model_of(config, facts, constrain)

    def init(key):
        return model.init(key, jnp.zeros((1, 8), jnp.int32))["params"], {}

    def apply(params, batch, train=False, rngs=None):
        inputs = batch["tokens"], batch["segments"], batch["types"], train
        return model.apply({"params": params}, *inputs, rngs=rngs)

    def loss(params, extra, batch, key):
        start, end = apply(params, batch, True, {"dropout": key})
        return {
            "loss": span_loss(start, end, batch["span"], batch["segments"], batch["valid"])
        }, extra

    def span_logits(params, extra, batch, key):
        return apply(params, batch)

    return Task(
        init=init,
        prepare=lambda key, batch, train: batch,
        loss=loss,
        objective={"loss": 1.0},
        sources=sources,
        evaluators=evaluate.evaluators(config, evaluator, sources, span_logits=span_logits),
        partition=model.PARTITION,
        rows_independent=True,
        padding=padding(model),
        files=tokenizer.files(facts.tokenizer),
        pretrained=weights.reader(facts, config, model),
        flops=training_flops(model, facts.length),
        tokens=facts.length,
        facts=Kept(sources["train"].facts.unanswerable)._asdict(),
    )


# ------------------------------------------------------------------------------------- predictions


class Kept(NamedTuple):
    """What a run keeps of its data, beside the tokenizer: whether any question has no answer."""

    unanswerable: bool


def kept(config: dict, folder) -> dict[str, Source] | None:
    """The training set without contents, by what its run keeps; see `common.task`."""
    encoder, known = tokenizer.kept(folder), run_facts.read(folder, Kept)
    if encoder is None or known is None:
        return None
    facts = tokenizer.facts(encoder)._replace(length=config["data"]["length"])
    return {"train": questions.empty(facts, known.unanswerable, config["train"]["batch_size"])}


def elsewhere(config: dict, own: dict, folder, sources: dict) -> dict[str, Source]:
    """Other questions, by the run's tokenizer; see `common.task`."""
    wanted = tokenizer.elsewhere(config, own, folder)
    return call(questions.load_sources, wanted["data"], held_out(wanted))


def predictor(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """Answers; see `common.task` and `lm.predict_spans`."""
    facts: QuestionFacts = sources["train"].facts
    model = model_of(config, facts.text, constrain)
    sizes = config["data"]["stride"], config["data"]["question_length"]
    return predict_spans.answers(model, facts.text, facts.unanswerable, *sizes)
