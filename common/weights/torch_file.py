"""Reads the tensors of a torch checkpoint (.bin, .pt, .pth, .ckpt) without executing its contents.

The file is a pickle, and a pickle may call anything. This one may name only tensors, storage types
and plain data; it builds records, which become arrays only once the storages they point into have
been found and measured. Both formats are supported: the zip container (torch 1.6 and later) and the
stream of pickles that preceded it. Torch is not needed.

A checkpoint of training holds one dict of tensors among other entries: that dict is read, and
numbers, texts, arguments and the state of an optimizer are left out.
"""

import collections
import functools
import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from common.errors import BadInput, brief, require

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
# Bytes per element of storages that are passed over, but whose tensors are refused.
OTHER_BYTES = {
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "UntypedStorage": 1,
}
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
PUTS = ("PUT", "BINPUT", "LONG_BINPUT")  # opcodes that number an object
SAVE = "save model.state_dict() alone, or as safetensors"

# ------------------------------------------------------------------------------ stand-ins of names


class _Storage(NamedTuple):
    kind: str
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


class _Unreadable:
    """A tensor that is refused, if its dict is the one to read, for this reason."""

    def __init__(self, reason: str):
        self.reason = reason

    def __setstate__(self, state):
        del state


class _Inert:
    """Data that is never a weight, such as arguments and random states; its contents are dropped.

    Each name in a file has a subclass of its own, so that no file can change what another sees.
    """

    def __init__(self, *args, **kwargs):
        del args, kwargs

    def __setstate__(self, state):
        del state


NUMPY = "a NumPy array: convert it with torch.from_numpy before saving it"
UNREADABLE = {
    "_rebuild_sparse_tensor": "a sparse tensor: call .to_dense() before saving it",
    "_rebuild_sparse_csr_tensor": "a sparse tensor: call .to_dense() before saving it",
    "_rebuild_qtensor": "a quantized tensor: call .dequantize() before saving it",
    "_rebuild_nested_tensor": "a nested tensor: save its parts",
    "_rebuild_meta_tensor_no_storage": "on the meta device: it has no values",
    "_rebuild_wrapper_subclass": "of a subclass of Tensor: convert it before saving it",
}
PLAIN = {
    "collections.OrderedDict": collections.OrderedDict,
    "collections.Counter": dict,
    "torch.Size": tuple,
    **{f"{module}.dict": dict for module in ("builtins", "__builtin__")},
    **{f"{module}.set": set for module in ("builtins", "__builtin__")},
    **{f"{module}.frozenset": frozenset for module in ("builtins", "__builtin__")},
}
INERT = re.compile(
    r"argparse\.Namespace|_codecs\.encode"
    r"|(builtins|__builtin__)\.(bool|bytearray|complex|float|int|list|long|slice|str|tuple)"
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path|datetime\.\w+"
    r"|numpy\.(dtype|ndarray|_?core\.multiarray\.scalar)"
    r"|torch\.(Tensor|device|(b?float|complex|q?u?int)\d\w*|bool|per_(tensor|channel)_\w+)"
    r"|torch\.nn\.parameter\.(Parameter|Buffer)|torch\.serialization\._get_layout"
)


def _tensor(storage, offset, shape, strides, grad=None, hooks=None, metadata=None):
    """Stands in for torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    del grad, hooks
    if metadata and any(metadata.values()):  # the bits of a lazy view
        return _Unreadable("a lazy negative or conjugate: call .resolve_neg() and .resolve_conj()")
    return _Tensor(storage, offset, shape, strides)


def _typed_tensor(storage, offset, shape, strides, grad, hooks, dtype, metadata=None):
    """Stands in for torch._utils._rebuild_tensor_v3: dtypes that have no storage type."""
    del storage, offset, shape, strides, grad, hooks, metadata
    return _Unreadable(f"of {dtype.__name__}, which is not supported: convert it to float32")


def _parameter(data, grad, hooks, state=None):
    """Stands in for torch._utils._rebuild_parameter and _rebuild_parameter_with_state."""
    del grad, hooks, state
    return data


def _of_type(rebuild, kind, args, state):
    """Stands in for torch._tensor._rebuild_from_type_v2; `rebuild` is another stand-in."""
    del kind, state
    return rebuild(*args)


def _defaultdict(*args) -> dict:
    del args
    return {}


CALLS = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "collections.defaultdict": _defaultdict,
}


class _Unpickler(pickle.Unpickler):
    """Builds plain data and the records above; refuses everything else."""

    def __init__(self, file):
        super().__init__(file)
        self.kinds = {}  # key of a storage -> its type

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path in PLAIN:
            return PLAIN[path]
        if path in CALLS:
            # A new object each time, since a pickle may set attributes of what it names.
            return functools.partial(CALLS[path])
        if module == "torch._utils" and name in UNREADABLE:
            return lambda *args: _Unreadable(UNREADABLE[name])
        if re.fullmatch(r"numpy\._?core\.multiarray\._reconstruct", path):
            return lambda *args: _Unreadable(NUMPY)
        if module in ("torch", "torch.storage") and name in DTYPES.keys() | OTHER_BYTES.keys():
            return name
        if INERT.fullmatch(path):
            return type(path, (_Inert,), {})
        program = module.split(".")[0] == "__torch__"
        raise BadInput(
            f"asks for {path}, which is "
            + ("code of a TorchScript program" if program else "neither a tensor nor plain data")
            + f" and could run anything, so the file is not read; {SAVE}"
        )

    def persistent_load(self, pid: tuple) -> _Storage:
        tag, kind, key, *details = pid
        views = details[2:]  # in the older format: None, or a view of another storage
        if tag != "storage":
            raise pickle.UnpicklingError("a storage of an unknown kind")
        old = any(view is not None for view in views)
        require(not old, "holds views of storages, as torch before 0.4 wrote: save it again")
        self.kinds[str(key)] = kind
        return _Storage(kind, str(key))


def _unpickler(file) -> _Unpickler:
    """An unpickler of the next pickle, if that numbers no object beyond its bytes: the library
    allocates as many places as a damaged number states."""
    start = file.tell()
    highest = max(
        (int(number) for code, number, _ in pickletools.genops(file) if code.name in PUTS),
        default=0,
    )
    if highest > file.tell() - start:
        raise pickle.UnpicklingError("an object with a number beyond the file")
    file.seek(start)
    return _Unpickler(file)


def _load(file) -> Any:
    return _unpickler(file).load()


# -------------------------------------------------------------------------------------------- read


def read(data: bytes, where: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a torch checkpoint: of its one dict of tensors, wherever that is.

    Args:
      data: the contents of the file.
      where: its name, for error messages.

    Returns:
      {name: array}, in the file's dtypes.

    Raises:
      BadInput: if it asks for anything but tensors and plain data, is damaged, holds no dict of
        tensors or several, or one of the tensors is sparse, quantized or of an unsupported dtype.
    """
    try:
        root, storage = (_zip if zipfile.is_zipfile(io.BytesIO(data)) else _stream)(data)
        return {name: _array(name, x, storage) for name, x in _weights(root).items()}
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise BadInput(f"{where}: damaged, or not a torch checkpoint ({reason})") from error


def _weights(root: Any) -> dict[str, Any]:
    """The tensors of the one dict of tensors in a checkpoint."""
    kind = "single tensor" if _is_tensor(root) else type(root).__name__
    require(isinstance(root, dict), f"holds a {kind}, not tensors by name; {SAVE}")
    found = list(_dicts(root, "", set(), _substantial))
    found = found or list(_dicts(root, "", set(), _is_tensor))
    require(
        bool(found),
        f"holds no tensors by name, only {brief(list(map(str, root))[:8])}; {SAVE}",
    )
    places = [place or "the file itself" for place, _ in found]
    require(
        len(found) == 1,
        f"holds several dicts of tensors ({', '.join(places[:8])}); save the one to use alone",
    )
    weights = {}
    for name, value in found[0][1].items():
        if _is_tensor(value):
            require(type(name) is str, f"a tensor is named {brief(name)}, which is not a string")
            weights[name] = value
        else:
            require(
                not _holds_tensors(value, set()),
                f"{brief(name)} is a {type(value).__name__} of tensors, not a tensor; {SAVE}",
            )
    return weights


def _is_tensor(value: Any) -> bool:
    return isinstance(value, _Tensor | _Unreadable)


def _substantial(value: Any) -> bool:
    """Whether a value is a tensor other than a loss, a counter or a generator's state."""
    if isinstance(value, _Tensor):
        return math.prod(value.shape) > 1 and value.storage.kind != "ByteStorage"
    return isinstance(value, _Unreadable) and value.reason != NUMPY


def _dicts(node: dict, place: str, seen: set, counts: Callable) -> Iterator[tuple[str, dict]]:
    """(place, dict) of each dict, except an optimizer's, with a value that `counts`."""
    if id(node) in seen or {"state", "param_groups"} <= node.keys():
        return
    seen.add(id(node))
    if any(counts(value) for value in node.values()):
        yield place, node
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _dicts(value, f"{place}.{key}".lstrip("."), seen, counts)


def _holds_tensors(value: Any, seen: set) -> bool:
    if _is_tensor(value):
        return True
    if not isinstance(value, dict | list | tuple | set | frozenset) or id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, dict) and {"state", "param_groups"} <= value.keys():
        return False
    return any(
        _holds_tensors(x, seen) for x in (value.values() if hasattr(value, "keys") else value)
    )


def _array(name: str, tensor: _Tensor | _Unreadable, storage: Callable) -> np.ndarray:
    require(isinstance(tensor, _Tensor), f"{name} is {getattr(tensor, 'reason', '')}")
    kind = tensor.storage.kind
    require(kind in DTYPES, f"{name} is of {kind.removesuffix('Storage')}, which is not supported")
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
    pickles = [name for name in names if name.endswith("/data.pkl")]
    require(bool(pickles), "is a zip file without a data.pkl, so not a torch checkpoint")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in names:
        require(archive.read(f"{root}byteorder") == b"little", "is from a big-endian machine")

    def contents(name: str) -> bytes:
        size = archive.getinfo(f"{root}{name}").file_size
        require(size <= len(data), "holds compressed tensors, which torch does not write")
        return archive.read(f"{root}{name}")

    def storage(of: _Storage) -> np.ndarray:
        return np.frombuffer(contents(f"data/{of.key}"), DTYPES[of.kind])

    return _load(io.BytesIO(contents("data.pkl"))), storage


def _stream(data: bytes) -> tuple[Any, Callable]:
    require(not data.startswith(b"PK\3\4"), "damaged: a zip file whose end is missing")
    file = io.BytesIO(data)
    require(_load(file) == MAGIC and _load(file) == PROTOCOL, "is not a torch checkpoint")
    require(_load(file)["little_endian"] is True, "is from a big-endian machine")
    unpickler = _unpickler(file)
    root, keys, places = unpickler.load(), _load(file), {}
    for key in keys:
        kind = unpickler.kinds[key]
        size = DTYPES[kind].itemsize if kind in DTYPES else OTHER_BYTES[kind]
        count = int(np.frombuffer(file.read(8), "<i8")[0])
        places[key] = file.tell(), count
        require(
            0 <= count * size <= len(data) - file.tell(),
            f"damaged: a storage of {count:,} numbers goes beyond the end of the file",
        )
        file.seek(count * size, io.SEEK_CUR)

    def storage(of: _Storage) -> np.ndarray:
        start, count = places[of.key]
        return np.frombuffer(data, DTYPES[of.kind], count, start)

    return root, storage
