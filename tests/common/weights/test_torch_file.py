"""Files of torch without torch: both formats, hostile and damaged ones."""

import argparse
import collections
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest

from common.errors import BadInput
from common.weights import tensors, torch_file


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def attacks(folder, data: bytes):
    """A hostile pickle as every kind of file that holds one."""
    with zipfile.ZipFile(folder / "zip.bin", "w") as archive:
        archive.writestr("archive/data.pkl", data)
    (folder / "plain.bin").write_bytes(data)
    first = [torch_file.MAGIC, torch_file.PROTOCOL, {"little_endian": True}]
    (folder / "stream.bin").write_bytes(b"".join(map(pickle.dumps, first)) + data)
    return [folder / f"{name}.bin" for name in ("zip", "plain", "stream")]


def test_a_hostile_pickle_runs_nothing(tmp_path):
    mark = tmp_path / "mark"
    data = pickle.dumps({"weight": Attack(f"touch {mark}")})
    pickle.loads(data)
    assert mark.exists()  # it does work
    mark.unlink()
    for file in attacks(tmp_path, data):
        with pytest.raises(BadInput, match=r"asks for (posix|nt)\.system") as error:
            tensors.read(file)
        assert "\n" not in str(error.value)
    for name in ("builtins eval", "torch load", "numpy.testing runstring", "os system"):
        module, function = name.split()
        for file in attacks(tmp_path, f"c{module}\n{function}\n(S'1'\ntR.".encode()):
            with pytest.raises(BadInput, match=f"asks for {module}.{function}"):
                tensors.read(file)
    assert not mark.exists()


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps(3), pickle.dumps({"a": 1})])
def test_what_is_no_torch_file(data, tmp_path):
    for file in attacks(tmp_path, data):
        with pytest.raises(BadInput, match=rf"{file.name}: ") as error:
            tensors.read(file)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("new", [True, False])
def test_torch_files(new, tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    arrays = {
        "float": base,
        "transposed": base.T,
        "part": base[1:3, 2:5],
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "half": torch.tensor([1.5], dtype=torch.float16),
        "long": torch.tensor([[1, 2]]),
        "bool": torch.tensor([True, False]),
    }
    state = torch.nn.Linear(2, 3).state_dict()  # an ordered dict with attributes
    state.update(arrays)
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=new)
    for found in tensors.read(file), tensors.read(tmp_path):
        assert found.keys() == state.keys()
        for name, x in state.items():
            wide = x.float() if x.dtype == torch.bfloat16 else x
            assert str(found[name].dtype) == str(x.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(found[name].astype(wide.numpy().dtype), wide.numpy())
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"pytorch_model\.bin: damaged"):
        tensors.read(file)


@pytest.mark.parametrize("new", [True, False])
def test_a_tensor_does_not_reach_beyond_its_storage(new, tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "pytorch_model.bin"
    torch.save({"x": torch.zeros(300, 7)}, file, _use_new_zipfile_serialization=new)
    shape = b"M\x2c\x01K\x07\x86"  # (300, 7)
    rewritten = tmp_path / "rewritten.bin"
    for bad in (b"M\x2d\x01K\x07\x86", b"M\x2c\x01J\xff\xff\xff\xff\x86", b"M\x2c\x01)\x86"):
        if new:
            with zipfile.ZipFile(file) as old, zipfile.ZipFile(rewritten, "w") as archive:
                for name in old.namelist():
                    data = old.read(name)
                    assert name.endswith("data.pkl") <= (shape in data)
                    archive.writestr(name, data.replace(shape, bad))
        else:
            assert shape in file.read_bytes()
            rewritten.write_bytes(file.read_bytes().replace(shape, bad))
        with pytest.raises(BadInput, match="rewritten"):
            tensors.read(rewritten)


# -------------------------------------------------------------------------- checkpoints of training


def saved(torch, folder, content, new: bool):
    file = folder / "pytorch_model.bin"
    torch.save(content, file, _use_new_zipfile_serialization=new)
    return file


@pytest.mark.parametrize("new", [True, False])
def test_checkpoints_as_people_save_them(new, tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.BatchNorm1d(3)
    state = layer.state_dict()
    assert {x.ndim for x in state.values()} == {0, 1}
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.randn(3), "exp_avg_sq": torch.ones(3)}
    optimizer = {"state": {0: moments, 1: moments}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    marked = torch.nn.Parameter(torch.randn(3))
    marked.sharding = "rows"  # a Parameter with a state of its own
    around = {
        "optimizer": optimizer,
        "optimizers": [optimizer],
        "args": argparse.Namespace(lr=1.0, path=pathlib.Path("runs")),
        "counts": collections.defaultdict(int, a=1),
        "best": np.float64(0.5),
        "random": {"numpy": np.random.RandomState(0).get_state(), "torch": torch.get_rng_state()},
        "loss": torch.tensor(0.5),
        "shape": torch.Size([3]),
        "kinds": {1, "two", (3.0, None)},
        "scaler": {"scale": 65536.0, "history": [1, 2]},
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "bytes": b"abc",
    }
    parameters = dict(layer.named_parameters())
    ema = torch.nn.Buffer(torch.randn(3))
    prefixed = lambda prefix: {f"{prefix}{name}": x for name, x in state.items()}
    for expected, content in (
        (state, state),
        (state, prefixed("module.")),
        (state, prefixed("_orig_mod.")),
        (state, prefixed("module._orig_mod.")),
        (state, prefixed("_orig_mod.module.")),
        (prefixed("module.") | {"x": ema}, prefixed("module.") | {"x": ema}),
        (parameters, parameters),
        ({"x": marked}, {"x": marked}),
        (state, {"model": state} | around),
        (state, {"state_dict": prefixed("module."), "epoch": 1}),
        (state, {"checkpoint": {"model_state_dict": state, "step": 3} | around}),
        (state, {"model": state, "same": state}),
        (state, state | {"epoch": 3, "name": "x", "none": None}),
        ({"temperature": state["num_batches_tracked"]},) * 2,
    ):
        found = tensors.read(saved(torch, tmp_path, content, new))
        assert found.keys() == expected.keys()
        for name, x in expected.items():
            np.testing.assert_array_equal(found[name], x.detach().numpy())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of old kinds
@pytest.mark.parametrize("new", [True, False])
def test_checkpoints_that_are_not_read_say_why(new, tmp_path):
    torch = pytest.importorskip("torch")
    x = torch.ones(2, 2)
    quantized = torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)
    for content, message in (
        (
            {"model": {"a": x}, "model_ema": {"a": x}},
            r"several dicts of tensors \(model, model_ema",
        ),
        ({"a": x, "ema": {"a": x}}, r"several dicts of tensors \(the file itself, ema\)"),
        ({"a": [x]}, r"holds no tensors by name, only \['a'\]"),
        ({"a": x, "b": [x]}, "'b' is a list of tensors, not a tensor"),
        ({"a": x, 3: x}, "a tensor is named 3, which is not a string"),
        ([x], "holds a list, not tensors by name"),
        (x, "holds a single tensor, not tensors by name"),
        ({"a": x, "b": x.to_sparse()}, "b is a sparse tensor: call .to_dense"),
        ({"a": x, "b": quantized}, "b is a quantized tensor: call .dequantize"),
        ({"b": x.to(torch.complex64)}, "b is of ComplexFloat, which is not supported"),
        ({"b": x.to(torch.float8_e4m3fn)}, r"b is of torch\.float8_e4m3fn, which is not supported"),
        ({"b": x.to(torch.complex64).conj().imag}, "b is a lazy negative"),
        ({"b": x.to("meta")}, "b is on the meta device"),
        ({"a": x, "b": np.ones(3)}, "b is a NumPy array: convert it with torch.from_numpy"),
        (torch.nn.Linear(2, 2), r"asks for torch\.nn\.modules\.linear\.Linear, which is neither"),
    ):
        file = saved(torch, tmp_path, content, new)
        with pytest.raises(BadInput, match=message) as error:
            tensors.read(file)
        assert "\n" not in str(error.value)
    for unread in (x.to_sparse(), quantized, x.to(torch.complex64), x.to(torch.float8_e4m3fn)):
        content = {"model": {"a": x}, "optimizer": {"state": {0: unread}, "param_groups": []}}
        np.testing.assert_array_equal(tensors.read(saved(torch, tmp_path, content, new))["a"], x)
    script = torch.jit.script(torch.nn.Linear(2, 2))
    script.save(tmp_path / "script.pt")
    with pytest.raises(BadInput, match="code of a TorchScript program"):
        tensors.read(tmp_path / "script.pt")


def test_a_pickle_changes_nothing_that_another_sees(tmp_path):
    """Its names stand for new objects, whose attributes it may set."""
    for name in ("torch._utils\n_rebuild_tensor_v2", "argparse\nNamespace", "collections\nCounter"):
        for file in attacks(tmp_path, f"c{name}\n(N(dS'__name__'\nS'x'\nstb.".encode()):
            with pytest.raises(BadInput):
                tensors.read(file)
    assert torch_file._tensor.__name__ == "_tensor"
    assert torch_file._Inert.__name__ == "_Inert"
    for file in attacks(
        tmp_path, b"\x80\x02}r" + struct.pack("<I", 2**31) + b"."
    ):  # 32 GB of places
        with pytest.raises(BadInput, match="a number beyond the file"):
            tensors.read(file)
    loop = {"a": 1}
    loop["self"] = loop
    for file in attacks(tmp_path, pickle.dumps(loop)):
        with pytest.raises(BadInput, match=r"\.bin: "):
            tensors.read(file)
