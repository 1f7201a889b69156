"""The task of masked autoencoders (He et al. 2022): hidden patches of images, predicted from the
visible ones. Labels are not used.

`config.model.module = "vision.masked.mae:MAE"` names the model by its import path; the other keys
of the section are its fields. Another needs a field `channels`, a `PARTITION` table and MAE's
methods `patches`, `targets`, `masked` and `reconstructed`; it is called as `model(images, visible,
train)`. Its optional `flops((H, W, C), V)` counts an image's forward pass, for MFU.

Which patches are visible is a pure function of seed, step and row in training, and in evaluation of
seed and row: every evaluation hides the same ones.

Letters: B batch, H height, W width, C channels; N patches, of which V are visible.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from common import evaluate, losses
from common.data import order
from common.nn import model as models
from common.sections import call
from common.task import Evaluator, Predictor, Source, Task, row_keys, training_flops
from vision import classify, weights
from vision import predict as classified
from vision.data import augment, datasets
from vision.data.views import evaluated, normalise
from vision.masked import masking, predict, shown
from vision.masked.losses import explained, reconstruction

MODEL = "vision.masked.mae:MAE"
SIGNS = {"explained": 1}  # see `common.losses.SIGNS`


def evaluator(
    source: Source,
    terms: Callable,
    views: Callable,
    *,
    split: str = "test",
    every: str = "1 epoch",
    batch_size: int = 512,
) -> Evaluator:
    """A section `evals.NAME`: the mean squared error of hidden pixels, as in training; that of
    predicting 0 (with `model.normalised`, the mean of each patch) on the same ones; and the share
    of the latter that predictions explain. Trackers get pictures.

    Args:
      source: the set to evaluate.
      terms: (params, extra, batch, key) -> Terms; a row's hidden patches are always the same.
      views: (params, batch, key) -> (images, their visible patches, reconstructions), each f32[B,
        H, W, C].
      split: split of the data set to evaluate: "test" or "train[90%:]".
      every: duration between evaluations, such as "1 epoch"; the end is always evaluated.
      batch_size: rows evaluated at a time.
    """
    del split  # already read by `sources`

    def finish(totals):
        values = losses.ratio(totals)
        return values | {"explained": explained(values["loss"], values["baseline"])}

    means = evaluate.mean_evaluator(source, terms, finish, batch_size=batch_size)
    show = shown.evaluated(source, views)

    def run(context):
        return means(context) | (show(context) if context.show else {})

    return Evaluator(every, run)


def sections(config) -> dict[str, Callable]:
    """{section: the function it feeds}; see `common.task`."""
    return {
        "model": models.section(config, MODEL, given=("channels",)),
        "data": datasets.load_sources,
        "augment": augment.make_augment,
        "masking": masking.ratio_section,
        **evaluate.sections(config, evaluator),
    }


# See `common.task`.
sources, outline, unprepared = classify.sources, classify.outline, classify.unprepared
kept, weights_settings = classify.kept, weights.settings


def make(config: dict, sources: dict[str, Source], constrain: Callable) -> Task:
    """The task; see `common.task`."""
    train_set, facts = sources["train"], sources["train"].facts
    mean, std = np.float32(facts.mean), np.float32(facts.std)
    size, shape = config["augment"]["resized_crop"], _shape(config, sources)
    model = _model(config, shape, constrain)
    patches = model.patches(shape)
    count = masking.count_visible(patches, call(masking.ratio_section, config["masking"]))
    augmented = call(augment.make_augment, config["augment"], mean)

    def init(key):
        images, visible = jnp.zeros((1, *shape), jnp.float32), jnp.arange(count)[None]
        return model.init(key, images, visible)["params"], {}

    def prepare(key, batch, train):
        images = batch["image"]
        if train:
            rows, epochs = order.rows_at(config["seed"], batch["index"], train_set.order, jnp)
            unused = jnp.zeros((len(images), 1))  # where labels are mixed
            scaled = images.astype(np.float32) / 255.0
            images = normalise(augmented(key, scaled, unused, rows, epochs)[0], mean, std)
        else:
            images = evaluated(images, size, mean, std)
        visible = masking.visible(row_keys(key, batch), patches, count)
        return batch | {"image": images, "visible": visible}

    def apply(params, batch, **training):
        return model.apply({"params": params}, batch["image"], batch["visible"], **training)

    def terms_of(batch, predicted):
        return reconstruction(model, batch["image"], predicted, batch["visible"], batch["valid"])

    def loss(params, extra, batch, key):
        predicted = apply(params, batch, train=True, rngs={"dropout": key})
        return terms_of(batch, predicted), extra

    def terms(params, extra, batch, key):
        batch = prepare(key, batch, False)
        return terms_of(batch, apply(params, batch))

    def views(params, batch, key):
        batch = prepare(key, batch, False)
        images, visible = batch["image"], batch["visible"]
        reconstructed = model.reconstructed(images, apply(params, batch), visible)
        return images, model.masked(images, visible), reconstructed

    own = train_set.spec["image"].shape
    return Task(
        init=init,
        prepare=prepare,
        loss=loss,
        objective={"loss": 1.0},
        sources=sources,
        evaluators=evaluate.evaluators(config, evaluator, sources, terms=terms, views=views),
        partition=model.PARTITION,
        rows_independent=True,
        pretrained=weights.reader(config, model, ()),
        flops=training_flops(model, shape, count),
        facts=classify.Kept(**facts._asdict(), shape=own)._asdict(),
        shown=partial(shown.training, model.masked, facts),
    )


def _shape(config: dict, sources: dict[str, Source]) -> tuple[int, int, int]:
    """(H, W, C) of an image as the model sees it."""
    size, own = config["augment"]["resized_crop"], sources["train"].spec["image"].shape
    return own if size is None else (size, size, own[-1])


def _model(config: dict, shape: tuple[int, int, int], constrain: Callable) -> nn.Module:
    return models.build(config, constrain, channels=shape[-1])


# ------------------------------------------------------------------------------------- predictions


def predictor(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """Pictures whose hidden patches are predicted; see `common.task` and
    `vision.masked.predict`."""
    facts, shape = sources["train"].facts, _shape(config, sources)
    reading, ratio = _prepared(config, sources, constrain), config["masking"]["ratio"]
    return predict.reconstructor(*reading, shape, (facts.mean, facts.std), ratio)


def embedder(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """The mean of the encoder's final states of all patches; see `vision.predict`."""
    return classified.vectors(*_prepared(config, sources, constrain))


def elsewhere(config: dict, own: dict, folder, sources: dict) -> dict[str, Source]:
    """Another set of images, as a run sees its own, whatever its classes; see `common.task`."""
    return classified.elsewhere(config, own, sources)


def _prepared(config: dict, sources: dict[str, Source], constrain: Callable) -> tuple:
    """(the model, picture -> pixels, pixels -> images as evaluation sees them)."""
    train_set, facts = sources["train"], sources["train"].facts
    numbers = config["augment"]["resized_crop"], np.float32(facts.mean), np.float32(facts.std)
    model = _model(config, _shape(config, sources), constrain)
    read = classified.reader(train_set.spec["image"].shape)
    return model, read, lambda images: evaluated(images, *numbers)
