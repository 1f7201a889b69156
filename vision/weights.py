"""Loads and saves weights of image models: files of torch, `transformers` and `torchvision`.

    model = resnet.ResNet(**weights.sizes(folder))         # fields from config.json
    variables = weights.pretrained(folder)                 # params and batch_stats
    logits = model.apply(variables, images)
    weights.save(folder, model, variables)                 # for `transformers` to load

A folder holds config.json and model.safetensors or pytorch_model.bin; a single file does not
identify its model, so pass it: `pretrained("resnet18.pth", model)`. `vision.layouts` maps torch's
names to ours. Torch is not needed, and nothing in a file is executed.
"""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from common import inputs, tree
from common.errors import require
from common.weights import tensors
from vision import layouts
from vision.layouts import HFLayout


def sizes(folder: epath.PathLike) -> dict[str, Any]:
    """The fields of the model that a folder's config.json describes: `ViT(**sizes(folder))`.

    Raises:
      BadInput: if there is no config.json, or it asks for something our models do not support.
    """
    return layouts.sizes(*tensors.settings(folder))


def _model(path: epath.Path, model: nn.Module | None) -> nn.Module:
    """The model that a folder's config.json describes, or `model` if that agrees."""
    file = path / "config.json"
    if model is None:
        require(
            inputs.present(file), f"{path}: there is no config.json to identify the model; name it"
        )
        return layouts.settings(tensors.json_object(file), str(file)).model(**sizes(path))
    config = tensors.json_object(file) if inputs.present(file) else {}
    known = layouts.SETTINGS.get(str(config.get("model_type")))
    if known is not None and isinstance(model, known.model):  # not every library writes one
        described = sizes(path)
        pairs = {field: (described[field], getattr(model, field)) for field in known.fields}
        # Shapes of tensors do not reveal some of these, such as the number of heads.
        wrong = [f"{k} = {a!r} there and {b!r} here" for k, (a, b) in pairs.items() if a != b]
        _refuse(f"{file}: describes another model", wrong)
    return model


def pretrained(path: epath.PathLike, model: nn.Module | None = None) -> dict:
    """The variables of a model, structured as by `model.init`: nested dicts of f32 on the host.

    The file must hold exactly the model's tensors, in their shapes, except for the head: it may be
    missing or be for another number of classes, and is returned as it is.

    Args:
      path: a folder, or a .safetensors, .bin or .pth file.
      model: the model to load; None is the one that the folder's config.json describes. If that
        file exists, its fields must be the model's (except for the number of classes).

    Returns:
      {"params": …} and, for models with running statistics, {"batch_stats": …}.

    Raises:
      BadInput: as `tensors.read` and `sizes`; if tensors are missing, of the wrong shape, not
        floats, or of another model.
    """
    path = epath.Path(path)
    model = _model(path, model)
    kind, candidates, loaded = (
        type(model).__name__,
        layouts.of(model),
        tensors.read(path),
    )
    outline, readings = _outline(model), []
    for layout in candidates:
        names = {place: layouts.name(layout, _inner(place)) for place in outline}
        stored = _plain(loaded, layout)
        readings.append((len(stored.keys() & names.values()), names, stored))
    known, names, stored = max(readings, key=lambda reading: reading[0])
    require(known > 0, f"{path}: none of its {len(loaded)} tensors belongs to {kind}")

    head = {name for place, name in names.items() if place.startswith("params/head/")}
    needed = set(names.values()) - (set() if head & stored.keys() else head)
    _refuse(f"{path}: tensors of {kind} are missing", needed - stored.keys())
    _refuse(f"{path}: unexpected tensors, not of {kind}", stored.keys() - set(names.values()))
    values, wrong = {}, []
    for place, name in names.items():
        if name not in stored:
            continue
        x, expected = stored[name], _expected(place, outline[place], stored[name].shape, model)
        if x.shape != expected or not jnp.issubdtype(x.dtype, jnp.floating):
            wrong.append(f"{name} is {x.dtype}{list(x.shape)}, not float{list(expected)}")
        else:
            values[place] = np.ascontiguousarray(layouts.ours(_inner(place), x), np.float32)
    _refuse(f"{path}: tensors do not fit {kind}", wrong)
    return tree.unflatten(values)


def _outline(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """{"params/stem/kernel": shape, …} of a model, for images with three channels."""
    side = getattr(model, "image_size", 32)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return {place: leaf.shape for place, leaf in tree.flatten(variables).items()}


def _inner(place: str) -> str:
    """The path of a place: the place without its collection."""
    return place.partition("/")[2]


def _plain(loaded: dict[str, np.ndarray], layout: HFLayout) -> dict[str, np.ndarray]:
    """The tensors that may belong to a model, all with their prefix."""
    heads = layouts.name(layout, "head/kernel"), layouts.name(layout, "head/bias")
    full = lambda name: name if name in heads else layout.prefix + name.removeprefix(layout.prefix)
    ignored = lambda name: re.fullmatch(layout.ignored, name.removeprefix(layout.prefix))
    return {full(name): x for name, x in loaded.items() if not ignored(name)}


def _expected(place: str, shape: tuple, stored: tuple, model: nn.Module) -> tuple[int, ...]:
    """The torch shape of a variable whose shape in our model is `shape`. The file decides the
    number of classes and of image channels."""
    expected = _theirs(place, np.broadcast_to(np.float32(0), shape), model).shape
    free = {"params/head/": 0, "params/stem/kernel": 1, "params/patch/kernel": 1}
    for beginning, i in free.items():
        if place.startswith(beginning) and len(stored) == len(expected):
            expected = (*expected[:i], stored[i], *expected[i + 1 :])
    return expected


def _theirs(place: str, x: np.ndarray, model: nn.Module) -> np.ndarray:
    return layouts.theirs(_inner(place), x, getattr(model, "patch_size", None))


def _refuse(message: str, names) -> None:
    """Raises `BadInput` if there are any names, listing the first few."""
    names = sorted(names)
    more = f", and {len(names) - 4} more" if len(names) > 4 else ""
    require(not names, f"{message}: {', '.join(names[:4])}{more}")


def export(model: nn.Module, variables: dict, layout: HFLayout | None = None) -> dict:
    """Variables as {torch name: array}, contiguous, in their own dtypes.

    Args:
      model: the variables' model.
      variables: params and batch_stats, or part of them, such as a gradient.
      layout: one of `vision.layouts`, such as `TORCHVISION_RESNET`; None is that of `save`.

    Raises:
      BadInput: if the layout has no such model or parameter.
    """
    layout = layouts.of(model)[0] if layout is None else layout
    exported = {}
    for place, x in tree.flatten(variables).items():
        name = layouts.name(layout, _inner(place))
        exported[name] = np.ascontiguousarray(_theirs(place, np.asarray(x), model))
        if place.endswith("/var"):
            exported[name.replace("running_var", "num_batches_tracked")] = np.array(0, np.int64)
    return exported


def save(folder: epath.PathLike, model: nn.Module, variables: dict) -> None:
    """Writes model.safetensors and config.json for `transformers`.

    Args:
      folder: destination; created if missing.
      model: a `ResNet` or `ViT`.
      variables: its params and batch_stats, in the dtypes to write.

    Raises:
      BadInput: if `transformers` has no such model.
    """
    settings = layouts.config(model, _channels(model, variables["params"]))
    tensors.write(folder, export(model, variables), settings)


def _channels(model: nn.Module, params: dict) -> int:
    if "patch" in params:
        return len(params["patch"]["kernel"]) // model.patch_size**2
    return params["stem"]["kernel"].shape[2]
