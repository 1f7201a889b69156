"""Predictions of masked autoencoders: pictures whose hidden patches are predicted.

A picture is read as in `vision.predict`. Vectors are `vision.predict.vectors`: the mean of the
final states of all patches.

Letters: B batch, H height, W width, C channels of an image; N patches, of which V are visible.
"""

import base64
import io
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from PIL import Image

from common.errors import require
from common.task import Function, Predictor, purpose_key, row_keys
from vision import predict
from vision.data import pictures
from vision.masked import masking, shown
from vision.masked.losses import errors, explained


def reconstructor(
    model: nn.Module,
    read: Callable,
    prepare: Callable,
    shape: tuple[int, int, int],
    scale: tuple,
    usual: float,
) -> Predictor:
    """A Predictor of {"loss", "explained", "picture"}: a PNG in base64 of the picture, what the
    model sees of it, and the picture with what it predicts.

    Args:
      model: a `vision.masked.mae.MAE`, or one with its methods.
      read: picture -> [H, W, C], as `prepare` takes it.
      prepare: [B, H, W, C] -> as the model takes them; traced.
      shape: (H, W, C) of an image as the model takes it.
      scale: (mean, std) by which such images are normalised.
      usual: the share of patches that the model was trained without.
    """
    patches = model.patches(shape)

    def options(*, ratio: float | None = None, seed: int = 0) -> dict:
        """The options of a prediction.

        Args:
          ratio: share of a picture's patches to hide; by default as the run was trained.
          seed: random seed of which they are.
        """
        require(0 <= seed < 2**32, f"seed: {seed} is not in [0, 2^32)")
        share = usual if ratio is None else masking.checked("ratio", ratio)
        count = masking.count_visible(patches, share, "ratio")
        return {"count": count, "key": purpose_key(seed, "masking")}

    def apply(params, extra, batch, options):
        images = prepare(batch["image"])
        visible = masking.visible(row_keys(options["key"], batch), patches, options["count"])
        predicted = model.apply({"params": params, **extra}, images, visible)
        error, baseline = errors(model, images, predicted, visible)
        reconstructed = model.reconstructed(images, predicted, visible)
        views = images, model.masked(images, visible), reconstructed
        return {"views": jnp.stack(views, axis=1), "loss": error, "baseline": baseline}

    def result(picture, rows, outputs, options) -> dict:
        views, error, baseline = (outputs[0][name] for name in ("views", "loss", "baseline"))
        page = shown.strips(tuple(views[:, None]), *scale)[0]
        file = io.BytesIO()
        Image.fromarray(page if page.shape[-1] > 1 else page[..., 0]).save(file, "png")
        return {
            "loss": float(error),
            "explained": float(explained(error, baseline)),
            "picture": base64.b64encode(file.getvalue()).decode(),
        }

    return Predictor(
        read=lambda picture, options: [{"image": read(picture)}],
        apply=apply,
        result=result,
        line=_line,
        options=options,
        columns=predict.COLUMNS,
        suffixes=pictures.suffixes(),
        model=model,
        described={"mask_ratio": usual},
        exports={"predict": Function(apply, predict.images)},
    )


def _line(result: dict) -> str:
    """The result for people; its picture is for a file (scripts/predict.py --to)."""
    return f"loss {result['loss']:.4f}, {result['explained']:.0%} of what is hidden explained"
