"""What cannot fit is refused by arithmetic."""

import jax
import numpy as np
import pytest

from common.devices import memory
from common.errors import BadInput


def struct(*shape, over=("data",)):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*over))
    return jax.ShapeDtypeStruct(shape, np.float32, sharding=place)


def test_bytes_are_those_of_one_device():
    assert memory.local_bytes({"a": struct(16, 3), "b": struct(16, 3, over=())}) == 4 * (6 + 48)
    assert memory.local_bytes(struct(8 * 10**9, 10**12)) == 4 * 10**21


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (9e14, "818.5 TiB"), (2e20, "1.776e+05 PiB")]
)
def test_bytes_are_spelled(count, text):
    assert memory.spelled_bytes(count) == text


def test_what_exceeds_the_memory_is_refused_with_its_bytes():
    devices = jax.devices()
    memory.require_fits({"x": struct(8, 1000)}, devices, "the state", "config.model")
    with pytest.raises(BadInput, match=r"the state takes .* PiB, and this machine has .*GiB: make"):
        memory.require_fits({"x": struct(8 * 10**9, 10**9)}, devices, "the state", "config.model")


def test_a_device_says_what_it_has():
    class Chip:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 100}

    with pytest.raises(BadInput, match="takes 128 B, and the device has 100 B"):
        memory.require_fits({"x": struct(8, 32)}, [Chip()], "the state", "config.model")


def test_a_full_place_is_named(tmp_path, monkeypatch):
    assert memory.full_place("/nowhere", str(tmp_path)) is None
    none = memory.shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda place: none)
    assert memory.full_place(str(tmp_path)) == str(tmp_path)
