"""Where arrays live, and what a mesh refuses."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from common.devices import mesh
from common.errors import BadInput

PARAMS = {
    "up": {
        "kernel": jax.ShapeDtypeStruct((8, 6), "float32"),
        "bias": jax.ShapeDtypeStruct((6,), "float32"),
    },
}
TABLE = ((r"up/kernel", ("embed", "mlp")),)


def test_sizes_must_fit_the_devices():
    assert dict(mesh.make_layout(data=-1, tensor=2).mesh.shape) == {
        "data": 4,
        "fsdp": 1,
        "tensor": 2,
    }
    for sizes in ({"data": 3}, {"data": -1, "fsdp": -1}, {"data": 0}, {"data": 16}, {"tensor": 3}):
        with pytest.raises(BadInput, match=r"config\.mesh"):
            mesh.make_layout(**sizes)
    with pytest.raises(BadInput, match="'batch' names 'dta'"):
        mesh.make_layout(rules=(("batch", "dta"),))


def test_parameters_go_where_the_table_says():
    layout = mesh.make_layout(data=2, fsdp=2, tensor=2)
    placed = mesh.shardings(layout, TABLE, PARAMS)
    assert placed["up"]["kernel"].spec == P(("fsdp",), ("tensor",))
    assert placed["up"]["bias"].spec == P(None)


def test_a_dimension_that_does_not_divide_is_replicated_and_logged(caplog):
    layout = mesh.make_layout(data=1, fsdp=1, tensor=8)
    with caplog.at_level("INFO"):
        placed = mesh.shardings(layout, TABLE, PARAMS)
    assert placed["up"]["kernel"].spec == P(None, None)
    assert "up/kernel: mlp=6 is not divisible by 8" in caplog.text


def test_a_row_of_another_rank_is_an_error():
    with pytest.raises(BadInput, match="its row names"):
        mesh.shardings(mesh.make_layout(), ((r"up/kernel", ("embed",)),), PARAMS)


def test_optimizer_state_follows_its_parameter():
    layout = mesh.make_layout(data=2, fsdp=2, tensor=2)
    placed = mesh.shardings(layout, TABLE, PARAMS)
    count, factor = jax.ShapeDtypeStruct((), "int32"), jax.ShapeDtypeStruct((8,), "float32")
    state = ({"mu": PARAMS, "count": count}, {"factored": {"up": {"kernel": factor}}})
    found = mesh.follow(layout, state, PARAMS, placed)
    assert found[0]["mu"]["up"]["kernel"].spec == P(("fsdp",), ("tensor",))
    assert found[0]["count"].spec == found[1]["factored"]["up"]["kernel"].spec == P()


def test_batches_must_divide():
    layout = mesh.make_layout(data=4, fsdp=2)
    mesh.check_batch(layout, 16, "here")
    with pytest.raises(BadInput, match="36 examples cannot be divided over 8 devices; take 32"):
        mesh.check_batch(layout, 36, "here")


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8), (4, 1, 2)])
def test_local_rows_make_the_global_batch(sizes):
    layout = mesh.make_layout(**dict(zip(mesh.AXES, sizes, strict=True)))
    rows = mesh.local_rows(layout, 16)
    assert rows.tolist() == list(range(16))
    x = np.arange(32).reshape(16, 2)
    made = mesh.to_global(layout, 16, {"x": x})["x"]
    np.testing.assert_array_equal(made, x)
    assert made.sharding == mesh.batch_sharding(layout)
