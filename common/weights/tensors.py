"""Tensors of a weights file by name: safetensors, torch and GGUF, in one file or in numbered parts.

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
from common.weights import gguf_file, torch_file

# Files to look for in a folder, in this order, each whole or as an index of parts.
FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
MOST_HEADER = 100_000_000  # bytes; the library's own limit
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel, and of torch.compile

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

    Prefixes that DataParallel and torch.compile put before all names are left out. Tensors of a
    GGUF file are f32.

    Args:
      path: a file with one of `SUFFIXES`, or a folder with one of `FILES` or else a single .gguf.

    Raises:
      BadInput: if there are none, a part is missing, or a file is damaged or holds anything other
        than tensors.
    """
    path = epath.Path(path)
    if not path.is_dir():
        require(inputs.present(path), f"{inputs.shown(path)}: no such file or folder")
        return _unwrapped(_read_file(path))
    for name in FILES:
        if inputs.present(path / name):
            return _unwrapped(_read_file(path / name))
        if inputs.present(path / f"{name}.index.json"):
            return _unwrapped(_read_parts(path, name))
    gguf = gguf_of(path)
    require(
        gguf is not None,
        f"{path}: no weights: there should be {' or '.join(FILES)} or a .gguf file",
    )
    return _read_file(gguf)


def gguf_of(path: epath.PathLike) -> epath.Path | None:
    """The GGUF file that `read` reads at `path`; None if it reads none. Raises `BadInput` if there
    are several."""
    path = epath.Path(path)
    if not path.is_dir():
        return path if path.suffix == ".gguf" else None
    if any(inputs.present(path / f"{name}{end}") for name in FILES for end in ("", ".index.json")):
        return None
    gguf = sorted(path.glob("*.gguf"))
    require(
        len(gguf) < 2,
        f"{path}: holds {len(gguf)} GGUF files: name one, such as {gguf and gguf[0].name}",
    )
    return gguf[0] if gguf else None


def _unwrapped(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    while wrapper := next((w for w in WRAPPERS if _all_begin(tensors, w)), ""):
        tensors = {name.removeprefix(wrapper): x for name, x in tensors.items()}
    return tensors


def _all_begin(names, prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) and name != prefix for name in names)


def _read_file(path: epath.Path) -> dict[str, np.ndarray]:
    inputs.file("", path)
    require(
        path.suffix in SUFFIXES,
        f"{inputs.shown(path)}: weights are told by their ending, one of {', '.join(SUFFIXES)}",
    )
    if path.suffix == ".gguf":
        return gguf_file.read(path)[0]
    raw = inputs.contents("", path)
    wrong = inputs.impostor(raw)
    require(wrong is None, f"{path}: {wrong}")
    if path.suffix != ".safetensors":
        return torch_file.read(raw, str(path))
    try:
        entries = safetensors.deserialize(raw)
    except safetensors.SafetensorError as error:
        size = _safetensors_bytes(raw)
        require(
            size <= len(raw),
            f"{path}: truncated: it holds {len(raw):,} of at least {size:,} bytes; fetch it again",
        )
        require(False, f"{path}: damaged, or not a safetensors file ({inputs.reason(error)})")
    unsupported = {t["dtype"] for _, t in entries} - DTYPES.keys()
    require(not unsupported, f"{path}: dtypes {sorted(unsupported)} are not supported")
    return {  # sorted, since the library returns them in any order
        name: np.frombuffer(t["data"], DTYPES[t["dtype"]]).reshape(t["shape"])
        for name, t in sorted(entries, key=lambda pair: pair[0])
    }


def _safetensors_bytes(raw: bytes) -> int:
    """Bytes that a safetensors file has at least, by its header; 0 if it has no header.

    The file is the header's length as u64, the header in JSON, and the values at its offsets.
    """
    length = int.from_bytes(raw[:8], "little")
    if raw[8:9] != b"{" or length > MOST_HEADER:
        return 0
    if 8 + length > len(raw):
        return 8 + length
    try:
        header = json.loads(raw[8 : 8 + length])
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except Exception:  # anything may be in a header's place
        return 0


def _read_parts(folder: epath.Path, name: str) -> dict[str, np.ndarray]:
    """Reads the files that `name`.index.json names, which must be in the folder itself: a file
    that is fetched decides about no other place. Links are followed, as in Hugging Face's cache."""
    index = f"{name}.index.json"
    where = str(folder / index)
    weight_map = inputs.field(
        json_object(folder / index), "weight_map", dict, inputs.REQUIRED, where
    )
    require(bool(weight_map), f"{where}: weight_map names no tensor")
    for tensor in weight_map:
        inputs.field(weight_map, tensor, str, "", f"{where}: weight_map")
    tensors, origin = {}, {}
    for part in sorted(set(weight_map.values())):
        file = folder / part
        require(
            part == file.name != ".." and inputs.present(file),
            f"{folder}: {inputs.shown(part)} is missing: the parts that {index} names must be in "
            "this folder",
        )
        found = _read_file(file)
        twice = sorted(found.keys() & tensors.keys())
        require(
            not twice,
            f"{folder}: {twice[:1]} is in two parts, {twice and origin[twice[0]]} and {part}",
        )
        tensors |= found
        origin |= dict.fromkeys(found, part)
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
