"""The tensors of a file of weights, by name: safetensors and torch, whole or in numbered parts.

Torch is not needed, and nothing in a file is executed. What the names mean is said by `lm.weights`
and `vision.weights`.
"""

import json

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from common.errors import require
from common.weights import torch_file

# Where the tensors of a folder are: the first that is there, whole or as an index of parts.
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
    """The tensors of a checkpoint under the names in the file and in its dtypes.

    Args:
      path: a folder, or a .safetensors or .bin file.

    Raises:
      BadInput: if there are none, a part is missing, or a file is damaged or holds anything but
        tensors.
    """
    path = epath.Path(path)
    if not path.is_dir():
        require(path.exists(), f"{path}: no such file or folder")
        return _read_file(path)
    for name in FILES:
        if (path / name).exists():
            return _read_file(path / name)
        if (path / f"{name}.index.json").exists():
            return _read_parts(path, f"{name}.index.json")
    require(False, f"{path}: no weights: there should be {' or '.join(FILES)}")


def _read_file(path: epath.Path) -> dict[str, np.ndarray]:
    if path.suffix != ".safetensors":
        return torch_file.read(path.read_bytes(), str(path))
    try:
        found = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        require(False, f"{path}: damaged, or no safetensors file ({error})")
    other = {t["dtype"] for _, t in found} - DTYPES.keys()
    require(not other, f"{path}: dtypes {sorted(other)} are not supported")
    return {  # the library gives them in any order
        name: np.frombuffer(t["data"], DTYPES[t["dtype"]]).reshape(t["shape"])
        for name, t in sorted(found, key=lambda pair: pair[0])
    }


def _read_parts(folder: epath.Path, index: str) -> dict[str, np.ndarray]:
    places = json_object(folder / index).get("weight_map", {})
    tensors = {}
    for part in sorted(set(places.values())):
        file = folder / part
        require(file.parent == folder and file.exists(), f"{folder}: {part} is missing")
        tensors |= _read_file(file)
    missing = sorted(places.keys() - tensors.keys())
    require(not missing, f"{folder}: {len(missing)} tensors of {index} are missing: {missing[:3]}")
    return tensors


def settings(folder: epath.PathLike) -> tuple[dict, str]:
    """(what the config.json of a folder says, its path). Raises `BadInput` if there is none."""
    file = epath.Path(folder) / "config.json"
    require(file.exists(), f"{file}: not there; it says what model the weights are of")
    return json_object(file), str(file)


def write(folder: epath.PathLike, tensors: dict[str, np.ndarray], settings: dict) -> None:
    """Writes model.safetensors and config.json into a folder, which is made if it is not there.

    The arrays must be contiguous: the library writes memory as it lies, whatever the strides say.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(contents)
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def json_object(path: epath.Path) -> dict:
    """The object in a JSON file. Raises `BadInput` if there is none."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        require(False, f"{path}: no JSON ({error})")
    require(isinstance(found, dict), f"{path}: no JSON object")
    return found
