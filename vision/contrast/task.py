"""The contrastive task: pictures and their texts become vectors that are near each other, and far
from those of all other pairs of the batch.

    config.task = "vision.contrast.task"
    config.loss.kind = "softmax"         # CLIP; "sigmoid" is SigLIP's

The model is named by its import path, `config.model.module = "vision.contrast.model:Towers"`, and
called as `model(images, tokens, segments, train)`; it needs a field `vocab_size` and the methods
`encode_images`, `encode_texts` and `scale`. As the loss couples the rows of a batch, it cannot be
accumulated over parts of it.

Letters: B batch, S side of a picture, L positions of a text, E width of a vector.
"""

import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from common import evaluate, pictures
from common.data import order
from common.errors import require
from common.nn import model as models
from common.nn.layers import identity
from common.runs import facts as run_facts
from common.sections import Selected, call
from common.task import (
    Predictor,
    Shown,
    Source,
    Task,
    held_out,
    padding,
    splits,
    training_flops,
)
from lm.data import tokenizer
from vision.contrast import data, losses, predict, retrieval, zero_shot
from vision.contrast.data import PairFacts
from vision.data import augment, datasets
from vision.data.sets import ImageFacts
from vision.data.views import evaluated, normalise
from vision.shown import pixels_of
from vision.weights import contrast as weights

MODEL = "vision.contrast.model:Towers"
MOST = 16  # pictures shown


def loss_section(*, kind: Literal["softmax", "sigmoid"] = "softmax") -> str:
    """The section `loss`: its kind.

    Args:
      kind: "softmax", the mean of both directions' cross-entropies over the batch (CLIP), or
        "sigmoid", a decision of its own for every pair (SigLIP), for which the model has a bias.
    """
    return kind


def sections(config) -> dict[str, Callable | Selected]:
    """{section: the function that it feeds}; see `common.task`."""
    return {
        "model": models.section(config, MODEL, ("vocab_size",)),
        "data": data.load_sources,
        "augment": augment.make_augment,
        "loss": loss_section,
        **evaluate.sections(config, retrieval.evaluator),
    }


def sources(config: dict) -> dict[str, Source]:
    """The training set as `train`, and each evaluator's set under its name."""
    return _sources(config, splits(config))


def _sources(config: dict, wanted: dict[str, str]) -> dict[str, Source]:
    """Sets of pictures with texts, and those of labelled pictures that evaluators name."""
    others = {
        name: section["data"]
        for name, section in config.get("evals", {}).items()
        if section.get("data") and name in wanted
    }
    pairs = {name: split for name, split in wanted.items() if name not in others}
    loaded = call(data.load_sources, config["data"], pairs)
    for name, labelled in others.items():
        source = _labelled(labelled, name, wanted[name], config["data"])
        if config["data"]["resize"] != "centre":
            logging.warning(
                "config.evals.%s.data: of pictures that are no squares, the centre is seen: "
                "config.data.resize = %r is of pictures with texts",
                *(name, config["data"]["resize"]),
            )
        facts = PairFacts(source.facts, loaded["train"].facts.text if "train" in loaded else None)
        loaded[name] = source._replace(facts=facts)
    return loaded


def _labelled(labelled: str, name: str, split: str, section: dict) -> Source:
    """A set of labelled pictures, of the run's size, in colours, and in its folder of data."""
    from vision.predict import shaped

    side, resized = section["image_size"], labelled not in ("digits", "fashion_mnist")
    keys = {"name": labelled, "train": "train", "image_size": side if resized else None}
    keys |= {"folder": section["folder"]}
    source = datasets.load_sources({name: split}, **keys)[name]
    require(
        not source.facts.multi_label,
        f"config.evals.{name}.data: {labelled}: its pictures have several classes each",
    )
    return shaped(name, source, (side, side, 3))


def outline(config: dict) -> dict[str, Source]:
    """The Sources of `sources`, without contents; see `common.task`."""
    outlines = data.outline_sources(splits(config), config["data"])
    for name, section in config.get("evals", {}).items():
        if section.get("data"):
            named = section.get("names")
            classes = zero_shot.named_by(named) if named else tuple(map(str, range(1000)))
            facts = outlines[name].facts
            facts = facts._replace(image=facts.image._replace(classes=classes))
            outlines[name] = data.empty(facts, config["data"]["image_size"], 50_000)
    return outlines


def model_of(config: dict, facts: PairFacts, constrain: Callable = identity) -> nn.Module:
    """The towers that a config describes, for texts with these facts."""
    return models.build(config, constrain, vocab_size=facts.text.vocab_size)


weights_settings = weights.settings  # see `common.task`


def make(config: dict, sources: dict[str, Source], constrain: Callable) -> Task:
    """The task; see `common.task`."""
    train_set, facts = sources["train"], sources["train"].facts
    model = model_of(config, facts, constrain)
    kind = call(loss_section, config["loss"])
    biased = getattr(model, "score_bias", kind == "sigmoid")
    require(
        biased == (kind == "sigmoid"),
        "config.loss.kind: 'sigmoid' needs config.model.score_bias=true, and a softmax has no use "
        "for a bias",
    )
    for key in ("mixup", "cutmix"):
        off = config["augment"][key] is None
        require(off, f"config.augment.{key}: it mixes labels, and texts are none; leave it out")
    batch_size = config["train"]["batch_size"]
    require(
        train_set.size >= batch_size,
        f"config.train.batch_size: {batch_size:,} is more than the {train_set.size:,} pairs of the "
        "training set, each of which would be in a batch several times; make it smaller",
    )
    mean, std = np.float32(facts.image.mean), np.float32(facts.image.std)
    size = config["augment"]["resized_crop"]
    side = train_set.spec["image"].shape[0] if size is None else size
    length = facts.text.length
    augmented = call(augment.make_augment, config["augment"], mean)

    def init(key):
        images = jnp.zeros((1, side, side, 3), jnp.float32)
        return model.init(key, images, jnp.zeros((1, length), jnp.int32))["params"], {}

    def prepare(key, batch, train):
        images = batch["image"]
        if not train:
            return batch | {"image": evaluated(images, size, mean, std)}
        scaled, labels = images.astype(np.float32) / 255.0, jnp.zeros(len(images), jnp.int32)
        rows, epochs = order.rows_at(config["seed"], batch["index"], train_set.order, jnp)
        images, _ = augmented(key, scaled, labels, rows, epochs)
        return batch | {"image": normalise(images, mean, std)}

    def loss(params, extra, batch, key):
        inputs = batch["image"], batch["tokens"], batch["segments"]
        output = model.apply({"params": params}, *inputs, True, rngs={"dropout": key})
        axes = losses.split_axes(config["mesh"]["rules"])
        rows, _ = order.rows_at(config["seed"], batch["index"], train_set.order, jnp)
        told = batch["valid"], rows, axes
        vectors = output.images, output.texts
        one = jnp.float32(1)
        terms = {"scale": (output.scale, one)}
        if kind == "sigmoid":
            terms["loss"] = losses.sigmoid(*vectors, output.scale, output.bias, *told)
            terms["bias"] = output.bias, one
        else:
            both = losses.softmax(*vectors, output.scale, *told)
            terms["loss"], terms["accuracy"] = both
        return terms, extra

    def vectors(params, extra, batch, key):
        images = prepare(key, batch, False)["image"]
        encoded = model.apply({"params": params}, images, method="encode_images")
        return encoded, words(params, extra, batch) if "tokens" in batch else None

    def words(params, extra, rows):
        del extra
        inputs = rows["tokens"], rows["segments"]
        return model.apply({"params": params}, *inputs, method="encode_texts")

    offered = {"vectors": vectors, "words": words}
    offered["rows_of"] = lambda texts: data.text_encoder(facts.text)(texts)
    return Task(
        init=init,
        prepare=prepare,
        loss=loss,
        objective={"loss": 1.0},
        sources=sources,
        evaluators=evaluate.evaluators(config, retrieval.evaluator, sources, **offered),
        partition=model.PARTITION,
        rows_independent=False,
        padding=padding(model),
        pretrained=weights.reader(config, model, _vocabulary(facts)),
        files=tokenizer.files(facts.text.tokenizer),
        facts=Kept(facts.image.mean, facts.image.std)._asdict(),
        flops=training_flops(model, (side, side, 3), length),
        shown=lambda rows: _shown(facts, rows),
    )


def _vocabulary(facts: PairFacts) -> dict[str, int]:
    return facts.text.tokenizer.get_vocab(with_added_tokens=True)


def _shown(facts: PairFacts, rows: dict) -> dict[str, Shown]:
    """Prepared training pictures with their texts, for `Task.shown`."""

    def draw():
        pixels = pixels_of(rows["image"], facts.image.mean, facts.image.std)
        ids = [row[there > 0] for row, there in zip(rows["tokens"], rows["segments"], strict=True)]
        texts = [facts.text.tokenizer.decode(each.tolist()) for each in ids[:MOST]]
        return pictures.tiles(pixels[:MOST], texts)

    return {"pairs": Shown(draw)}


# ------------------------------------------------------------------------------------- predictions


class Kept(NamedTuple):
    """What a run keeps of its data, beside the tokenizer: how pixels are normalised."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def kept(config: dict, folder) -> dict[str, Source] | None:
    """The training set without contents, by what its run keeps; see `common.task`."""
    encoder, known = tokenizer.kept(folder), run_facts.read(folder, Kept)
    if encoder is None or known is None:
        return None
    text = tokenizer.facts(encoder)._replace(length=config["data"]["length"])
    facts = PairFacts(ImageFacts((), known.mean, known.std), text)
    size = config["data"]["image_size"]
    return {"train": data.empty(facts, size, config["train"]["batch_size"])}


def elsewhere(config: dict, own: dict, folder, sources: dict) -> dict[str, Source]:
    """Other pictures with texts, by the run's tokenizer; see `common.task`."""
    wanted = tokenizer.elsewhere(config, own, folder)
    for key in ("mean", "std", "image_size", "resize"):
        same = config["data"][key] == own["data"][key]
        require(same, f"--config.data.{key}: pictures are seen as the run has them; leave it out")
    others = _sources(wanted, held_out(wanted))
    facts = sources["train"].facts
    mine = lambda f: f._replace(text=facts.text, image=f.image._replace(**_scaling(facts)))
    return {name: source._replace(facts=mine(source.facts)) for name, source in others.items()}


def _scaling(facts: PairFacts) -> dict[str, Any]:
    return {"mean": facts.image.mean, "std": facts.image.std}


def predictor(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """Pictures for words, and words for pictures; see `common.task` and
    `vision.contrast.predict`."""
    return predict.finds(*_prepared(config, sources, constrain))


def embedder(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """Vectors of pictures and of texts; see `common.task` and `vision.contrast.predict`."""
    return predict.vectors(*_prepared(config, sources, constrain))


def _prepared(config: dict, sources: dict[str, Source], constrain: Callable) -> tuple:
    """(the model, picture -> pixels, pixels -> images as evaluation sees them, facts of texts)."""
    train_set, facts = sources["train"], sources["train"].facts
    numbers = config["augment"]["resized_crop"], np.float32(facts.image.mean)
    std = np.float32(facts.image.std)
    read = predict.reader(train_set.spec["image"].shape, data.FITS[config["data"]["resize"]])
    prepare = lambda images: evaluated(images, *numbers, std)
    return model_of(config, facts, constrain), read, prepare, facts.text
