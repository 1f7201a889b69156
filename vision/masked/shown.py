"""Pictures of what a masked autoencoder sees and predicts: for trackers, and as predictions.

Letters: n images, H height, W width, C channels.
"""

from collections.abc import Callable

import jax
import numpy as np

from common import evaluate, pictures
from common.task import EvalContext, Shown, Source
from vision.data.sets import ImageFacts
from vision.shown import pixels_of

MOST = 9


def strips(parts: tuple, mean, std) -> np.ndarray:
    """Images side by side, small ones enlarged: u8[n, s H, s k W, C].

    Args:
      parts: k arrays f32[n, H, W, C], normalised.
      mean, std: by which they were normalised.
    """
    page = pixels_of(np.concatenate([np.asarray(part) for part in parts], axis=2), mean, std)
    scale = max(1, pictures.TILE // page.shape[1])
    return page.repeat(scale, axis=1).repeat(scale, axis=2)


def training(hidden: Callable, facts: ImageFacts, rows: dict) -> dict[str, Shown]:
    """Prepared training images, and what the model sees of them, for `Task.shown`.

    Args:
      hidden: (images f32[n, H, W, C], visible i32[n, V]) -> images of the visible patches.
      facts: of the set.
      rows: `image` f32[n, H, W, C], normalised, and `visible` i32[n, V].
    """

    def draw():
        images, visible = rows["image"][:MOST], rows["visible"][:MOST]
        page = strips((images, hidden(images, visible)), facts.mean, facts.std)
        return pictures.tiles(page, [""] * len(page))

    return {"images": Shown(draw)}


def evaluated(source: Source, views: Callable) -> Callable:
    """EvalContext -> {"reconstructions": Shown}: images of a set, evenly spaced, the visible
    patches of each, and each with what is predicted.

    Args:
      source: the set.
      views: (params, batch, key) -> those three, f32[n, H, W, C] each, normalised.
    """
    at = evaluate.spread(source.size, MOST)
    count = len(at)
    compiled = evaluate.on_every_process(views)

    def run(context: EvalContext) -> dict[str, Shown]:
        batch = source.read(at) | {"index": at, "valid": np.ones(count, np.float32)}
        parts = jax.device_get(compiled(context.params, batch, context.key))

        def draw():
            page = strips(parts, source.facts.mean, source.facts.std)
            return pictures.tiles(page, [""] * count)

        return {"reconstructions": Shown(draw)}

    return run
