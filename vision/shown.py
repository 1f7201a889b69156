"""What trackers get of an image classifier: training images as the model sees them, its mistakes,
and the confusion matrix.

Letters: n images, H height, W width, C channels, K classes.
"""

from collections.abc import Callable

import numpy as np

from common import evaluate, pictures
from common.task import EvalContext, Shown, Source
from vision.data.sets import ImageFacts

MOST = 16


def pixels_of(images: np.ndarray, mean, std) -> np.ndarray:
    """The pixels, u8, of normalised images f32[n, H, W, C].

    Args:
      images: those.
      mean, std: by which they were normalised.
    """
    pixels = images * np.float32(std) + np.float32(mean)
    return np.uint8(np.clip(np.rint(255 * pixels), 0, 255))


def training(facts: ImageFacts, rows: dict) -> dict[str, Shown]:
    """Prepared training images with their labels, for `Task.shown`.

    Args:
      facts: of the set.
      rows: `image` f32[n, H, W, C], normalised, and `label` i32[n] or f32[n, K].
    """

    def draw():
        pixels = pixels_of(rows["image"], facts.mean, facts.std)
        captions = [_named(facts.classes, label) for label in rows["label"]]
        return pictures.tiles(pixels[:MOST], captions[:MOST])

    return {"images": Shown(draw)}


def _named(classes: tuple[str, ...], label: np.ndarray) -> str:
    """The class of a label, or the classes of a row of them."""
    return ", ".join(classes[k] for k in (np.flatnonzero(label) if label.ndim else (int(label),)))


def evaluated(source: Source, logits: Callable) -> Callable:
    """(context, confusion [K, K]) -> {name: Shown}, for an evaluator.

    Args:
      source: the set, with `label` i32[].
      logits: (params, extra, batch, key) -> f32[n, K].
    """
    gravest = evaluate.gravest_mistakes(source, logits, MOST)

    def run(context: EvalContext, confusion) -> dict[str, Shown]:
        classes, mistakes = source.facts.classes, gravest(context)

        def draw():
            captions = mistakes.captions(classes)
            if not captions:
                return "none among those looked at"
            return pictures.tiles(mistakes.rows["image"], captions)

        matrix = Shown(lambda: pictures.confusion(confusion, classes))
        return {"mistakes": Shown(draw), "confusion_matrix": matrix}

    return run
