"""Files of torch without torch: both formats, hostile and damaged ones."""

import os
import pickle
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
    for name in ("builtins eval", "torch load", "numpy.core.multiarray _reconstruct", "os system"):
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
