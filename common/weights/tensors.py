"""Tensors of a weights file by name: safetensors and torch, in one file or in numbered parts.

Does not need torch, and executes nothing in a file. `lm.weights` and `vision.weights` interpret the
names.
"""

import json

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from common import inputs
from common.errors import require
from common.weights import torch_file

# Files to look for in a folder, in this order, each whole or as an index of parts.
FILES = ("model.safetensors", "pytorch_model.bin")

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a checkpoint, {name: array}, with the file's own names and dtypes.

    Args:
      path: a folder, or a .safetensors or .bin file.

    Raises:
      BadInput: if there are none, a part is missing, or a file is damaged or holds anything other
        than tensors.
    """
    path = epath.Path(path)
    if not path.is_dir():
        require(inputs.present(path), f"{inputs.shown(path)}: no such file or folder")
        return _read_file(path)
    for name in FILES:
        if inputs.present(path / name):
            return _read_file(path / name)
        if inputs.present(path / f"{name}.index.json"):
            return _read_parts(path, f"{name}.index.json")
    require(False, f"{path}: no weights: there should be {' or '.join(FILES)}")


def _read_file(path: epath.Path) -> dict[str, np.ndarray]:
    raw = inputs.contents("", path)
    if path.suffix != ".safetensors":
        return torch_file.read(raw, str(path))
    try:
        entries = safetensors.deserialize(raw)
    except safetensors.SafetensorError as error:
        require(False, f"{path}: damaged, or not a safetensors file ({error})")
    unsupported = {t["dtype"] for _, t in entries} - DTYPES.keys()
    require(not unsupported, f"{path}: dtypes {sorted(unsupported)} are not supported")
    return {  # sorted, since the library returns them in any order
        name: np.frombuffer(t["data"], DTYPES[t["dtype"]]).reshape(t["shape"])
        for name, t in sorted(entries, key=lambda pair: pair[0])
    }


def _read_parts(folder: epath.Path, index: str) -> dict[str, np.ndarray]:
    where = str(folder / index)
    weight_map = inputs.field(json_object(folder / index), "weight_map", dict, {}, where)
    for name in weight_map:
        inputs.field(weight_map, name, str, "", f"{where}: weight_map")
    tensors = {}
    for part in sorted(set(weight_map.values())):
        file = folder / part
        own = file.parent == folder and inputs.present(file)
        require(own, f"{folder}: {inputs.shown(part)} is missing")
        tensors |= _read_file(file)
    missing = sorted(weight_map.keys() - tensors.keys())
    require(not missing, f"{folder}: {len(missing)} tensors of {index} are missing: {missing[:3]}")
    return tensors


def settings(folder: epath.PathLike) -> tuple[dict, str]:
    """(contents of a folder's config.json, its path). Raises `BadInput` if it does not exist."""
    file = epath.Path(folder) / "config.json"
    require(inputs.present(file), f"{file}: not there; it names the model of these weights")
    return json_object(file), str(file)


def write(folder: epath.PathLike, tensors: dict[str, np.ndarray], settings: dict) -> None:
    """Writes model.safetensors and config.json into a folder, which is created if missing.

    The arrays must be contiguous: the library writes raw memory and ignores strides.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(contents)
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def json_object(path: epath.Path) -> dict:
    """The object in a JSON file. Raises `BadInput` if the file holds anything else."""
    return inputs.json_object("", path)
