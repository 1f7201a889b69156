"""Reads GGUF, the file of llama.cpp: metadata by key, and tensors by name, dequantized to f32.

    tensors, metadata = gguf_file.read("model.Q4_K_M.gguf")

The header is parsed here, with every length checked against the file: the `gguf` package's own
reader makes an array of each token of a vocabulary, and loops over whatever count a damaged file
states. The package (the extra `gguf`) dequantizes. The format is described in ggml's docs/gguf.md.

Does not belong here: the meaning of keys and names, which is `lm.gguf`'s.
"""

import math
import mmap
import struct
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from common import inputs
from common.errors import BadInput, brief, require

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9  # the other types of values
ALIGNMENT = 32  # of the values, unless general.alignment differs
MOST_AXES = 4
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
KINDS += ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


class _Info(NamedTuple):
    """A tensor's entry in the header; `start` counts from the first tensor's first byte."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


class _Cursor:
    """A place in a file's bytes, which moves on as values are read."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def skip(self, count: int) -> int:
        """Moves on by `count` bytes. Returns where they begin."""
        start, self.at = self.at, self.at + count
        size = len(self.data)
        require(self.at <= size, f"truncated or damaged: its header goes beyond its {size:,} bytes")
        return start

    def numbers(self, code: str, count: int = 1) -> tuple:
        start = self.skip(count * struct.calcsize(f"<{code}"))
        return struct.unpack_from(f"<{count}{code}", self.data, start)

    def text(self) -> str:
        (length,) = self.numbers("Q")
        start = self.skip(length)
        return self.data[start : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.numbers(SCALARS[kind])[0]
        if kind == STRING:
            return self.text()
        require(kind == ARRAY, f"damaged: a value of the unknown type {kind}")
        (kind,), (count,) = self.numbers("I"), self.numbers("Q")
        if kind in SCALARS:
            return list(self.numbers(SCALARS[kind], count))
        require(kind == STRING, f"holds an array of values of type {kind}, which is not supported")
        return [self.text() for _ in range(count)]


def metadata(path: epath.PathLike) -> dict[str, Any]:
    """The metadata of a GGUF file: {key: bool, int, float, str or a list of one of these}.

    Does not need the extra `gguf`, and reads no tensor.

    Raises:
      BadInput: if it is not a GGUF file of version 2 or 3, or its header is damaged.
    """
    return _header(path)[1]


def read(path: epath.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a GGUF file: ({name: f32 array}, metadata), under the file's own names.

    Axes are in torch's order: the file lists them reversed, so a matrix has its outputs as rows.
    One tensor at a time is dequantized from the mapped file.

    Raises:
      BadInput: as `metadata`; if the extra is missing, a tensor is of a kind other than `KINDS`, or
        reaches beyond the file, or the file is one of several of a split model.
    """
    data, metadata, infos, start = _header(path)
    alignment = metadata.get("general.alignment", ALIGNMENT)
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
    except ImportError as error:
        raise BadInput(
            f"{path}: GGUF tensors need gguf, which is missing: pip install -e '.[gguf]'"
        ) from error
    files = metadata.get("split.count", 1)
    require(
        files in (0, 1),
        f"{path}: is one of the {brief(files)} files of a model: merge them with llama.cpp's "
        "llama-gguf-split --merge",
    )
    names = {kind.value: kind.name for kind in GGMLQuantizationType}
    tensors, place = {}, 0
    for name, shape, kind, offset in infos:
        spelled = names.get(kind, f"unknown kind {kind}")
        require(
            spelled in KINDS,
            f"{path}: {name} is {spelled}, which is not supported; use a file of one of "
            f"{', '.join(KINDS)}",
        )
        require(name not in tensors, f"{path}: damaged: {name} occurs twice")
        require(0 not in shape, f"{path}: damaged: {name} is of shape {list(shape)}")
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        width = shape[-1] if shape else 1
        require(
            width % block == 0,
            f"{path}: damaged: {name} has rows of {width:,}, not of blocks of {block} ({spelled})",
        )
        rows, row_bytes = math.prod(shape[:-1]), width // block * block_bytes
        end = start + offset + rows * row_bytes
        require(  # or else its values may be those of another
            offset == place,
            f"{path}: damaged: {name} begins at byte {offset:,}, and the tensors before it end at "
            f"{place:,}",
        )
        place += -(-rows * row_bytes // alignment) * alignment
        require(
            end <= len(data),
            f"{path}: truncated: {name} ends at byte {end:,} of a file of {len(data):,}; fetch it "
            "again",
        )
        packed = np.frombuffer(data, np.uint8, rows * row_bytes, start + offset)
        values = quants.dequantize(packed.reshape(rows, row_bytes), GGMLQuantizationType(kind))
        # F32 is a view of the file until it is copied.
        tensors[name] = np.array(values, np.float32, copy=spelled == "F32" or None).reshape(shape)
    return tensors, metadata


def _header(path: epath.PathLike) -> tuple[mmap.mmap, dict[str, Any], list[_Info], int]:
    """(bytes, metadata, entries of the tensors, where the first tensor begins)."""
    require("://" not in str(path), f"{path}: is mapped into memory: copy it to a local disk")
    inputs.file("", path)
    with open(path, "rb") as file:
        first = file.read(64)
        wrong = inputs.impostor(first)
        require(wrong is None, f"{path}: {wrong}")
        require(first.startswith(MAGIC), f"{path}: not a GGUF file: it does not begin with GGUF")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return data, *_parsed(_Cursor(data))
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: damaged: a text in its header is not UTF-8") from error


def _parsed(cursor: _Cursor) -> tuple[dict[str, Any], list[_Info], int]:
    cursor.skip(len(MAGIC))
    (version,) = cursor.numbers("I")
    require(version & 0xFFFF != 0, "is from a big-endian machine")
    require(version in VERSIONS, f"is GGUF version {version}, and versions 2 and 3 are supported")
    tensors, pairs = cursor.numbers("Q", 2)
    metadata = {}
    for _ in range(pairs):
        key = cursor.text()
        require(key not in metadata, f"damaged: {brief(key)} occurs twice")
        metadata[key] = cursor.value(*cursor.numbers("I"))
    infos = []
    for _ in range(tensors):
        name = cursor.text()
        (axes,) = cursor.numbers("I")
        require(axes <= MOST_AXES, f"damaged: {brief(name)} has {axes} axes")
        shape = cursor.numbers("Q", axes)[::-1]
        infos.append(_Info(name, shape, *cursor.numbers("I"), *cursor.numbers("Q")))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    require(
        type(alignment) is int and alignment > 0,
        f"damaged: general.alignment is {brief(alignment)}, not a positive size",
    )
    return metadata, infos, -(-cursor.at // alignment) * alignment
