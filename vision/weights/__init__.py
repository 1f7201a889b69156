"""Loads and saves weights of image models: files of torch, `transformers` and `torchvision`.

    model = resnet.ResNet(**weights.sizes(folder))         # fields from config.json
    variables = weights.pretrained(folder)                 # params and batch_stats
    logits = model.apply(variables, images)
    weights.save(folder, model, variables)                 # for `transformers` to load

A single file does not identify its model, so pass it: `pretrained("resnet18.pth", model)`. The
families are those of `FAMILIES`; `common.weights.engine` reads and writes them.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath

from common import tree
from common.data import fetch
from common.errors import require
from common.nn import model as models
from common.weights import engine
from vision.pretrained import WEIGHTS
from vision.vit import ViT, resized_positions
from vision.weights import convnext, efficientnet_lite, mobilenet, preprocessor, resnet, vit

FAMILIES = (
    *resnet.FAMILIES,
    *vit.FAMILIES,
    *convnext.FAMILIES,
    *mobilenet.FAMILIES,
    *efficientnet_lite.FAMILIES,
)
HEADS = "head/", "distillation_head/", "head_batch_norm/"
POSITIONS = "position/embedding"
DESCRIBED = tuple(family for family in FAMILIES if family.architectures)  # by a config.json


def sizes(folder: epath.PathLike) -> dict[str, Any]:
    """The fields of the model that a folder's config.json describes: `ViT(**sizes(folder))`.

    Raises:
      BadInput: if there is no config.json, or it asks for something our models do not support.
    """
    described = engine.describe(folder, DESCRIBED)
    if "num_classes" not in models.fields_of(described.family.model):
        return described.fields
    # Files omit defaults, and two classes are the default.
    return {"num_classes": described.num_classes or 2, **described.fields}


def settings(config: dict) -> dict[str, dict[str, Any]]:
    """What the weights at `config.init.path` say: `weights_settings` of a task (`common.task`)."""
    path = fetch.find_pretrained(config["init"]["path"], known=WEIGHTS)
    read = engine.read(path, FAMILIES)
    known = read.described is not None
    require(known, f"config.init.adopt: {path}: there is no config.json to adopt")
    found = {"model": read.fields(config["init"]["skip"])}
    setup = preprocessor.read(path) if path.is_dir() else None
    if setup is not None:
        found["data"] = normalisation(setup)
    return found


def normalisation(setup: preprocessor.Preprocessor) -> dict[str, tuple[float, ...]]:
    """The `mean` and `std` of the section `data` that do what `setup` does."""
    unit = 255 * setup.rescale  # there pixels are multiplied by `rescale`; here, divided by 255
    return {
        "mean": tuple(x / unit for x in setup.mean) or (0.0,),
        "std": tuple(x / unit for x in setup.std) or (1 / unit,),
    }


def pretrained(
    path: epath.PathLike,
    model: nn.Module | None = None,
    init: dict | None = None,
    classes: tuple[str, ...] = (),
) -> dict:
    """The variables of a model, structured as by `model.init`: nested dicts of f32 on the host.

    The file must hold exactly the model's tensors, in their shapes, except for the head: it may be
    missing or, if the model is named, be for another number of classes, and is returned as it is.
    With "image_size" in `init["allow"]`, learned positions are interpolated to the model's.

    Args:
      path: a folder, or a .safetensors, .bin or .pth file.
      model: the model to load; None is the one that the folder's config.json describes. If that
        file exists, its fields must be the model's (except for the number of classes).
      init: the section `init` of a run's config, for which they are loaded.
      classes: the names of the model's classes, which the file's must be, if it has names.

    Returns:
      {"params": …} and, for models with running statistics, {"batch_stats": …}.

    Raises:
      BadInput: as `engine.read` and `sizes`; if tensors are missing, of the wrong shape, or of
        another model.
    """
    path, init = epath.Path(path), init or {}
    read = engine.read(path, FAMILIES, model)
    whole = model is None
    if whole:
        require(
            read.described is not None,
            f"{path}: there is no config.json to identify the model; name it",
        )
        model, classes = read.family.model(**sizes(path)), read.described.classes
    with engine.within(path / "config.json") if whole else contextlib.nullcontext():
        outline = shapes_of(model, read.values)
    engine.check(str(path), read, model, outline, init, classes)
    if "image_size" in init.get("allow", ()) and isinstance(model, ViT):
        read = read._replace(values=_resized(read, model, outline, str(path)))
    own = () if whole else [p for p in read.values if p.startswith(HEADS)]
    shapes = {p: read.values[p].shape if p in own else shape for p, shape in outline.items()}
    values = engine.fitted(read, shapes, str(path), optional=HEADS)
    engine.warn_unmatched(path, read.unmatched)
    return engine.variables(values)


def _resized(read: engine.Read, model: ViT, outline: dict, where: str) -> dict:
    """The file's parameters, with learned positions for images of the model's size."""
    values = read.values
    if POSITIONS not in values or POSITIONS not in outline:
        return values
    table = values[POSITIONS]
    extra = sum(token in outline for token in ("class_token", "distillation_token"))
    side = math.isqrt(max(0, len(table) - extra))
    require(
        side > 0 and len(table) == side**2 + extra,
        f"{where}: {len(table)} positions are no square of patches and {extra} other tokens, so "
        "they cannot be resized",
    )
    new = model.image_size // model.patch_size
    if new == side:
        return values
    # As transformers resizes them: of these, only DINOv2 with registers smooths what shrinks.
    antialias = read.family is vit.DINOV2_WITH_REGISTERS
    table = resized_positions(table, (side, side), (new, new), extra, antialias)
    return values | {POSITIONS: table}


def reader(config: dict, model: nn.Module, classes: tuple[str, ...]) -> Callable:
    """The reader of `config.init.path` for a task: path -> `pretrained(path)`, with parameters and
    statistics in one tree.

    Args:
      config: the run's config.
      model: the task's model.
      classes: the names of its classes.
    """

    def read_path(name: str) -> dict:
        path = fetch.find_pretrained(name, known=WEIGHTS)
        return tree.unflatten(flat(pretrained(path, model, config.get("init", {}), classes)))

    return read_path


def shapes_of(model: nn.Module, values: dict) -> dict[str, tuple[int, ...]]:
    """{"stem/kernel": shape, …} of a model, for images with as many channels as the file's."""
    side, channels = getattr(model, "image_size", 32), channels_of(model, values)
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return {path: leaf.shape for path, leaf in flat(variables).items()}


def channels_of(model: nn.Module, values: dict) -> int:
    """C of a model's images, from {path: array}; 3 if its first kernel is missing or of another
    shape."""
    if "patch/kernel" in values:
        rows = len(values["patch/kernel"])
        return max(1, rows // model.patch_size**2) if hasattr(model, "patch_size") else 3
    return values["stem/kernel"].shape[2] if "stem/kernel" in values else 3


def save(
    folder: epath.PathLike,
    model: nn.Module,
    variables: dict,
    family: str | None = None,
    classes: tuple[str, ...] = (),
) -> None:
    """Writes model.safetensors and config.json for `transformers`.

    Args:
      folder: destination; created if missing.
      model: a `ResNet`, `ViT`, `ConvNeXt` or `MAE`.
      variables: its params and batch_stats, in the dtypes to write.
      family: `model_type` of the layout; None is the first that has such a model.
      classes: the names of its classes.

    Raises:
      BadInput: if `transformers` has no such model.
    """
    layout = engine.family_for(model, DESCRIBED, family)
    values = flat(variables)
    engine.save(folder, model, values, layout, classes, channels_of(model, values))


def export(model: nn.Module, variables: dict, names: engine.naming.Names | None = None) -> dict:
    """Variables as {torch name: array}, contiguous, in their own dtypes.

    Args:
      model: the variables' model.
      variables: params and batch_stats, or part of them, such as a gradient.
      names: a layout, such as `vision.weights.resnet.TORCHVISION`; None is that of `save`.

    Raises:
      BadInput: if the layout has no such model or parameter.
    """
    values = flat(variables)
    if names is None:
        names = engine.layout(engine.family_for(model, FAMILIES), values)
    return engine.exported(names, model, values)


def flat(variables: dict) -> dict:
    """{path: array} of params and batch_stats, without collections."""
    return {p: x for inner in variables.values() for p, x in tree.flatten(inner).items()}
