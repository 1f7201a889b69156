"""Reads the tensors of a torch checkpoint (pytorch_model.bin) without executing its contents.

The file is a pickle, and a pickle may call anything. This one may name only an ordered dict, a
tensor and storage types; it builds records, which become arrays only once the storages they point
into have been found and measured. Both formats are supported: the zip container (torch 1.6 and
later) and the stream of pickles that preceded it. Torch is not needed.
"""

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from common.errors import BadInput, require

DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


class _Storage(NamedTuple):
    kind: str
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


def _tensor(storage, offset, shape, strides, *gradient_args) -> _Tensor:
    """Stands in for torch._utils._rebuild_tensor_v2."""
    del gradient_args
    return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers, strings and the records above; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in DTYPES:
            return name
        raise BadInput(
            f"asks for {module}.{name}, which no weights file needs: it could run any program; "
            "use the safetensors file instead"
        )

    def persistent_load(self, pid: tuple) -> _Storage:
        tag, kind, key, *details = pid
        views = details[2:]  # in the older format: None, or a view of another storage
        if tag != "storage" or any(view is not None for view in views):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        return _Storage(kind, str(key))


def _load(file) -> Any:
    return _Unpickler(file).load()


def read(data: bytes, where: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a torch checkpoint.

    Args:
      data: the contents of the file.
      where: its name, for error messages.

    Returns:
      {name: array}, in the file's dtypes.

    Raises:
      BadInput: if it asks for anything but tensors, is damaged, or is not a torch checkpoint that
        maps names to tensors.
    """
    try:
        tensors, storage = (_zip if zipfile.is_zipfile(io.BytesIO(data)) else _stream)(data)
        require(isinstance(tensors, dict), "does not map names to tensors")
        others = [k for k, v in tensors.items() if not isinstance(v, _Tensor)]
        require(not others, f"{others[:1]} is not a tensor: only {{name: tensor}} can be read")
        return {str(name): _array(tensor, storage) for name, tensor in tensors.items()}
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise BadInput(f"{where}: damaged, or not a torch checkpoint ({reason})") from error


def _array(tensor: _Tensor, storage: Callable) -> np.ndarray:
    values = storage(tensor.storage)
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    last = tensor.offset + sum(
        (n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)
    )
    size = math.prod(tensor.shape)
    inside = size == 0 or last < len(values)
    if any(type(n) is not int or n < 0 for n in numbers) or size > len(values) or not inside:
        raise pickle.UnpicklingError("a tensor larger than its storage")
    strides = [s * values.itemsize for s in tensor.strides]
    view = np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides)
    return np.array(view, order="C")


def _zip(data: bytes) -> tuple[Any, Callable]:
    archive = zipfile.ZipFile(io.BytesIO(data))
    names = archive.namelist()
    root = next(name for name in names if name.endswith("/data.pkl")).removesuffix("data.pkl")
    if f"{root}byteorder" in names:
        require(archive.read(f"{root}byteorder") == b"little", "is from a big-endian machine")

    def storage(of: _Storage) -> np.ndarray:
        size = archive.getinfo(f"{root}data/{of.key}").file_size
        require(size <= len(data), "holds compressed tensors, which torch does not write")
        return np.frombuffer(archive.read(f"{root}data/{of.key}"), DTYPES[of.kind])

    return _load(archive.open(f"{root}data.pkl")), storage


def _stream(data: bytes) -> tuple[Any, Callable]:
    file = io.BytesIO(data)
    require(_load(file) == MAGIC and _load(file) == PROTOCOL, "is not a torch checkpoint")
    require(_load(file)["little_endian"] is True, "is from a big-endian machine")
    tensors, keys = _load(file), _load(file)
    kinds = {t.storage.key: t.storage.kind for t in tensors.values() if isinstance(t, _Tensor)}
    arrays = {}
    for key in keys:
        count = int(np.frombuffer(file.read(8), "<i8")[0])
        dtype = DTYPES[kinds[key]]
        arrays[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
    return tensors, lambda of: arrays[of.key]
