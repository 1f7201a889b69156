"""The masked-LM task (Devlin et al. 2019): predict hidden tokens and, optionally, whether the
second sentence follows the first.

The model is named by its import path, `config.model.module = "lm.bert:Bert"`, and called as
`model(tokens, segments, types, picked, train)`; it needs a field `vocab_size`, and `next_sentence`
for next-sentence prediction. Logits are computed only at the picked positions. Its optional
`flops(L, P)` counts a row's forward pass, for MFU.

Letters: B batch, L positions, P picked positions, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from common import evaluate, losses
from common.compress.distill import Lesson, outputs
from common.compress.distill import lesson as lesson_of
from common.errors import require
from common.nn import model as models
from common.nn.layers import identity
from common.sections import call
from common.task import (
    Evaluator,
    Predictor,
    Shown,
    Source,
    Task,
    held_out,
    padding,
    row_keys,
    splits,
    training_flops,
)
from lm import baseline, bert, fill, masking, predict, shown, weights
from lm.data import text, tokenizer
from lm.data.tokenizer import TextFacts
from lm.teaching import teacher_of, teaching

MODEL = "lm.bert:Bert"
GIVEN = ("vocab_size", "next_sentence")


def loss_section(
    *,
    nsp: bool = False,
    teacher: str = "",
    temperature: float | None = None,
    distill: float | None = None,
    hidden: float | None = None,
) -> tuple[bool, Lesson | None]:
    """The section `loss`: (nsp, that of a teacher).

    Args:
      nsp: add next-sentence prediction as a second objective; rows are then pairs of texts.
      teacher: the workdir of a run of lm.mlm, or a published BERT with its masked-LM head, with the
        same tokens, whose outputs at hidden tokens the model learns as well; "" is none.
      temperature: by which the logits of both are divided (Hinton et al. 2015); None is 1.
      distill: share of the teacher's predictions in the objective, tokens having the rest; None
        is 0.
      hidden: weight of the mean squared error of the blocks' outputs, layers mapped evenly, through
        a learned projection if widths differ (Jiao et al. 2020); None is no such term.
    """
    lesson = lesson_of(teacher=teacher, temperature=temperature, distill=distill, hidden=hidden)
    return nsp, lesson


def sections(config) -> dict[str, Callable]:
    """{section: the function that it feeds}; see `common.task`."""
    return {
        "model": models.section(config, MODEL, GIVEN),
        "data": text.load_sources,
        "masking": masking.make_masking,
        "loss": loss_section,
        **evaluate.sections(config, evaluator),
    }


def sources(config: dict) -> dict[str, Source]:
    """The training set, and each evaluator's set under the evaluator's name."""
    return call(text.load_sources, config["data"], splits(config), _form(config))


def outline(config: dict) -> dict[str, Source]:
    """The Sources of `sources`, without contents; see `common.task`."""
    return text.outline_sources(splits(config), _form(config), config["data"])


def _form(config: dict) -> text.Form:
    nsp, _ = call(loss_section, config["loss"])
    return "pairs" if nsp else "mlm"


def _rows(batch: dict):
    """(targets i32[B * P], weights f32[B * P]) of a masked batch."""
    return batch["target"].reshape(-1), (batch["weight"] * batch["valid"][:, None]).reshape(-1)


def evaluator(
    source: Source,
    masked: Callable,
    predict: Callable,
    *,
    split: str = "test",
    every: str = "1 epoch",
    batch_size: int = 256,
    show: int = 0,
) -> Evaluator:
    """A section `evals.NAME`: loss in nats per token, accuracy, perplexity, and the unigram
    baseline on the same positions. With next-sentence prediction, also its loss and accuracy.

    Args:
      source: the set.
      masked: (key, batch) -> the batch with tokens hidden; always the same ones of a row.
      predict: (params, batch) -> (token logits, next-sentence logits or None).
      split: the split to evaluate, e.g. "test" or "valid[:500]".
      every: how often to evaluate, as a duration; the last step is always evaluated.
      batch_size: rows evaluated at a time; affects the result only by rounding.
      show: number of rows, evenly spaced over the set, to log with one word hidden and guessed.
    """
    del split  # `sources` has read it
    require(show >= 0, f"config.evals: show = {show} is negative")
    log_shares = baseline.unigram(source.facts, special=False)

    def terms(params, extra, batch, key):
        batch = masked(key, batch)
        targets, weights = _rows(batch)
        logits, following = predict(params, batch)
        rows = logits.reshape(len(targets), -1), targets, weights
        metrics = {
            "loss": losses.softmax_cross_entropy(*rows),
            "accuracy": losses.accuracy(*rows),
            **baseline.terms(log_shares, targets, weights),
        }
        return metrics | _next_terms(following, batch)

    def finish(totals):
        values = losses.ratio(totals)
        return values | {"perplexity": losses.perplexity(values["loss"])}

    @jax.jit
    def guess(params, rows, key):
        """Hides one masked position of each row, a whole word if there is one, and predicts it."""
        picked = masked(key, rows)["picked"]
        pieces = jnp.asarray(source.facts.continues)[rows["tokens"].astype(jnp.int32)]
        pieces |= jnp.pad(pieces[:, 1:], ((0, 0), (0, 1)))  # and the piece before each
        whole_words = ~jnp.take_along_axis(pieces, picked, axis=1)
        first = jnp.argmax(whole_words, axis=1)[:, None]
        rows = rows | {"picked": jnp.take_along_axis(picked, first, axis=1)}
        places = jnp.arange(len(rows["tokens"]))[:, None], rows["picked"]
        hidden = rows["tokens"].astype(jnp.int32).at[places].set(source.facts.special["mask"])
        logits, _ = predict(params, rows | {"tokens": hidden})
        ids, probabilities = fill.guesses(logits, 1)
        outputs = rows["tokens"], rows["picked"][:, 0], ids[:, 0, 0], probabilities[:, 0, 0]
        return jax.lax.with_sharding_constraint(outputs, PartitionSpec())

    means = evaluate.mean_evaluator(source, terms, finish, batch_size=batch_size)

    def run(context):
        values = means(context)
        if show or context.show:
            count = min(show or shown.MOST, source.size)  # evenly spaced over the set
            at = (np.arange(count) * source.size // count).astype(np.uint32)
            rows = source.read(at) | {"index": at}
            rows = zip(*jax.device_get(guess(context.params, rows, context.key)), strict=True)
            lines = [fill.sentence(source.facts.tokenizer, *row) for row in rows]
            filled = "\n".join(lines)
            values["filled"] = filled if show else Shown(lambda: filled)
        return values

    return Evaluator(every, run)


def _next_terms(following, batch: dict) -> dict:
    """Terms of next-sentence prediction; {} without it."""
    if following is None:
        return {}
    rows = following, 1 - batch["next"], batch["valid"]  # class 0: B follows A
    return {
        "nsp": losses.softmax_cross_entropy(*rows),
        "nsp_accuracy": losses.accuracy(*rows),
    }


def model_of(config: dict, facts: TextFacts, constrain: Callable = identity) -> nn.Module:
    """The model that a config describes.

    Args:
      config: nested dict; its floats may be traced.
      facts: of the training set.
      constrain: pins activations to a mesh.

    Raises:
      BadInput: for next-sentence prediction with a model that has no head for it.
    """
    fields = {"vocab_size": facts.vocab_size}
    nsp, _ = call(loss_section, config["loss"])
    if nsp:
        cls = models.model_class(config["model"]["module"])
        has_head = "next_sentence" in models.fields_of(cls)
        require(has_head, f"config.loss.nsp: {cls.__name__} has no next-sentence head")
        fields["next_sentence"] = True
    return models.build(config, constrain, **fields)


weights_settings = weights.settings  # see `common.task`


def make(config: dict, sources: dict[str, Source], constrain: Callable) -> Task:
    """The task; see `common.task`."""
    facts = sources["train"].facts
    nsp, lesson = call(loss_section, config["loss"])
    model = model_of(config, facts, constrain)
    corrupt = call(masking.make_masking, config["masking"], facts, facts.length)

    teacher = None
    if lesson is not None:
        teacher = teacher_of(config, lesson.teacher, facts, model_of, bert.Bert, constrain)

    def inputs(batch):
        return batch["tokens"], batch["segments"], batch.get("types"), batch["picked"]

    row = jax.ShapeDtypeStruct((1, facts.length), jnp.int32)
    row = dict.fromkeys(("tokens", "segments", "picked"), row)
    objective = {"mlm": 1.0} | ({"nsp": 1.0} if nsp else {})
    taught = teaching(lesson, teacher, model, inputs, row, objective, "mlm", constrain=constrain)

    def init(key):
        params = model.init(key, jnp.zeros((1, 8), jnp.int32))["params"]
        return params | taught.init(key), {}

    def masked(key, batch):
        rows = corrupt(row_keys(key, batch), batch["tokens"], batch["segments"])
        picks = {"picked": rows.picked, "target": rows.targets, "weight": rows.weights}
        return batch | {"tokens": rows.tokens} | picks

    def apply(params, batch):
        logits = model.apply({"params": params}, *inputs(batch), False)
        return logits if nsp else (logits, None)

    def loss(params, extra, batch, key, frozen=None):
        options = {"rngs": {"dropout": key}, "captures": taught.captures}
        own = outputs(model, {"params": params}, *inputs(batch), True, **options)
        logits, following = own.result if nsp else (own.result, None)
        targets, weights = _rows(batch)
        rows = logits.reshape(len(targets), -1), targets, weights
        terms = {
            "mlm": losses.softmax_cross_entropy(*rows),
            "accuracy": losses.accuracy(*rows),
        }
        terms |= taught.terms(params, frozen, batch, own, weights)
        return terms | _next_terms(following, batch), extra

    predictions = masking.predictions(config["masking"]["rate"], facts.length)
    return Task(
        init=init,
        prepare=lambda key, batch, train: masked(key, batch),
        loss=loss,
        objective=taught.objective,
        sources=sources,
        evaluators=evaluate.evaluators(config, evaluator, sources, masked=masked, predict=apply),
        partition=(*model.PARTITION, *taught.partition),
        rows_independent=True,
        padding=padding(model),
        pretrained=weights.reader(facts, config, model),
        files=tokenizer.files(facts.tokenizer),
        flops=training_flops(model, facts.length, predictions),
        tokens=facts.length,
        shown=partial(shown.training, facts),
        frozen=taught.frozen,
    )


# ------------------------------------------------------------------------------------- predictions


def kept(config: dict, folder) -> dict[str, Source] | None:
    """The training set without contents, by the tokenizer that its run keeps; see `common.task`."""
    return text.kept_source(_form(config), config["data"], folder)


def elsewhere(config: dict, own: dict, folder, sources: dict) -> dict[str, Source]:
    """Other texts, by the run's tokenizer; see `common.task`."""
    wanted = tokenizer.elsewhere(config, own, folder)
    return call(text.load_sources, wanted["data"], held_out(wanted), _form(own))


def predictor(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """Hidden words of a text; see `common.task` and `lm.predict`."""
    facts = sources["train"].facts
    return predict.fills(model_of(config, facts, constrain), facts)


def embedder(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """The mean of a text's hidden states; see `common.task` and `lm.predict`."""
    facts = sources["train"].facts
    return predict.vectors(model_of(config, facts, constrain), facts)
