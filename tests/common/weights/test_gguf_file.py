"""GGUF files: every kind of tensor, metadata, and files that are damaged or not supported."""

import struct
import sys
import tracemalloc

import numpy as np
import pytest

from common.errors import BadInput
from common.weights import gguf_file, tensors

gguf = pytest.importorskip("gguf")
Kind = gguf.GGMLQuantizationType
SHAPES = {"cube": (2, 3, 256), "matrix": (5, 512), "row": (256,)}
METADATA = {
    "general.name": "naïve 🙂",
    "x.count": 3,
    "x.rate": 0.25,
    "x.flag": True,
    "x.list": [1, -2, 3],
    "x.names": ["a", "", "漢"],
}


def write(path, values: dict, metadata=METADATA):
    """Writes {name: (array of f32 or of a kind's bytes, kind)} and metadata."""
    writer = gguf.GGUFWriter(path, "llama")
    add = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    for key, value in metadata.items():
        getattr(writer, f"add_{add[type(value)]}")(key, value)
    for name, (x, kind) in values.items():
        x = gguf.quants.quantize(x, kind) if x.dtype == np.float32 else x
        writer.add_tensor(name, x, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def packed(kind, shape, random) -> np.ndarray:
    """Blocks of a kind, at random, but with small scales: these are f16, somewhere in a block."""
    blocks = random.integers(0, 256, gguf.quant_shape_to_byte_shape(shape, kind), np.uint8)
    blocks = blocks.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    for start in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(kind.name, (0, 2)):
        blocks[:, start : start + 2] = np.float16(0.01 + start / 1e4).view(np.uint16).tobytes()[0]
        blocks[:, start + 1] = 0x20
    return blocks.reshape(gguf.quant_shape_to_byte_shape(shape, kind))


@pytest.mark.parametrize("kind", gguf_file.KINDS)
def test_every_kind(kind, tmp_path):
    """As the package dequantizes it, in torch's order of axes, with an error of the kind's bits."""
    kind, random = Kind[kind], np.random.default_rng(0)
    quantizes = not kind.name.endswith("_K")
    values = {
        name: random.standard_normal(shape, np.float32)
        if quantizes
        else packed(kind, shape, random)
        for name, shape in SHAPES.items()
    }
    path = write(tmp_path / "x.gguf", {name: (x, kind) for name, x in values.items()})
    found, metadata = gguf_file.read(path)
    assert metadata == METADATA | {"general.architecture": "llama"}
    assert gguf_file.metadata(path) == metadata
    for name, shape in SHAPES.items():
        x, one = found[name], values[name]
        assert (x.dtype, x.shape) == (np.float32, shape)
        raw = gguf.quants.quantize(one, kind) if quantizes else one
        np.testing.assert_array_equal(x, gguf.quants.dequantize(raw, kind))
        assert np.isfinite(x).all()
        assert x.flags.owndata or x.base.flags.owndata  # not a view of the file
        if quantizes:
            bits = {"F32": 24, "F16": 11, "BF16": 8}.get(kind.name) or int(kind.name[1])
            np.testing.assert_allclose(x, one, atol=8 * 2.0**-bits)
    assert tensors.read(tmp_path).keys() == found.keys()


@pytest.mark.slow
def test_k_quants_are_those_of_transformers():
    """Two implementations of the bit layouts: the package's NumPy, and transformers' torch."""
    torch = pytest.importorskip("torch")
    dequant = pytest.importorskip("transformers.integrations.gguf.dequant")
    random = np.random.default_rng(1)
    for name in gguf_file.KINDS:
        kind = Kind[name]
        if name[0] == "Q" and name not in ("Q5_0", "Q5_1"):  # which it lacks
            blocks = packed(kind, (6, 512), random)
            theirs = dequant.dequantize(torch.from_numpy(blocks), int(kind))
            ours = gguf.quants.dequantize(blocks, kind)
            np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=1e-5, atol=1e-6)


def test_one_tensor_at_a_time(tmp_path):
    """Beside the result, memory is for one tensor: the file is mapped, not read."""
    one = np.ones((64, 1024), np.float32)
    path = write(tmp_path / "x.gguf", {f"x{i}": (one, Kind.Q8_0) for i in range(24)})
    tracemalloc.start()
    found, _ = gguf_file.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (len(found) + 6) * one.nbytes


def test_damage_is_told(tmp_path):
    x = np.ones((2, 32), np.float32), Kind.Q4_0
    path, bad = write(tmp_path / "x.gguf", {"tensor_a": x, "tensor_b": x}), tmp_path / "bad.gguf"
    bad.write_bytes(path.read_bytes().replace(b"tensor_b", b"tensor_a"))
    with pytest.raises(BadInput, match="tensor_a occurs twice"):
        gguf_file.read(bad)
    path = write(path, {"x": x})
    whole = path.read_bytes()
    for size in range(4, len(whole) - 32, 3):  # the writer fills the end
        bad.write_bytes(whole[:size])
        with pytest.raises(BadInput, match="truncated") as error:
            gguf_file.read(bad)
        assert "\n" not in str(error.value)
    random = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 3):
            damaged[at] = random.integers(256)
        bad.write_bytes(damaged)
        try:
            gguf_file.read(bad)
        except BadInput as error:
            assert str(error).startswith(f"{bad}: ")  # noqa: PT017
    count = struct.pack("<Q", 1 << 60)
    head = b"GGUF" + struct.pack("<I", 3)
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)
    for content, message in (
        (b"GGML" + whole[4:], "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + whole[8:], "GGUF version 1, and versions 2 and 3"),
        (b"GGUF" + struct.pack(">I", 3) + whole[8:], "big-endian"),
        (head + count + bytes(8), "truncated"),
        (head + bytes(8) + count, "truncated"),
        (head + bytes(8) + struct.pack("<Q", 1) + key + struct.pack("<I", 4) + count, "truncated"),
        (head + bytes(8) + struct.pack("<Q", 1) + key + struct.pack("<I", 9) + count, "array of v"),
        (whole.replace(b"general.name", b"general.nam\xff"), "not UTF-8"),
        (whole.replace(b"x.flag", b"x.rate"), "'x.rate' occurs twice"),
    ):
        bad.write_bytes(content)
        with pytest.raises(BadInput, match=message):
            gguf_file.read(bad)
    with pytest.raises(BadInput, match="is a folder, not a file"):
        gguf_file.read(tmp_path)


def test_values_of_another_tensor_are_not_read(tmp_path):
    x = np.ones((2, 32), np.float32)
    path = write(tmp_path / "x.gguf", {"a": (x, Kind.F32), "b": (2 * x, Kind.F32)})
    assert gguf_file.read(path)[0]["b"][0, 0] == 2
    raw, entry = path.read_bytes(), lambda at: b"b" + struct.pack("<IQQIQ", 2, 32, 2, Kind.F32, at)
    assert raw.count(entry(256)) == 1
    path.write_bytes(raw.replace(entry(256), entry(0)))
    with pytest.raises(BadInput, match=r"b begins at byte 0, and the tensors before it end at 256"):
        gguf_file.read(path)


def test_what_is_not_supported_is_named(tmp_path, monkeypatch):
    x = np.ones((2, 32), np.float32)
    for kind, values in ((Kind.I32, x.astype(np.int32)), (Kind.MXFP4, np.zeros((2, 17), np.uint8))):
        path = write(tmp_path / "x.gguf", {"a": (x, Kind.F32), "blk.0.b": (values, kind)})
        with pytest.raises(BadInput, match=rf"blk\.0\.b is {kind.name}, which is not supported"):
            gguf_file.read(path)
    path = write(tmp_path / "x.gguf", {"a": (x, Kind.F32)}, {"split.count": 3})
    with pytest.raises(BadInput, match=r"one of the 3 files of a model: merge them"):
        gguf_file.read(path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BadInput, match=r"pip install -e '\.\[gguf\]'"):
        gguf_file.read(path)
    assert gguf_file.metadata(path)["split.count"] == 3
