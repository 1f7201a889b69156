"""Weights of image models, in and out: files of torch, `transformers` and `torchvision`.

    model = resnet.ResNet(**weights.sizes(folder))         # what config.json says
    variables = weights.pretrained(folder)                 # params and batch_stats
    logits = model.apply(variables, images)
    weights.save(folder, model, variables)                 # for `transformers` to load

A folder holds config.json and model.safetensors or pytorch_model.bin; a file alone does not say
what it is of, so name the model: `pretrained("resnet18.pth", model)`. `vision.layouts` says which
name there is which name here. Torch is not needed, and nothing in a file is executed.
"""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from common import tree
from common.errors import require
from common.weights import tensors
from vision import layouts
from vision.layouts import HFLayout


def sizes(folder: epath.PathLike) -> dict[str, Any]:
    """The fields of the model that a folder's config.json describes: `ViT(**sizes(folder))`.

    Raises:
      BadInput: if there is no config.json, or it asks for what the models here do not have.
    """
    return layouts.sizes(*tensors.settings(folder))


def _model(path: epath.Path, given: nn.Module | None) -> nn.Module:
    """The model that a folder's config.json describes, or the given one if that is the same."""
    file = path / "config.json"
    if given is None:
        require(file.exists(), f"{path}: no config.json says what model this is of; name the model")
        return layouts.settings(tensors.json_object(file), str(file)).model(**sizes(path))
    config = tensors.json_object(file) if file.exists() else {}
    known = layouts.SETTINGS.get(config.get("model_type"))
    if known is not None and isinstance(given, known.model):  # not every library writes such a file
        there = sizes(path)
        pairs = {field: (there[field], getattr(given, field)) for field in known.fields}
        # Some of these, such as heads, no shape of a tensor tells.
        wrong = [f"{k} = {a!r} there and {b!r} here" for k, (a, b) in pairs.items() if a != b]
        _refuse(f"{file}: the model is another", wrong)
    return given


def pretrained(path: epath.PathLike, model: nn.Module | None = None) -> dict:
    """The variables of a model, as `model.init` has them: nested dicts of f32 on the host.

    All have to be there, in their shapes, and no others, but for the head: it may be missing or be
    for another number of classes, and is returned as it is.

    Args:
      path: a folder, or a .safetensors, .bin or .pth file.
      model: whose variables these are; None is the one that the folder's config.json describes. If
        that is there, the model has to have its fields (but for the classes).

    Returns:
      {"params": …} and, where there are such statistics, {"batch_stats": …}.

    Raises:
      BadInput: as `tensors.read` and `sizes`; if tensors are missing, of other shapes, not floats,
        or of another model.
    """
    path = epath.Path(path)
    model = _model(path, model)
    kind, candidates, found = (
        type(model).__name__,
        layouts.of(model),
        tensors.read(path),
    )
    outline, readings = _outline(model), []
    for layout in candidates:
        names = {place: layouts.name(layout, _inner(place)) for place in outline}
        there = _plain(found, layout)
        readings.append((len(there.keys() & names.values()), names, there))
    known, names, there = max(readings, key=lambda reading: reading[0])
    require(known > 0, f"{path}: of its {len(found)} tensors none is one of {kind}")

    head = {name for place, name in names.items() if place.startswith("params/head/")}
    needed = set(names.values()) - (set() if head & there.keys() else head)
    _refuse(f"{path}: {kind} has tensors that are not there", needed - there.keys())
    _refuse(f"{path}: there are tensors that {kind} has not", there.keys() - set(names.values()))
    values, wrong = {}, []
    for place, name in names.items():
        if name not in there:
            continue
        x, expected = there[name], _expected(place, outline[place], there[name].shape, model)
        if x.shape != expected or not jnp.issubdtype(x.dtype, jnp.floating):
            wrong.append(f"{name} is {x.dtype}{list(x.shape)}, not float{list(expected)}")
        else:
            values[place] = np.ascontiguousarray(layouts.ours(_inner(place), x), np.float32)
    _refuse(f"{path}: tensors are not those of {kind}", wrong)
    return tree.unflatten(values)


def _outline(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """{"params/stem/kernel": shape, …} of a model, for images of three channels."""
    side = getattr(model, "image_size", 32)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return {place: leaf.shape for place, leaf in tree.flatten(variables).items()}


def _inner(place: str) -> str:
    """A place without its collection: a path."""
    return place.partition("/")[2]


def _plain(found: dict[str, np.ndarray], layout: HFLayout) -> dict[str, np.ndarray]:
    """The tensors that may be of a model, all with their prefix."""
    heads = layouts.name(layout, "head/kernel"), layouts.name(layout, "head/bias")
    full = lambda name: name if name in heads else layout.prefix + name.removeprefix(layout.prefix)
    ignored = lambda name: re.fullmatch(layout.ignored, name.removeprefix(layout.prefix))
    return {full(name): x for name, x in found.items() if not ignored(name)}


def _expected(place: str, shape: tuple, found: tuple, model: nn.Module) -> tuple[int, ...]:
    """The shape there of what has this shape here. How many classes the head has, and how many
    channels the images, is up to the file."""
    expected = _theirs(place, np.broadcast_to(np.float32(0), shape), model).shape
    free = {"params/head/": 0, "params/stem/kernel": 1, "params/patch/kernel": 1}
    for beginning, i in free.items():
        if place.startswith(beginning) and len(found) == len(expected):
            expected = (*expected[:i], found[i], *expected[i + 1 :])
    return expected


def _theirs(place: str, x: np.ndarray, model: nn.Module) -> np.ndarray:
    return layouts.theirs(_inner(place), x, getattr(model, "patch_size", None))


def _refuse(message: str, names) -> None:
    """Raises `BadInput` if there are any names; the first few are said."""
    names = sorted(names)
    more = f", and {len(names) - 4} more" if len(names) > 4 else ""
    require(not names, f"{message}: {', '.join(names[:4])}{more}")


def export(model: nn.Module, variables: dict, layout: HFLayout | None = None) -> dict:
    """Variables as {name there: array}, contiguous, in their own dtypes.

    Args:
      model: whose they are.
      variables: params and batch_stats, or a part of these, such as a gradient.
      layout: of `vision.layouts`, such as `TORCHVISION_RESNET`; None is that of `save`.

    Raises:
      BadInput: if the layout has no such model or parameter.
    """
    layout = layouts.of(model)[0] if layout is None else layout
    found = {}
    for place, x in tree.flatten(variables).items():
        name = layouts.name(layout, _inner(place))
        found[name] = np.ascontiguousarray(_theirs(place, np.asarray(x), model))
        if place.endswith("/var"):
            found[name.replace("running_var", "num_batches_tracked")] = np.array(0, np.int64)
    return found


def save(folder: epath.PathLike, model: nn.Module, variables: dict) -> None:
    """Writes model.safetensors and config.json for `transformers`.

    Args:
      folder: where to; made if it is not there.
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
