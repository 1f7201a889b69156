"""The image classification task: any linen module from images to logits, any set of (image, label).

`config.model.module = "vision.cnn:CNN"` names the model by its import path; the other keys of the
section are its fields. A model needs a field `num_classes` and a `PARTITION` table, and is called
as `model(images, train)`. Optionally it
- defines `flops((H, W, C))`, the FLOPs of an image's forward pass, for MFU;
- sows the logits of an auxiliary head as `logits` in the collection `auxiliary` in training;
- defines `fitted(params, images)`: initial parameters fitted to training images f32[n, H, W, C],
  without labels, on the host (a whitening convolution).
Your model can live in any importable file.

Letters: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import classes, evaluate, losses
from common.compress.distill import Lesson
from common.compress.distill import lesson as lesson_of
from common.data import order
from common.errors import require
from common.evaluators import multi_label
from common.nn import model as models
from common.runs import facts as run_facts
from common.sections import call
from common.task import Evaluator, Predictor, Source, Task, splits, training_flops
from vision import predict, shown, teaching, weights
from vision.data import augment, datasets, sets
from vision.data.sets import ImageFacts
from vision.data.views import Views, evaluated, normalise, weighted_views

FITTED_TO = 1000  # training images passed to `fitted`


def evaluator(
    source: Source,
    logits: Callable,
    *,
    split: str = "test",
    every: str = "1 epoch",
    batch_size: int = 512,
    per_class: bool = False,
    views: Views = "none",
) -> Evaluator:
    """A section `evals.NAME`: loss (without smoothing and weights), accuracy, top-5 accuracy, macro
    F1. Where examples have several labels, that of `common.evaluators.multi_label`.

    Args:
      source: the set to evaluate.
      logits: (params, extra, batch, key, views) -> f32[B, K], as in evaluation.
      split: split of the data set to evaluate: "test" or "train[90%:]".
      every: duration between evaluations, such as "1 epoch"; the end is always evaluated.
      batch_size: rows evaluated at a time.
      per_class: whether to also log precision, recall and F1 of every class, and the confusion
        matrix.
      views: views of an image over which its logits are averaged: the image alone ("none"), with
        its mirror image ("flip"), or six mirrored and shifted ones ("flip_shift", Jordan 2024).
    """
    if source.facts.multi_label:
        viewed = lambda *arguments: logits(*arguments, views)
        kept = {"split": split, "every": every, "batch_size": batch_size, "per_class": per_class}
        return multi_label.evaluator(source, viewed, **kept)
    del split  # already read by `sources`

    def terms(params, extra, batch, key):
        outputs = logits(params, extra, batch, key, views)
        rows = outputs, batch["label"], batch["valid"]
        metrics = {
            "loss": losses.softmax_cross_entropy(*rows),
            "accuracy": losses.accuracy(*rows),
            "confusion": losses.confusion_matrix(*rows),
        }
        if outputs.shape[-1] > 5:
            metrics["top_5"] = losses.top_k(*rows, k=5)
        return metrics

    def finish(totals):
        confusion = totals.pop("confusion")[0]
        values = losses.ratio(totals) | {"f1": losses.macro_f1(confusion)}
        if per_class:
            by_class = losses.precision_recall_f1(confusion)
            values |= {f"class_{name}": value for name, value in by_class.items()}
        return values | {"confusion": confusion.astype(np.int64)}

    means = evaluate.mean_evaluator(source, terms, finish, batch_size=batch_size)
    show = shown.evaluated(source, lambda *inputs: logits(*inputs, views))

    def run(context):
        values = means(context)
        confusion = values.get("confusion") if per_class else values.pop("confusion", None)
        shows = context.show and confusion is not None
        return values | (show(context, confusion) if shows else {})

    return Evaluator(every, run)


def loss_section(
    *,
    label_smoothing: float | None = None,
    class_weights: str = "",
    auxiliary: float | None = None,
    teacher: str = "",
    temperature: float | None = None,
    distill: float | None = None,
    hidden: float | None = None,
) -> tuple[tuple[float | None, str], float | None, Lesson | None]:
    """The section `loss`: (what `losses.classification` returns, auxiliary, that of a teacher).

    Args:
      label_smoothing: share of each training target spread over all classes; None disables it. With
        several labels an example, the targets 1 and 0 become 1 - share / 2 and share / 2.
      class_weights: weights of the classes in the training loss; evaluation has none. "balanced"
        gives each class the same total weight: N / (K n) for one of K classes that has n of N
        examples; "cat=2,dog=0.5" names weights, 1 for other classes; "" is 1 for all. With several
        labels an example they multiply the loss of a class's positives, and "balanced" is its
        negatives / positives.
      auxiliary: weight of the auxiliary head's loss, for models that have such a head; None ignores
        it. 0.4 for Inception-v3, as in torchvision.
      teacher: the workdir of a run of vision.classify, or published weights, with the same classes,
        whose outputs the model learns as well; "" is none.
      temperature: by which the logits of both are divided (Hinton et al. 2015); None is 1.
      distill: share of the teacher's classes in the objective, labels having the rest; None is 0.
      hidden: weight of the mean squared error of the activations that models name with a number
        (hidden_0, stage_1), layers mapped evenly; None is no such term.

    Raises:
      BadInput: if a number is out of range.
    """
    if isinstance(auxiliary, float):
        require(auxiliary >= 0, f"config.loss.auxiliary: {auxiliary} is negative")
    classification = losses.classification(
        label_smoothing=label_smoothing, class_weights=class_weights
    )
    lesson = lesson_of(teacher=teacher, temperature=temperature, distill=distill, hidden=hidden)
    return classification, auxiliary, lesson


def sections(config) -> dict[str, Callable]:
    """{section: the function it feeds}; see `common.task`."""
    return {
        "model": models.section(config, "vision.cnn:CNN", given=("num_classes",)),
        "data": datasets.load_sources,
        "augment": augment.make_augment,
        "loss": loss_section,
        **evaluate.sections(config, evaluator),
    }


def sources(config: dict) -> dict[str, Source]:
    """The training set as `train`, and each evaluator's set under its name."""
    return call(datasets.load_sources, config["data"], splits(config))


def outline(config: dict) -> dict[str, Source]:
    """`sources` without contents, from the config alone; see `common.task`."""
    return datasets.outline_sources(splits(config), config["data"])


def unprepared(config: dict) -> str | None:
    """What `sources` would prepare first; see `common.task`."""
    return datasets.unprepared(config["data"])


weights_settings = weights.settings  # see `common.task`


def make(config: dict, sources: dict[str, Source], constrain: Callable) -> Task:
    """The task; see `common.task`."""
    train_set, facts = sources["train"], sources["train"].facts
    count = len(facts.classes)
    mean, std = np.float32(facts.mean), np.float32(facts.std)
    size = config["augment"]["resized_crop"]
    own = train_set.spec["image"].shape
    shape = own if size is None else (size, size, own[-1])
    model = _model(config, facts, constrain)
    augmented = call(augment.make_augment, config["augment"], mean)
    mixes = config["augment"]["mixup"] is not None or config["augment"]["cutmix"] is not None
    (label_smoothing, weights_), auxiliary, lesson = call(loss_section, config["loss"])
    class_weights = losses.class_weights(weights_, train_set, facts.classes)

    def scaled(images):
        return images.astype(np.float32) / 255.0

    objective = {"loss" if lesson is None else "hard": 1.0}
    objective |= {} if auxiliary is None else {"auxiliary": auxiliary}
    taught = None
    if lesson is not None:
        known = lambda own, theirs: _model(own, theirs, constrain)
        teacher = teaching.teacher(config, lesson.teacher, facts, known, constrain)
        taught = teaching.taught(lesson, teacher, model, shape, objective, facts, constrain)
        objective = taught.objective

    def init(key):
        variables = dict(model.init(key, jnp.zeros((1, *shape), jnp.float32)))
        params = variables.pop("params")
        if hasattr(model, "fitted"):
            rows = np.arange(min(FITTED_TO, train_set.size), dtype=np.uint32)
            images = scaled(train_set.read(rows)["image"])
            params = model.fitted(params, (images - mean) / std)
        return params if taught is None else params | taught.init(key), variables

    def prepare(key, batch, train):
        images = batch["image"]
        if not train:
            return batch | {"image": evaluated(images, size, mean, std)}
        labels = batch["label"]
        if facts.multi_label:
            labels = labels.astype(jnp.float32)
        elif mixes:
            labels = jax.nn.one_hot(labels, count)
        rows, epochs = order.rows_at(config["seed"], batch["index"], train_set.order, jnp)
        images, labels = augmented(key, scaled(images), labels, rows, epochs)
        return batch | {"image": normalise(images, mean, std), "target": labels}

    def loss(params, extra, batch, key, frozen=None):
        logits, changed = model.apply(
            {"params": params, **extra},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=[*extra, "auxiliary", *(() if taught is None else taught.captures)],
        )
        changed = dict(changed)
        hidden = changed.pop("intermediates", {})
        auxiliary_logits = jax.tree.leaves(changed.pop("auxiliary", ()))
        loss, metric = losses.of_labels(facts.multi_label)
        entropy = lambda logits: loss(
            logits, batch["target"], batch["valid"], label_smoothing, class_weights
        )
        terms = {"loss" if taught is None else "hard": entropy(logits)}
        terms |= {metric.__name__: metric(logits, batch["label"], batch["valid"])}
        if auxiliary is not None:
            require(
                len(auxiliary_logits) == 1,
                f"config.loss.auxiliary: {config['model']['module']} has no auxiliary head",
            )
            terms["auxiliary"] = entropy(auxiliary_logits[0])
        if taught is not None:
            terms |= teaching.terms(taught, teacher, params, frozen, batch, logits, hidden)
        return terms, changed

    def logits(params, extra, batch, key, views="none"):
        images = prepare(key, batch, False)["image"]
        apply = lambda images: model.apply({"params": params, **extra}, images)
        return sum(share * apply(view) for share, view in weighted_views(images, views))

    shapes = jax.eval_shape(lambda: init(jax.random.key(0)))  # a key on a device takes a program
    return Task(
        init=init,
        prepare=prepare,
        loss=loss,
        objective=objective,
        sources=sources,
        evaluators=evaluate.evaluators(config, evaluator, sources, logits=logits),
        partition=(*model.PARTITION, *(() if taught is None else taught.partition)),
        rows_independent="batch_stats" not in shapes[1],
        pretrained=weights.reader(config, model, facts.classes),
        flops=training_flops(model, shape),
        facts=Kept(**facts._asdict(), shape=own)._asdict(),
        shown=partial(shown.training, facts),
        frozen=None if taught is None else teacher.frozen,
    )


def _model(config: dict, facts: ImageFacts, constrain: Callable) -> nn.Module:
    return models.build(config, constrain, num_classes=len(facts.classes))


# ------------------------------------------------------------------------------------- predictions


class Kept(NamedTuple):
    """What a run keeps of its data: `ImageFacts`, and the shape (H, W, C) of an image."""

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, int, int]
    multi_label: bool = False


def kept(config: dict, folder) -> dict[str, Source] | None:
    """The training set without contents, by what its run keeps; see `common.task`."""
    known = run_facts.read(folder, Kept)
    if known is None:
        return None
    for name in ("mean", "std"):
        numbers, channels = getattr(known, name), known.shape[-1]
        require(
            len(numbers) in (1, channels),
            f"{folder}/{run_facts.FILE}: {name} has {len(numbers)} numbers, and images have "
            f"{channels} channels: the file is of another run, or was edited",
        )
    facts = ImageFacts(*(getattr(known, name) for name in ImageFacts._fields))
    return {"train": sets.outline(known.shape, config["train"]["batch_size"], facts, None)}


def predictor(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """Classes with their probabilities, of pictures; see `common.task` and `vision.predict`."""
    facts = sources["train"].facts
    usual = next((e["views"] for e in config["evals"].values() if e.get("views")), "none")
    seen = _seen(config, sources, constrain)
    return predict.classifier(*seen, facts.classes, facts.multi_label, usual)


def embedder(config: dict, sources: dict[str, Source], constrain: Callable) -> Predictor:
    """The model's features, of pictures; see `common.task` and `vision.predict`."""
    return predict.vectors(*_seen(config, sources, constrain))


def elsewhere(config: dict, own: dict, folder, sources: dict) -> dict[str, Source]:
    """Another set of images, as a run sees its own; see `common.task`."""
    others = predict.elsewhere(config, own, sources)
    return classes.renumbered(others, sources["train"].facts)


def _seen(config: dict, sources: dict[str, Source], constrain: Callable) -> tuple:
    """(the model, picture -> pixels, pixels -> images as evaluation sees them)."""
    train_set, facts = sources["train"], sources["train"].facts
    numbers = config["augment"]["resized_crop"], np.float32(facts.mean), np.float32(facts.std)
    model, read = _model(config, facts, constrain), predict.reader(train_set.spec["image"].shape)
    return model, read, lambda images: evaluated(images, *numbers)
