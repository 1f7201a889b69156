"""The causal-LM task: predict every token from those before it in its document.

The model is named by its import path, `config.model.module = "lm.gpt:GPT"`, and called as
`model(tokens, segments, train)`; it needs a field `vocab_size`. Its optional `flops(L)` counts a
row's forward pass, for MFU.

Letters: B batch, L positions, V vocabulary.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from common import evaluate, losses
from common.nn import model as models
from common.nn.layers import identity
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
from lm import baseline, predict, predict_continued, shown, weights
from lm.data import text, tokenizer
from lm.data.tokenizer import TextFacts

MODEL = "lm.gpt:GPT"
GIVEN = ("vocab_size",)
SIGNS = {"bits_per_byte": -1}  # see `common.losses.SIGNS`


def sections(config) -> dict[str, Callable]:
    """{section: the function that it feeds}; see `common.task`."""
    return {
        "model": models.section(config, MODEL, GIVEN),
        "data": text.load_sources,
        **evaluate.sections(config, evaluator),
    }


def sources(config: dict) -> dict[str, Source]:
    """The training set, and each evaluator's set under the evaluator's name."""
    return call(text.load_sources, config["data"], splits(config), "clm")


def outline(config: dict) -> dict[str, Source]:
    """The Sources of `sources`, without contents; see `common.task`."""
    return text.outline_sources(splits(config), "clm", config["data"])


def _rows(batch: dict):
    """(targets i32[B * L], weights f32[B * L]); a document's first token is not predicted."""
    segments = batch["segments"]
    inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    weights = inside * batch["valid"][:, None]
    return batch["tokens"][:, 1:].astype(jnp.int32).reshape(-1), weights.reshape(-1)


def evaluator(
    source: Source,
    predict: Callable,
    *,
    split: str = "test",
    every: str = "1 epoch",
    batch_size: int = 64,
) -> Evaluator:
    """A section `evals.NAME`: loss in nats per token, accuracy, perplexity, the unigram baseline
    and, for byte-level tokenizers, bits per byte of the predicted text.

    Args:
      source: the set.
      predict: (params, batch) -> logits f32[B, L, V].
      split: the split to evaluate, e.g. "test" or "valid[:500]".
      every: how often to evaluate, as a duration; the last step is always evaluated.
      batch_size: rows evaluated at a time; affects the result only by rounding.
    """
    del split  # `sources` has read it
    log_shares = baseline.unigram(source.facts, special=True)
    token_bytes = source.facts.token_bytes

    def terms(params, extra, batch, key):
        targets, weights = _rows(batch)
        rows = predict(params, batch).reshape(len(targets), -1), targets, weights
        metrics = {
            "loss": losses.softmax_cross_entropy(*rows),
            "accuracy": losses.accuracy(*rows),
            **baseline.terms(log_shares, targets, weights),
        }
        if token_bytes is not None:
            size = jnp.asarray(token_bytes, jnp.float32)[targets]
            metrics["bytes"] = ((size * weights).sum(), weights.sum())
        return metrics

    def finish(totals):
        nats = totals["loss"][0]
        size = totals.pop("bytes", (0.0, 0.0))[0]
        values = losses.ratio(totals)
        values["perplexity"] = losses.perplexity(values["loss"])
        if size:
            values["bits_per_byte"] = float(nats / math.log(2) / size)
        return values

    means = evaluate.mean_evaluator(source, terms, finish, batch_size=batch_size)
    continued = shown.continued(source, predict)
    return Evaluator(every, lambda c: means(c) | (continued(c) if c.show else {}))


def model_of(config: dict, facts: TextFacts, constrain: Callable = identity) -> nn.Module:
    """The model that a config describes.

    Args:
      config: nested dict; its floats may be traced.
      facts: of the training set.
      constrain: pins activations to a mesh.
    """
    return models.build(config, constrain, vocab_size=facts.vocab_size)


weights_settings = weights.settings  # see `common.task`


def make(config: dict, sources: dict[str, Source], constrain: Callable) -> Task:
    """The task; see `common.task`."""
    facts = sources["train"].facts
    model = model_of(config, facts, constrain)

    def init(key):
        return model.init(key, jnp.zeros((1, 8), jnp.int32))["params"], {}

    def apply(params, batch, train=False, rngs=None):
        inputs = batch["tokens"][:, :-1], batch["segments"][:, :-1], train
        return model.apply({"params": params}, *inputs, rngs=rngs)

    def loss(params, extra, batch, key):
        targets, weights = _rows(batch)
        logits = apply(params, batch, True, {"dropout": key})
        rows = logits.reshape(len(targets), -1), targets, weights
        terms = {
            "loss": losses.softmax_cross_entropy(*rows),
            "accuracy": losses.accuracy(*rows),
        }
        return terms, extra

    return Task(
        init=init,
        prepare=lambda key, batch, train: batch,
        loss=loss,
        objective={"loss": 1.0},
        sources=sources,
        evaluators=evaluate.evaluators(config, evaluator, sources, predict=apply),
        partition=model.PARTITION,
        rows_independent=True,
        padding=padding(model),
        pretrained=weights.reader(facts, config, model),
        files=tokenizer.files(facts.tokenizer),
        flops=training_flops(model, facts.length),
        tokens=facts.length,
        shown=partial(shown.training, facts),
    )


# ------------------------------------------------------------------------------------- predictions


def kept(config: dict, folder) -> dict[str, Source] | None:
    """The training set without contents, by the tokenizer that its run keeps; see `common.task`."""
    return text.kept_source("clm", config["data"], folder)


def elsewhere(config: dict, own: dict, folder, sources: dict) -> dict[str, Source]:
    """Other texts, by the run's tokenizer; see `common.task`."""
    wanted = tokenizer.elsewhere(config, own, folder)
    return call(text.load_sources, wanted["data"], held_out(wanted), "clm")


def predictor(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """What comes next after a text; see `common.task` and `lm.predict_continued`."""
    facts = sources["train"].facts
    return predict_continued.continues(model_of(config, facts, constrain), facts)


def embedder(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """The mean of a text's hidden states; see `common.task` and `lm.predict`."""
    facts = sources["train"].facts
    return predict.vectors(model_of(config, facts, constrain), facts)
