"""The task of translation: write the target of a source, learned from pairs of texts.

The model is named by its import path, such as "lm.seq2seq.transformer:EncoderDecoder", and called
as `model(source, source_segments, tokens, segments, train)`; it needs the fields `vocab_size`, of
targets, and `source_vocab_size`, None where one tokenizer is of both sides. Its methods `encode`,
`decode` and `empty_cache` translate. Its optional `flops(S, T)` counts a row's forward pass, for
MFU. With `config.train.average`, an exponential moving average of the parameters takes the place of
averaged checkpoints: it is what evaluators and predictions use.

Letters: B batch, S source positions, T target positions, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from common import evaluate, losses
from common.errors import require
from common.nn import model as models
from common.nn.layers import identity
from common.runs import facts as run_facts
from common.sections import call
from common.task import (
    EvalContext,
    Evaluator,
    Predictor,
    Shown,
    Source,
    Task,
    held_out,
    padding,
    splits,
    training_flops,
)
from lm import weights
from lm.data import pairs, sides, tokenizer
from lm.data.sides import PairFacts
from lm.seq2seq import decoding, predict
from lm.seq2seq import scores as scoring
from lm.weights.seq2seq import start_of

MODEL = "lm.seq2seq.transformer:EncoderDecoder"
GIVEN = ("vocab_size", "source_vocab_size")
SIGNS = {"bleu": 1, "chrf": 1, "exact_match": 1}  # see `common.losses.SIGNS`
TARGET_FOLDER = "target_tokenizer"  # in a workdir, of a second tokenizer
MOST_SHOWN = 6


def loss_section(*, label_smoothing: float | None = None) -> float | None:
    """The section `loss`.

    Args:
      label_smoothing: share of each target spread over all tokens (Szegedy et al. 2016); None is
        none. Evaluation has none.
    """
    if isinstance(label_smoothing, float):
        fits = 0 <= label_smoothing < 1
        require(fits, f"config.loss.label_smoothing: {label_smoothing} is not in [0, 1)")
    return label_smoothing


def sections(config) -> dict[str, Callable]:
    """{section: the function that it feeds}; see `common.task`."""
    return {
        "model": models.section(config, MODEL, GIVEN),
        "data": pairs.load_sources,
        "loss": loss_section,
        **evaluate.sections(config, evaluator),
    }


def sources(config: dict) -> dict[str, Source]:
    """The training set, and each evaluator's set under the evaluator's name."""
    return call(pairs.load_sources, config["data"], splits(config))


def outline(config: dict) -> dict[str, Source]:
    """The Sources of `sources`, without contents; see `common.task`."""
    return pairs.outline_sources(splits(config), config["data"])


def _rows(logits, batch: dict):
    """(logits [B * T, V], targets i32[B * T], weights f32[B * T])."""
    weights = (batch["segments"] > 0) * batch["valid"][:, None]
    targets = batch["targets"].astype(jnp.int32).reshape(-1)
    return logits.reshape(len(targets), -1), targets, weights.reshape(-1)


def evaluator(
    source: Source,
    apply: Callable,
    translate: Callable,
    *,
    split: str = "valid",
    every: str = "1 epoch",
    batch_size: int = 64,
    scores: Literal["text", "phonemes", "none"] = "text",
    beams: int = 1,
    length_penalty: float = 1.0,
    show: int = 0,
) -> Evaluator:
    """A section `evals.NAME`: loss in nats per target token, its end included, without label
    smoothing; perplexity and accuracy; and the scores of what the model writes.

    Args:
      source: the set.
      apply: (params, batch) -> logits f32[B, T, V].
      translate: (params, batch, beams, length_penalty) -> (tokens i32[B, steps], lengths i32[B]).
      split: the split to evaluate, e.g. "valid" or "test[:500]".
      every: how often to evaluate, as a duration; the last step is always evaluated.
      batch_size: rows evaluated at a time; affects the result only by rounding.
      scores: "text": BLEU and chrF of the pairs (sacrebleu, with its signatures), from 0 to 100;
        "phonemes": error rates of words and phonemes, with stress and without, where any listed
        pronunciation of a word counts. Either with `exact_match`: the share of distinct sources
        of which a listed target is written. "none" is the loss alone, without decoding.
      beams: hypotheses of beam search; 1 is greedy.
      length_penalty: exponent of a hypothesis's length, which divides its log probability.
      show: number of pairs, evenly spaced over the set, to log with their translations.
    """
    del split  # `sources` has read it
    where = "config.evals"
    require(beams > 0, f"{where}: beams = {beams} is not positive")
    require(show >= 0, f"{where}: show = {show} is negative")
    require(scores != "none" or not show, f"{where}: show = {show}: scores = 'none' writes nothing")
    if scores == "text":
        scoring.check_installed(f"{where}: scores = 'text'")
    facts: PairFacts = source.facts

    def rows(params, extra, batch, key):
        logits, targets, weights = _rows(apply(params, batch), batch)
        shape = batch["targets"].shape
        ones = jnp.ones_like(weights)
        each = (losses.softmax_cross_entropy, losses.accuracy)
        one = lambda metric: jax.vmap(lambda *row: metric(*(x[None] for x in row))[0])
        nats, hits = (one(metric)(logits, targets, ones) * weights for metric in each)
        sums = {"loss": nats, "accuracy": hits, "tokens": weights}
        made = {name: x.reshape(shape).sum(axis=1) for name, x in sums.items()}
        made["valid"] = batch["valid"]
        if scores != "none":
            made["written"], made["length"] = translate(params, batch, beams, length_penalty)
        return made

    def finish(rows):
        total = rows["tokens"].sum(dtype=np.float64)
        of = lambda name: float(rows[name].sum(dtype=np.float64) / total)
        values = {"loss": of("loss"), "accuracy": of("accuracy")}
        values["perplexity"] = losses.perplexity(values["loss"])
        if scores == "none":
            return values
        written = predict.texts_of(facts, rows["written"], rows["length"])
        return values | scored(facts, written, scores) | {"": written}

    collect = evaluate.collecting_evaluator(source, rows, finish, batch_size=batch_size)

    def run(context: EvalContext) -> dict:
        values = collect(context)
        written = values.pop("", [])
        count = min(show or MOST_SHOWN, len(written))
        if count and (show or context.show):
            text = examples(facts, written, count)
            values["translated"] = text if show else Shown(lambda: text)
        return values

    return Evaluator(every, run)


def scored(facts: PairFacts, written: list[str], kind: str) -> dict[str, float | str]:
    """The scores of a set's translations, one for each of its pairs; see `evaluator`."""
    first = {}  # of each source: pairs of one source have one translation
    for (source, _), text in zip(facts.texts, written, strict=True):
        first.setdefault(source, text)
    references = [facts.targets[source] for source in first]
    values = {"exact_match": scoring.exact([*first.values()], references)}
    if kind == "text":
        return values | scoring.of_texts(written, [target for _, target in facts.texts])
    return values | scoring.of_pronunciations([*first.values()], references)


def examples(facts: PairFacts, written: list[str], count: int) -> str:
    """Some of a set's pairs, evenly spaced, as text: source, translation, target."""
    at = (np.arange(count) * len(written) // count).tolist()
    lines = [f"{facts.texts[i][0]}\n  -> {written[i]}\n   = {facts.texts[i][1]}" for i in at]
    return "\n".join(lines)


def model_of(config: dict, facts: PairFacts, constrain: Callable = identity) -> nn.Module:
    """The model that a config describes.

    Args:
      config: nested dict; its floats may be traced.
      facts: of the training set.
      constrain: pins activations to a mesh.
    """
    own = None if facts.shared else facts.source.vocab_size
    sizes = {"vocab_size": facts.target.vocab_size, "source_vocab_size": own}
    return models.build(config, constrain, **sizes)


def weights_settings(config: dict) -> dict[str, dict]:
    """What the weights at `config.init.path` say, and the token by which they begin a target; see
    `common.task`."""
    settings = weights.settings(config)
    where, data = "config.init.path", settings.get("data", {})
    path = weights.folder_of(config["init"]["path"], where, config["data"]["folder"])
    first = start_of(path)
    if "tokenizer" in data and first is not None:
        settings["data"] = data | {"start": tokenizer.load(path).id_to_token(first) or ""}
    return settings


def _pretrained(config: dict, facts: PairFacts, model: nn.Module) -> Callable:
    """The reader of `config.init.path`; see `lm.weights.reader`. Raises `BadInput` for weights that
    begin targets otherwise."""
    read = weights.reader(facts.target, config, model)

    def read_path(name: str) -> dict:
        path = weights.folder_of(name, "config.init.path", config["data"]["folder"])
        first = start_of(path) if path.is_dir() else None
        token = None if first is None else facts.target.tokenizer.id_to_token(first)
        require(
            first in (None, facts.start),
            f"config.data.start: the weights of {name} begin a target with {token!r}; set it so",
        )
        return read(name)

    return read_path


def make(config: dict, sources: dict[str, Source], constrain: Callable) -> Task:
    """The task; see `common.task`."""
    facts: PairFacts = sources["train"].facts
    model = model_of(config, facts, constrain)
    decoding.check_model(model)
    label_smoothing = call(loss_section, config["loss"])
    lengths = facts.source.length, facts.target.length

    def init(key):
        blank = jnp.zeros((1, 8), jnp.int32)
        return model.init(key, blank, blank + 1, blank, blank + 1)["params"], {}

    def apply(params, batch, train=False, rngs=None):
        names = "source", "source_segments", "tokens", "segments"
        rows = (batch[name].astype(jnp.int32) for name in names)
        return model.apply({"params": params}, *rows, train, rngs=rngs)

    def loss(params, extra, batch, key):
        rows = _rows(apply(params, batch, True, {"dropout": key}), batch)
        terms = {
            "loss": losses.softmax_cross_entropy(*rows, label_smoothing=label_smoothing),
            "accuracy": losses.accuracy(*rows),
        }
        return terms, extra

    def translate(params, batch, beams, length_penalty):
        best = decoding.translate(
            *(model, params, batch["source"], batch["source_segments"]),
            start=facts.start,
            end=facts.end,
            steps=lengths[1],
            beams=beams,
            length_penalty=length_penalty,
            rules=predict.rules_of(facts),
        )
        return best.tokens[:, 0], best.lengths[:, 0]

    made = evaluate.evaluators(config, evaluator, sources, apply=apply, translate=translate)
    files = tokenizer.files(facts.source.tokenizer)
    if not facts.shared:
        own = tokenizer.files(facts.target.tokenizer)
        files |= {f"{TARGET_FOLDER}/{name}": text for name, text in own.items()}
    return Task(
        init=init,
        prepare=lambda key, batch, train: batch,
        loss=loss,
        objective={"loss": 1.0},
        sources=sources,
        evaluators=made,
        partition=model.PARTITION,
        rows_independent=True,
        padding=padding(model),
        pretrained=_pretrained(config, facts, model),
        files=files,
        facts=Kept(facts.shared, facts.start, facts.end)._asdict(),
        flops=training_flops(model, *lengths),
        tokens=sum(lengths),
        shown=partial(_training, facts),
    )


def _training(facts: PairFacts, rows: dict) -> dict[str, Shown]:
    """Prepared training rows as texts, special tokens among them, for `Task.shown`."""

    def draw():
        lines = []
        for row in range(min(MOST_SHOWN, len(rows["source"]))):
            for side, of in (("source", facts.source), ("targets", facts.target)):
                segments = rows["source_segments" if side == "source" else "segments"][row]
                ids = rows[side][row][segments > 0]
                lines.append(of.tokenizer.decode(ids.tolist(), skip_special_tokens=False))
        return "\n\n".join(lines)

    return {"texts": Shown(draw)}


# ------------------------------------------------------------------------------------- predictions


class Kept(NamedTuple):
    """What a run keeps of its data, beside the tokenizers: whether both sides share one, and the
    tokens that begin and end a target."""

    shared: bool
    start: int
    end: int


def kept(config: dict, folder) -> dict[str, Source] | None:
    """The training set without contents, by what its run keeps; see `common.task`."""
    first, known = tokenizer.kept(folder), run_facts.read(folder, Kept)
    if first is None or known is None:
        return None
    second = first if known.shared else tokenizer.kept(folder, TARGET_FOLDER)
    if second is None:
        return None
    data = config["data"]
    lengths = data["length"], data["target_length"] or data["length"]
    facts = sides.make_facts(first, second, lengths, data["start"])
    facts = facts._replace(start=known.start, end=known.end)
    return {"train": pairs.empty(facts, config["train"]["batch_size"])}


def elsewhere(config: dict, own: dict, folder, sources: dict) -> dict[str, Source]:
    """Other pairs, by the run's tokenizers; see `common.task`."""
    for key in ("target_tokenizer", "target_length", "start"):
        same = config["data"][key] == own["data"][key]
        require(same, f"--config.data.{key}: pairs are read as the run reads its own; leave it out")
    wanted = tokenizer.elsewhere(config, own, folder)
    if not sources["train"].facts.shared:
        second = str(epath.Path(folder) / TARGET_FOLDER)
        wanted |= {"data": wanted["data"] | {"target_tokenizer": second}}
    return call(pairs.load_sources, wanted["data"], held_out(wanted))


def predictor(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """Translations; see `common.task` and `lm.seq2seq.predict`."""
    facts = sources["train"].facts
    return predict.translates(model_of(config, facts, constrain), facts)
