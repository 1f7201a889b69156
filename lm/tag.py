"""The tagging task: a class for each word of a sentence, such as its entity or part of speech.

The model is named by its import path, `config.model.module = "lm.bert:TokenClassifier"`, and called
as `model(tokens, segments, types, train)`; it needs fields `vocab_size` and `num_classes`. Its
optional `flops(L)` counts a row's forward pass, for MFU. `config.init.path` names the initial
parameters, as in `lm.classify`.

Letters: B batch, L positions, K classes.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from common import evaluate, losses
from common.errors import require
from common.nn import model as models
from common.sections import call
from common.task import Evaluator, Source, Task, padding, splits, training_flops
from lm import entities, weights
from lm.data import tagged, tokenizer

MODEL = "lm.bert:TokenClassifier"
GIVEN = ("vocab_size", "num_classes")
SIGNS = {"precision": 1, "recall": 1}  # see `common.losses.SIGNS`


def sections(config) -> dict[str, Callable]:
    """{section: the function that it feeds}; see `common.task`."""
    return {
        "model": models.section(config, MODEL, GIVEN),
        "data": tagged.load_sources,
        **evaluate.sections(config, evaluator),
    }


def sources(config: dict) -> dict[str, Source]:
    """The training set, and each evaluator's set under the evaluator's name."""
    return call(tagged.load_sources, config["data"], splits(config))


def _words(logits, batch: dict):
    """(logits f32[B * L, K], classes i32[B * L], weights f32[B * L]): 1 where a word has its first
    token."""
    label = batch["label"]
    weights = (label >= 0) * batch["valid"][:, None]
    rows = logits.reshape(-1, logits.shape[-1]), jnp.maximum(label, 0).reshape(-1)
    return *rows, weights.reshape(-1)


def evaluator(
    source: Source,
    word_logits: Callable,
    *,
    split: str = "valid",
    every: str = "1 epoch",
    batch_size: int = 128,
) -> Evaluator:
    """A section `evals.NAME`: loss and accuracy per word. For entities (tags B-TYPE, I-TYPE and so
    on) also precision, recall and F1 over entities, and the mean F1 of their types (`macro_f1`), as
    seqeval has them; for other tags macro F1.

    Args:
      source: the set.
      word_logits: (params, extra, batch, key) -> f32[B, L, K], as in evaluation.
      split: the split to evaluate, e.g. "valid" or "test[:500]".
      every: how often to evaluate, as a duration; the last step is always evaluated.
      batch_size: rows evaluated at a time; affects the result only by rounding.
    """
    del split  # `sources` has read it
    classes = source.facts.classes
    of_entities = entities.are_entities(classes)

    def outputs(params, extra, batch, key):
        values = word_logits(params, extra, batch, key)
        rows = _words(values, batch)
        terms = {
            "loss": losses.softmax_cross_entropy(*rows),
            "accuracy": losses.accuracy(*rows),
        }
        if not of_entities:
            terms["confusion"] = losses.confusion_matrix(*rows)
        return terms, {"tags": jnp.argmax(values, axis=-1)} if of_entities else {}

    def finish(totals, rows):
        if not of_entities:
            confusion = totals.pop("confusion")[0]
            return losses.ratio(totals) | {"f1": losses.macro_f1(confusion)}
        return losses.ratio(totals) | entities.scores(_sentences(source, rows["tags"]))

    return Evaluator(every, evaluate.row_evaluator(source, outputs, finish, batch_size=batch_size))


def _sentences(source: Source, predicted: np.ndarray) -> list[tuple[list[str], list[str]]]:
    """(true tags, predicted tags) of each sentence, which may be several rows."""
    rows, classes = source.read(np.arange(source.size, dtype=np.uint32)), source.facts.classes
    sentences = []
    for begins, label, guess in zip(rows["begins"], rows["label"], predicted, strict=True):
        if begins:
            sentences.append(([], []))
        for tags, numbers in zip(sentences[-1], (label, guess), strict=True):
            tags += [classes[i] for i in numbers[label >= 0]]
    return sentences


weights_settings = weights.settings  # see `common.task`


def make(config: dict, sources: dict[str, Source], constrain: Callable) -> Task:
    """The task; see `common.task`."""
    facts = sources["train"].facts
    require(
        len(facts.classes) != 1,
        f"config.data.name: every tag is {facts.classes[:1]}; at least two are needed",
    )
    fields = {"vocab_size": facts.vocab_size, "num_classes": len(facts.classes)}
    model = models.build(config["model"], constrain, **fields)

    def init(key):
        return model.init(key, jnp.zeros((1, 8), jnp.int32))["params"], {}

    def apply(params, batch, train=False, rngs=None):
        inputs = batch["tokens"], batch["segments"], batch["types"], train
        return model.apply({"params": params}, *inputs, rngs=rngs)

    def loss(params, extra, batch, key):
        rows = _words(apply(params, batch, True, {"dropout": key}), batch)
        terms = {
            "loss": losses.softmax_cross_entropy(*rows),
            "accuracy": losses.accuracy(*rows),
        }
        return terms, extra

    def word_logits(params, extra, batch, key):
        return apply(params, batch)

    return Task(
        init=init,
        prepare=lambda key, batch, train: batch,
        loss=loss,
        objective={"loss": 1.0},
        sources=sources,
        evaluators=evaluate.evaluators(config, evaluator, sources, word_logits=word_logits),
        partition=model.PARTITION,
        rows_independent=True,
        padding=padding(model),
        files=tokenizer.files(facts.tokenizer),
        pretrained=weights.reader(facts, config, model),
        flops=training_flops(model, facts.length),
        tokens=facts.length,
    )
