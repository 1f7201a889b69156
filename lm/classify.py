"""The text classification task: fine-tuning to predict a class or a number from one or two texts.

The model is named by its import path, `config.model.module = "lm.bert:Classifier"`, and called as
`model(tokens, segments, types, train)`; it needs fields `vocab_size` and `num_classes` (1 for a
regression). Its optional `flops(L)` counts a row's forward pass, for MFU. `config.init.path` names
the initial parameters: the workdir of a pretraining run, or weights in the Hugging Face layout, by
path or by the name under which scripts/prepare.py fetched them.

Letters: B batch, L positions, K classes.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from common import classes, evaluate, losses
from common.errors import require
from common.evaluators import multi_label
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
from lm import predict, shown, weights
from lm.data import labelled, tokenizer
from lm.data.tokenizer import TextFacts

MODEL = "lm.bert:Classifier"
GIVEN = ("vocab_size", "num_classes")


def sections(config) -> dict[str, Callable]:
    """{section: the function that it feeds}; see `common.task`."""
    return {
        "model": models.section(config, MODEL, GIVEN),
        "data": labelled.load_sources,
        "loss": losses.classification,
        **evaluate.sections(config, evaluator),
    }


def sources(config: dict) -> dict[str, Source]:
    """The training set, and each evaluator's set under the evaluator's name."""
    return call(labelled.load_sources, config["data"], splits(config))


def outline(config: dict) -> dict[str, Source]:
    """The Sources of `sources`, without contents; see `common.task`."""
    return labelled.outline_sources(splits(config), config["data"])


def evaluator(
    source: Source,
    logits: Callable,
    *,
    split: str = "valid",
    every: str = "1 epoch",
    batch_size: int = 128,
) -> Evaluator:
    """A section `evals.NAME`: for classes, loss (without smoothing and weights), accuracy, macro F1
    and Matthews' correlation; for several labels an example, what `common.evaluators.multi_label`
    logs; for numbers, mean squared error as loss, and Pearson's correlation.

    Args:
      source: the set.
      logits: (params, extra, batch, key) -> f32[B, K], as in evaluation.
      split: the split to evaluate, e.g. "valid" or "test[:500]".
      every: how often to evaluate, as a duration; the last step is always evaluated.
      batch_size: rows evaluated at a time; affects the result only by rounding.
    """
    if source.facts.multi_label:
        kept = {"split": split, "every": every, "batch_size": batch_size}
        return multi_label.evaluator(source, logits, **kept)
    del split  # `sources` has read it
    regression = not source.facts.classes
    centre = 0.0
    if regression:
        all_rows = np.arange(source.size, dtype=np.uint32)
        centre = float(np.mean(source.read(all_rows)["label"], dtype=np.float64))

    def terms(params, extra, batch, key):
        outputs = logits(params, extra, batch, key)
        rows = outputs, batch["label"], batch["valid"]
        if regression:
            guess, label = outputs[:, 0] - centre, batch["label"] - centre
            squared = losses.squared_error(outputs, batch["label"][:, None], batch["valid"])
            return {"moments": losses.moments(guess, label, batch["valid"]), "loss": squared}
        return {
            "accuracy": losses.accuracy(*rows),
            "confusion": losses.confusion_matrix(*rows),
            "loss": losses.softmax_cross_entropy(*rows),
        }

    def finish(totals):
        if regression:
            values = {"pearson": losses.pearson(*totals.pop("moments"))}
        else:
            confusion = totals.pop("confusion")[0]
            values = {"f1": losses.macro_f1(confusion), "matthews": losses.matthews(confusion)}
            values["confusion"] = confusion
        return losses.ratio(totals) | values

    means = evaluate.mean_evaluator(source, terms, finish, batch_size=batch_size)
    show = shown.classified(source, logits)

    def run(context):
        values = means(context)
        confusion = values.pop("confusion", None)
        shows = context.show and confusion is not None
        return values | (show(context, confusion) if shows else {})

    return Evaluator(every, run)


def model_of(config: dict, facts: TextFacts, constrain: Callable = identity) -> nn.Module:
    """The model that a config describes, for texts and classes with these facts."""
    fields = {"vocab_size": facts.vocab_size, "num_classes": len(facts.classes) or 1}
    return models.build(config, constrain, **fields)


weights_settings = weights.settings  # see `common.task`


def make(config: dict, sources: dict[str, Source], constrain: Callable) -> Task:
    """The task; see `common.task`."""
    facts = sources["train"].facts
    require(
        len(facts.classes) != 1 or facts.multi_label,
        f"config.data.name: every label is {facts.classes[:1]}; at least two classes are needed",
    )
    model = model_of(config, facts, constrain)
    label_smoothing, class_weights = call(losses.classification, config["loss"])
    class_weights = losses.class_weights(class_weights, sources["train"], facts.classes)
    require(
        label_smoothing is None or bool(facts.classes),
        "config.loss.label_smoothing: smoothing is for classes, and the labels are numbers",
    )

    def init(key):
        return model.init(key, jnp.zeros((1, 8), jnp.int32))["params"], {}

    def apply(params, batch, train=False, rngs=None):
        inputs = batch["tokens"], batch["segments"], batch["types"], train
        return model.apply({"params": params}, *inputs, rngs=rngs)

    def loss(params, extra, batch, key):
        logits = apply(params, batch, True, {"dropout": key})
        rows = logits, batch["label"], batch["valid"]
        if not facts.classes:
            return {"loss": losses.squared_error(logits, rows[1][:, None], rows[2])}, extra
        loss, metric = losses.of_labels(facts.multi_label)
        terms = {"loss": loss(*rows, label_smoothing, class_weights)}
        return terms | {metric.__name__: metric(*rows)}, extra

    def logits(params, extra, batch, key):
        return apply(params, batch)

    return Task(
        init=init,
        prepare=lambda key, batch, train: batch,
        loss=loss,
        objective={"loss": 1.0},
        sources=sources,
        evaluators=evaluate.evaluators(config, evaluator, sources, logits=logits),
        partition=model.PARTITION,
        rows_independent=True,
        padding=padding(model),
        files=tokenizer.files(facts.tokenizer),
        pretrained=weights.reader(facts, config, model),
        flops=training_flops(model, facts.length),
        tokens=facts.length,
        facts=Kept(facts.classes, facts.texts, facts.multi_label)._asdict(),
        shown=partial(shown.training, facts),
    )


# ------------------------------------------------------------------------------------- predictions


class Kept(NamedTuple):
    """What a run keeps of its data, beside the tokenizer: fields of `TextFacts`."""

    classes: tuple[str, ...]
    texts: int
    multi_label: bool = False


def kept(config: dict, folder) -> dict[str, Source] | None:
    """The training set without contents, by what its run keeps; see `common.task`."""
    encoder, known = tokenizer.kept(folder), run_facts.read(folder, Kept)
    if encoder is None or known is None:
        return None
    facts = tokenizer.facts(encoder)._replace(length=config["data"]["length"], **known._asdict())
    return {"train": labelled.empty(facts, config["train"]["batch_size"], resident=False)}


def elsewhere(config: dict, own: dict, folder, sources: dict) -> dict[str, Source]:
    """Other labelled texts, by the run's tokenizer; see `common.task`."""
    wanted = tokenizer.elsewhere(config, own, folder)
    others = call(labelled.load_sources, wanted["data"], held_out(wanted))
    facts = sources["train"].facts
    for source in others.values():
        texts = f"config.data.name: its examples have {source.facts.texts} texts, those of the run"
        require(source.facts.texts == facts.texts, f"{texts} {facts.texts}")
    return classes.renumbered(others, facts)


def predictor(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """Classes with their probabilities, or a number; see `common.task` and `lm.predict`."""
    facts = sources["train"].facts
    return predict.classifies(model_of(config, facts, constrain), facts)


def embedder(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """What the classifier classifies, a vector; see `common.task` and `lm.predict`."""
    facts = sources["train"].facts
    return predict.vectors(model_of(config, facts, constrain), facts)
