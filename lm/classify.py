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
import jax
import jax.numpy as jnp
import numpy as np

from common import classes, evaluate, losses
from common.compress.distill import Lesson, outputs, same_classes
from common.compress.distill import lesson as lesson_of
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
from lm import bert, predict, shown, weights
from lm.data import labelled, tokenizer
from lm.data.tokenizer import TextFacts
from lm.teaching import teacher_of, teaching

MODEL = "lm.bert:Classifier"
GIVEN = ("vocab_size", "num_classes")


def sections(config) -> dict[str, Callable]:
    """{section: the function that it feeds}; see `common.task`."""
    return {
        "model": models.section(config, MODEL, GIVEN),
        "data": labelled.load_sources,
        "loss": loss_section,
        **evaluate.sections(config, evaluator),
    }


def loss_section(
    *,
    label_smoothing: float | None = None,
    class_weights: str = "",
    teacher: str = "",
    temperature: float | None = None,
    distill: float | None = None,
    hidden: float | None = None,
) -> tuple[tuple[float | None, str], Lesson | None]:
    """The section `loss`: (what `losses.classification` returns, that of a teacher).

    Args:
      label_smoothing: share of each training target spread over all classes; None disables it. With
        several labels an example, the targets 1 and 0 become 1 - share / 2 and share / 2.
      class_weights: weights of the classes in the training loss; evaluation has none. "balanced"
        gives each class the same total weight: N / (K n) for one of K classes that has n of N
        examples; "cat=2,dog=0.5" names weights, 1 for other classes; "" is 1 for all. With several
        labels an example they multiply the loss of a class's positives, and "balanced" is its
        negatives / positives.
      teacher: the workdir of a run of lm.classify, or a published classifier, with the same classes
        and tokens, whose outputs the model learns as well; "" is none.
      temperature: by which the logits of both are divided (Hinton et al. 2015); None is 1.
      distill: share of the teacher's classes in the objective, labels having the rest; None is 0.
      hidden: weight of the mean squared error of the blocks' outputs, layers mapped evenly, through
        a learned projection if widths differ (Jiao et al. 2020); None is no such term.
    """
    classification = losses.classification(
        label_smoothing=label_smoothing, class_weights=class_weights
    )
    lesson = lesson_of(teacher=teacher, temperature=temperature, distill=distill, hidden=hidden)
    return classification, lesson


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
    (label_smoothing, class_weights), lesson = call(loss_section, config["loss"])
    class_weights = losses.class_weights(class_weights, sources["train"], facts.classes)
    require(
        label_smoothing is None or bool(facts.classes),
        "config.loss.label_smoothing: smoothing is for classes, and the labels are numbers",
    )

    teacher, hard = None, "loss" if lesson is None else "hard"
    if lesson is not None:
        required = lesson.distill is None or bool(facts.classes)
        require(required, "config.loss.distill: it is a share of classes, and labels are numbers")
        kind = bert.Classifier
        teacher = teacher_of(config, lesson.teacher, facts, model_of, kind, constrain)
        count = getattr(teacher.model, "num_classes", 1)
        same_classes(lesson.teacher, facts.classes, teacher.classes, count)

    def inputs(batch):
        return batch["tokens"], batch["segments"], batch["types"]

    row = jax.ShapeDtypeStruct((1, facts.length), jnp.int32)
    row = dict.fromkeys(("tokens", "segments", "types"), row)
    taught = teaching(
        lesson, teacher, model, inputs, row, {hard: 1.0}, hard,
        several=facts.multi_label, constrain=constrain,
    )  # fmt: skip

    def init(key):
        params = model.init(key, jnp.zeros((1, 8), jnp.int32))["params"]
        return params | taught.init(key), {}

    def loss(params, extra, batch, key, frozen=None):
        options = {"rngs": {"dropout": key}, "captures": taught.captures}
        own = outputs(model, {"params": params}, *inputs(batch), True, **options)
        terms = labelled_terms(own.result, batch)
        return terms | taught.terms(params, frozen, batch, own, batch["valid"]), extra

    def labelled_terms(logits, batch):
        rows = logits, batch["label"], batch["valid"]
        if not facts.classes:
            return {hard: losses.squared_error(logits, rows[1][:, None], rows[2])}
        loss, metric = losses.of_labels(facts.multi_label)
        terms = {hard: loss(*rows, label_smoothing, class_weights)}
        return terms | {metric.__name__: metric(*rows)}

    def logits(params, extra, batch, key):
        return model.apply({"params": params}, *inputs(batch), False)

    return Task(
        init=init,
        prepare=lambda key, batch, train: batch,
        loss=loss,
        objective=taught.objective,
        sources=sources,
        evaluators=evaluate.evaluators(config, evaluator, sources, logits=logits),
        partition=(*model.PARTITION, *taught.partition),
        rows_independent=True,
        padding=padding(model),
        files=tokenizer.files(facts.tokenizer),
        pretrained=weights.reader(facts, config, model),
        flops=training_flops(model, facts.length),
        tokens=facts.length,
        facts=Kept(facts.classes, facts.texts, facts.multi_label)._asdict(),
        shown=partial(shown.training, facts),
        frozen=taught.frozen,
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
