"""The image classification task: any linen module from images to logits, any set of (image, label).

The model is named by its import path, `config.model.module = "vision.cnn:CNN"`, and the other keys
of the section are that module's fields; it needs a field `num_classes` and a `PARTITION` table,
and is called as `model(images, train)`. `flops((H, W, C))`, if it has that, counts an image's
forward pass, for MFU. Yours can stand in any file that Python can import.

Letters: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from common import config as configs
from common import losses
from common import model as models
from common.evaluate import mean_evaluator
from common.task import Evaluator, Source, Task, splits, training_flops
from vision import augment, datasets


def evaluator(
    source: Source,
    logits_of: Callable,
    *,
    split: str = "test",
    every: str = "1 epoch",
    batch_size: int = 512,
    per_class: bool = False,
) -> Evaluator:
    """A section `evals.NAME`: loss (without smoothing), accuracy, top-5 accuracy, macro F1.

    Args:
      source: the set.
      logits_of: (params, extra, batch, key) -> f32[B, K], as in evaluation.
      split: of the data set, e.g. "test" or "train[90%:]".
      every: a duration; the end is always evaluated.
      batch_size: rows at a time.
      per_class: also log precision, recall and F1 of every class, and the confusion matrix.
    """
    del split  # `sources` has read it

    def terms(params, extra, batch, key):
        logits = logits_of(params, extra, batch, key)
        rows = logits, batch["label"], batch["valid"]
        found = {
            "loss": losses.softmax_cross_entropy(*rows),
            "accuracy": losses.accuracy(*rows),
            "confusion": losses.confusion_matrix(*rows),
        }
        if logits.shape[-1] > 5:
            found["top_5"] = losses.top_k(*rows, k=5)
        return found

    def finish(totals):
        confusion = totals.pop("confusion")[0]
        values = losses.ratio(totals) | {"f1": losses.macro_f1(confusion)}
        if per_class:
            by_class = losses.precision_recall_f1(confusion)
            values |= {f"class_{name}": value for name, value in by_class.items()}
            values["confusion"] = confusion.astype(np.int64)
        return values

    return Evaluator(every, mean_evaluator(source, terms, finish, batch_size=batch_size))


def sections(config) -> dict[str, Callable]:
    """{section: the function that it feeds}; see `common.task`."""
    return {
        "model": models.section(config, "vision.cnn:CNN", given=("num_classes",)),
        "data": datasets.load,
        "augment": augment.make,
        "loss": losses.smoothing,
        **{f"evals.{name}": evaluator for name in config.get("evals") or {}},
    }


def sources(config: dict) -> dict[str, Source]:
    """The training set, and the set of every evaluator under its name."""
    return configs.call(datasets.load, config["data"], splits(config))


def make(config: dict, sources: dict[str, Source], constrain: Callable) -> Task:
    """The task; see `common.task`."""
    facts, shape = sources["train"].facts, sources["train"].spec["image"].shape
    model = models.build(config["model"], constrain, num_classes=len(facts["classes"]))
    augmented = configs.call(augment.make, config["augment"])
    label_smoothing = configs.call(losses.smoothing, config["loss"])
    mean, std = np.float32(facts["mean"]), np.float32(facts["std"])

    def init(key):
        variables = dict(model.init(key, jnp.zeros((1, *shape), jnp.float32)))
        return variables.pop("params"), variables

    def prepare(key, batch, train):
        images = batch["image"]
        if train:
            images = augmented(key, images)
        images = (images.astype(jnp.float32) / 255.0 - mean) / std
        return batch | {"image": images}

    def loss(params, extra, batch, key):
        variables = {"params": params, **extra}
        logits, extra = model.apply(
            variables, batch["image"], train=True, rngs={"dropout": key}, mutable=list(extra)
        )
        rows = logits, batch["label"], batch["valid"]
        terms = {
            "loss": losses.softmax_cross_entropy(*rows, label_smoothing=label_smoothing),
            "accuracy": losses.accuracy(*rows),
        }
        return terms, dict(extra)

    def logits_of(params, extra, batch, key):
        batch = prepare(key, batch, False)
        return model.apply({"params": params, **extra}, batch["image"])

    shapes = jax.eval_shape(init, jax.random.key(0))
    return Task(
        init=init,
        prepare=prepare,
        loss=loss,
        objective={"loss": 1.0},
        sources=sources,
        evaluators={
            name: configs.call(evaluator, section, sources[name], logits_of)
            for name, section in config.get("evals", {}).items()
        },
        partition=model.PARTITION,
        rows_independent="batch_stats" not in shapes[1],
        flops=training_flops(model, shape),
    )
