"""Classifiers on the mean of hidden states, as sentence-transformers lays them out.

`transformers` has no classifier that pools by the mean; sentence-transformers has, in a folder that
`transformers` also reads: the encoder as ever, modules.json, 1_Pooling with the kind of pooling,
and, for the classes, 2_Dense with one layer without an activation.
"""

import json
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from common import inputs
from common.errors import brief, require
from common.weights import tensors

PACKAGE = "sentence_transformers.models"
IDENTITY = "torch.nn.modules.linear.Identity"
DENSE = "2_Dense"


def read(folder: epath.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a folder's modules.json adds to its encoder: (fields of `Classifier`, {path: f32} of the
    head); ({}, {}) if there is none.

    Raises:
      BadInput: for a module, or a kind of pooling, that there is not here.
    """
    folder = epath.Path(folder)
    file = folder / "modules.json"
    if not folder.is_dir() or not inputs.present(file):
        return {}, {}
    modules = inputs.json_list("", file)
    fields, values = {}, {}
    for module in modules:
        require(isinstance(module, dict), f"{file}: {brief(module)} is not a module")
        kind = inputs.field(module, "type", str, "", str(file)).rpartition(".")[2]
        path = inputs.field(module, "path", str, "", str(file))
        inside = epath.Path(path).name == path
        require(inside, f"{file}: {brief(path)} is not a folder beside it")
        if kind == "Pooling":
            fields = {"pooling": _pooling(folder / path / "config.json")}
        elif kind == "Dense":
            values = _dense(folder / path)
        else:
            known = kind in ("Transformer", "Normalize")
            require(known, f"{file}: a module of type {brief(kind)} is not supported")
    return fields, values


class Vectors(NamedTuple):
    """How a folder makes vectors of texts.

    Attributes:
      pooling: "mean", or "first" token; "" if it does not say.
      unit: whether they are divided by their Euclidean length.
      longest: tokens of a text, at which longer ones are cut; None if it does not say.
    """

    pooling: str
    unit: bool
    longest: int | None


def vectors(folder: epath.PathLike) -> Vectors:
    """What its modules.json and sentence_bert_config.json say. Raises `BadInput` as `read`."""
    fields, _ = read(folder)
    if not fields:
        return Vectors("", False, None)
    folder, longest = epath.Path(folder), None
    kinds = [module["type"] for module in inputs.json_list("", folder / "modules.json")]
    file = folder / "sentence_bert_config.json"
    if inputs.present(file):
        longest = inputs.field(inputs.json_object("", file), "max_seq_length", int, None, str(file))
    unit = any(kind.rpartition(".")[2] == "Normalize" for kind in kinds)
    return Vectors(fields["pooling"], unit, longest)


def _pooling(file: epath.Path) -> str:
    config = inputs.json_object("", file)
    modes = [k for k, v in config.items() if k.startswith("pooling_mode_") and v is True]
    require(
        modes in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]),
        f"{file}: {brief(modes)}: only the mean, or the first token, is pooled here",
    )
    return "mean" if modes == ["pooling_mode_mean_tokens"] else "first"


def _dense(folder: epath.Path) -> dict[str, np.ndarray]:
    config = inputs.json_object("", folder / "config.json")
    activation = inputs.field(config, "activation_function", str, "", str(folder))
    identity = activation == IDENTITY
    require(identity, f"{folder}: activation_function {brief(activation)} is not supported")
    found = tensors.read(folder)
    names = {"linear.weight": "classifier/kernel", "linear.bias": "classifier/bias"}
    require(
        set(found) == set(names), f"{folder}: holds {sorted(found)[:3]}, not a layer with a bias"
    )
    return {names[k]: np.ascontiguousarray(x.T, np.float32) for k, x in found.items()}


def write(folder: epath.PathLike, width: int, values: dict[str, np.ndarray], length: int) -> None:
    """Adds the pooling and the head of a classifier to the folder of its encoder.

    Args:
      folder: with the encoder.
      width: D.
      values: {path: array}: `classifier/kernel` [D, K] and `classifier/bias` [K].
      length: the longest text, in tokens.
    """
    folder = epath.Path(folder)
    names = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", DENSE)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{PACKAGE}.{name}"}
        for i, (name, path) in enumerate(names)
    ]
    kernel, bias = (np.asarray(values[f"classifier/{leaf}"]) for leaf in ("kernel", "bias"))
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
    }
    tensors.write(
        folder / DENSE,
        {"linear.weight": np.ascontiguousarray(kernel.T), "linear.bias": bias},
        {
            "in_features": width,
            "out_features": len(bias),
            "bias": True,
            "activation_function": IDENTITY,
        },
    )
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    for name, contents in files.items():
        (folder / name).write_text(json.dumps(contents, indent=2) + "\n")
