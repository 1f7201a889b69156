"""The tagging task: a class for each word of a sentence, such as its entity or part of speech.

The model is named by its import path, `config.model.module = "lm.bert:TokenClassifier"`, and called
as `model(tokens, segments, types, train)`; it needs fields `vocab_size` and `num_classes`. Its
optional `flops(L)` counts a row's forward pass, for MFU. `config.init.path` names the initial
parameters, as in `lm.classify`.

Letters: B batch, L positions, K classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import classes, evaluate, losses
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
from lm import entities, predict_spans, weights
from lm.data import tagged, tokenizer
from lm.data.tokenizer import TextFacts

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
    of_entities = entities.are_entities(source.facts.classes)

    def rows(params, extra, batch, key):
        values = word_logits(params, extra, batch, key)
        label = batch["label"]
        each = values, jnp.maximum(label, 0), (label >= 0).astype(jnp.float32)
        loss, _ = jax.vmap(losses.softmax_cross_entropy)(*each)
        return {"loss": loss, "tags": jnp.argmax(values, axis=-1), "valid": batch["valid"]}

    def finish(rows):
        label = source.read(np.arange(source.size, dtype=np.uint32))["label"]
        words = label >= 0
        true, guesses, count = label[words], rows["tags"][words], len(source.facts.classes)
        values = {
            "loss": float(rows["loss"].sum(dtype=np.float64) / len(true)),
            "accuracy": float((true == guesses).mean()),
        }
        if of_entities:
            return values | entities.scores(_sentences(source, rows["tags"]))
        confusion = np.zeros((count, count))
        np.add.at(confusion, (true, guesses), 1)
        return values | {"f1": losses.macro_f1(confusion)}

    made = evaluate.collecting_evaluator(source, rows, finish, batch_size=batch_size)
    return Evaluator(every, made)


def _sentences(source: Source, predicted: np.ndarray) -> list[tuple[list[str], list[str]]]:
    """(true tags, predicted tags) of each sentence, which may be several rows."""
    rows, names = source.read(np.arange(source.size, dtype=np.uint32)), source.facts.classes
    sentences = []
    for begins, label, guess in zip(rows["begins"], rows["label"], predicted, strict=True):
        if begins:
            sentences.append(([], []))
        for tags, numbers in zip(sentences[-1], (label, guess), strict=True):
            tags += [names[i] for i in numbers[label >= 0]]
    return sentences


weights_settings = weights.settings  # see `common.task`


def model_of(config: dict, facts: TextFacts, constrain: Callable = identity) -> nn.Module:
    """The model that a config describes, for the facts of a training set. `constrain` pins
    activations to a mesh."""
    fields = {"vocab_size": facts.vocab_size, "num_classes": len(facts.classes)}
    return models.build(config, constrain, **fields)


def make(config: dict, sources: dict[str, Source], constrain: Callable) -> Task:
    """The task; see `common.task`."""
    facts = sources["train"].facts
    require(
        len(facts.classes) != 1,
        f"config.data.name: every tag is {facts.classes[:1]}; at least two are needed",
    )
    model = model_of(config, facts, constrain)

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
        facts=Kept(facts.classes)._asdict(),
    )


# ------------------------------------------------------------------------------------- predictions


class Kept(NamedTuple):
    """What a run keeps of its data, beside the tokenizer: the tags."""

    classes: tuple[str, ...]


def kept(config: dict, folder) -> dict[str, Source] | None:
    """The training set without contents, by what its run keeps; see `common.task`."""
    encoder, known = tokenizer.kept(folder), run_facts.read(folder, Kept)
    if encoder is None or known is None:
        return None
    facts = tokenizer.facts(encoder)._replace(length=config["data"]["length"], **known._asdict())
    return {"train": tagged.empty(facts, config["train"]["batch_size"])}


def elsewhere(config: dict, own: dict, folder, sources: dict) -> dict[str, Source]:
    """Other tagged sentences, by the run's tokenizer; see `common.task`."""
    wanted = tokenizer.elsewhere(config, own, folder)
    others = call(tagged.load_sources, wanted["data"], held_out(wanted))
    return classes.renumbered(others, sources["train"].facts)


def predictor(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """Tags of words, and entities; see `common.task` and `lm.predict_spans`."""
    facts = sources["train"].facts
    return predict_spans.tags(model_of(config, facts, constrain), facts)
