"""Predictions of image classifiers, from pictures: the classes of each, or a vector.

A picture is the path of a file, its contents as bytes, or an array u8[H, W, C]. It is read as those
of `images:` are (`vision.data.pictures`) and, if it has another size, becomes a square as they do
(`photographs.square`); published weights come with a preprocessor of their own.

Letters: H height, W width, C channels, D width of a vector, K classes.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from common import classes as ranking
from common.errors import BadInput, require
from common.sections import call
from common.task import Function, Predictor, Source, held_out, split_key
from vision.data import datasets, photographs, pictures
from vision.data.views import Views, weighted_views

COLUMNS = ("path",)


def classifier(
    model: nn.Module,
    read: Callable,
    prepare: Callable,
    names: tuple[str, ...],
    multi_label: bool = False,
    usual: Views = "none",
) -> Predictor:
    """A Predictor of classes: {"class", "probability", "probabilities"}, see `common.classes`.

    Args:
      model: called as `model(images)`.
      read: picture -> [H, W, C], as `prepare` takes it.
      prepare: [B, H, W, C] -> as the model takes them; traced.
      names: K names of classes.
      multi_label: whether a picture has any number of classes.
      usual: the views by which the model was evaluated.
    """

    def options(*, top: int = 5, views: Views | None = None) -> dict:
        """The options of a prediction.

        Args:
          top: number of classes to tell, likeliest first.
          views: views of a picture over which to average: "none", "flip" or "flip_shift"; by
            default as the run evaluates.
        """
        return {"top": ranking.check_top(top, len(names)), "views": views or usual}

    def apply(params, extra, batch, options):
        images = prepare(batch["image"])
        call = partial(model.apply, {"params": params, **extra})
        views = weighted_views(images, options["views"])
        return {"logits": sum(share * call(view) for share, view in views)}

    def result(picture, rows, outputs, options) -> dict:
        logits = outputs[0]["logits"]
        return ranking.result(logits, names, options["top"], multi_label)

    return Predictor(
        read=lambda picture, options: [{"image": read(picture)}],
        apply=apply,
        result=result,
        line=ranking.line,
        options=options,
        columns=COLUMNS,
        suffixes=pictures.suffixes(),
        model=model,
        exports={"predict": Function(apply, images)},
    )


def vectors(model: nn.Module, read: Callable, prepare: Callable) -> Predictor:
    """A Predictor of {"vector": D numbers}: the features that the model's head classifies, by the
    name `features`. Arguments as in `classifier`.

    Raises:
      BadInput: when it is applied, if the model exposes no activation of that name.
    """

    def options() -> dict:
        """No options."""
        return {}

    def apply(params, extra, batch, options):
        images = prepare(batch["image"])
        variables = {"params": params, **extra}
        sown = model.apply(variables, images, mutable=["intermediates"])[1]
        features = sown.get("intermediates", {}).get("features")
        name = type(model).__name__
        require(
            features is not None,
            f"{name} names no activation 'features' (common.nn.layers.named), so it has no vector",
        )
        return {"vector": features[-1].astype(jnp.float32)}

    return Predictor(
        read=lambda picture, options: [{"image": read(picture)}],
        apply=apply,
        result=lambda picture, rows, outputs, options: {"vector": outputs[0]["vector"].tolist()},
        line=lambda result: " ".join(f"{x:.6g}" for x in result["vector"]),
        options=options,
        columns=COLUMNS,
        suffixes=pictures.suffixes(),
        model=model,
        exports={"predict": Function(apply, images)},
    )


def images(params, extra, rows: dict) -> dict:
    """`Function.inputs` of `apply`."""
    del params, extra
    return {"image": rows["image"]}


# ---------------------------------------------------------------------------------------- pictures


def pixels(picture: Any, channels: int) -> np.ndarray:
    """The pixels of a picture, u8[H, W, C]. Grey is repeated where C is 3; where it is 1, colours
    become grey by their luminance.

    Args:
      picture: a path, the contents of a file, or an array u8[H, W], u8[H, W, 1] or u8[H, W, 3].
      channels: C.

    Raises:
      BadInput: if it cannot be read.
    """
    require(
        channels in (1, 3),
        f"the model takes images of {channels} channels, and pictures are read as grey or RGB",
    )
    if isinstance(picture, str | bytes | os.PathLike):
        require(picture not in ("", b""), "it is empty, and no path")
        try:
            grey = channels == 1 and pictures.header(picture).grey
            array, _ = pictures.pixels(picture, 1 if grey else 3)
        except pictures.Broken as error:
            raise BadInput(str(error)) from error
    else:
        try:
            array = np.asarray(picture)
        except ValueError:  # nested lists of several lengths
            array = np.empty((), object)
        array = array[..., None] if array.ndim == 2 else array
        fits = array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] in (1, 3)
        require(
            fits and array.size > 0,
            f"a picture is a path or u8[H, W, C] of 1 or 3 channels, not {array.dtype}"
            f"{list(array.shape)}",
        )
    if array.shape[-1] == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=-1)
    return np.asarray(Image.fromarray(array).convert("L"))[..., None]


def reader(shape: tuple[int, int, int], fit: Callable = photographs.square) -> Callable:
    """picture -> u8 of `shape`: its pixels as they are, or else a square of them by `fit`: the
    centre, resized.

    Raises:
      BadInput: when called, if the picture cannot be read, or has another size and `shape` is no
        square.
    """
    height, width, channels = shape

    def read(picture):
        array = pixels(picture, channels)
        if array.shape != shape:
            rows, columns = array.shape[:2]
            require(
                height == width,
                f"it is {rows} x {columns}, and the model takes {height} x {width} pixels, which "
                "is no square: resize it",
            )
            longer = height * max(rows, columns) / min(rows, columns)
            limit = 2 * Image.MAX_IMAGE_PIXELS
            fits = longer * height <= limit
            require(fits, f"it is {rows} x {columns}: too long for its width to become a square")
            array = fit(array, height)
        return np.ascontiguousarray(array)

    return read


def elsewhere(config: dict, own: dict, sources: dict[str, Source]) -> dict[str, Source]:
    """Another set of images, as a run sees its own.

    Args:
      config: names the set.
      own: the config of the run.
      sources: of the run.

    Raises:
      BadInput: if they are to be normalised otherwise, or are of another size.
    """
    for key in ("mean", "std"):
        same = config["data"][key] == own["data"][key]
        require(
            same, f"--config.data.{key}: images are normalised as the run has them; leave it out"
        )
    others = call(datasets.load_sources, config["data"], held_out(config))
    shape = sources["train"].spec["image"].shape
    return {name: shaped(name, source, shape) for name, source in others.items()}


def shaped(key: str, source: Source, shape: tuple[int, int, int]) -> Source:
    """A set whose images have a run's channels, as of `pixels`.

    Args:
      key: its name, for messages.
      source: with `image`, u8[b, H, W, C].
      shape: (H, W, C) of the run's images.

    Raises:
      BadInput: if they are of another size.
    """
    theirs = source.spec["image"].shape
    if theirs == shape:
        return source
    spelled = lambda shape: " x ".join(map(str, shape))
    channels = {theirs[-1], shape[-1]}
    require(
        theirs[:2] == shape[:2] and (len(channels) == 1 or channels == {1, 3}),
        f"{split_key(key)}: its images are {spelled(theirs)}, and those of the run "
        f"{spelled(shape)}; set config.data.image_size, or resize them",
    )

    def read(rows):
        batch = source.read(rows)
        return batch | {"image": np.stack([pixels(x, shape[-1]) for x in batch["image"]])}

    spec = source.spec | {"image": jax.ShapeDtypeStruct(shape, np.uint8)}
    return source._replace(read=read, resident=None, spec=spec)
