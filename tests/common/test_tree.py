"""Paths, tables and digests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from common import tree
from common.devices import mesh
from common.errors import BadInput

TREE = {"a": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, "b": {"kernel": np.zeros((3, 1))}}


def test_flatten_and_unflatten_are_inverse():
    flat = tree.flatten(TREE)
    assert list(flat) == ["a/bias", "a/kernel", "b/kernel"]
    assert jax.tree.structure(tree.unflatten(flat)) == jax.tree.structure(TREE)


def test_the_first_row_that_matches_the_whole_path_counts():
    table = ((r"a/.*", 1), (r".*kernel", 2))
    found = {path: tree.lookup(table, path, 0) for path in tree.flatten(TREE)}
    assert found == {"a/bias": 1, "a/kernel": 1, "b/kernel": 2}
    assert tree.lookup((("kernel", 1),), "a/kernel") is None


def test_tables_that_miss_are_errors():
    paths = tree.flatten(TREE)
    with pytest.raises(BadInput, match=r"'c/\.\*' matches no parameter"):
        tree.check_table("here", ((r"c/.*", 1),), paths)
    with pytest.raises(BadInput, match="only those that rows above it match"):
        tree.check_table("here", ((r".*", 1), (r"a/.*", 2)), paths)
    with pytest.raises(BadInput, match="no row matches b/kernel"):
        tree.check_table("here", ((r"a/.*", 1),), paths, cover=["b/kernel"])
    with pytest.raises(BadInput, match="not a regular expression"):
        tree.check_table("here", (("(", 1),), paths)


DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8", "int8", "bool", "complex64", "uint32"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_digest_sees_every_flipped_bit_and_every_exchange(dtype):
    rng = np.random.default_rng(0)
    x = np.asarray(jnp.asarray(rng.integers(0, 2, (3, 5)), dtype))
    base = int(tree.digest(jnp.asarray(x)))
    raw = x.tobytes()
    for position in rng.integers(0, len(raw), 20):
        for bit in [0] if dtype == "bool" else range(8):
            changed = bytearray(raw)
            changed[position] ^= 1 << bit
            other = np.frombuffer(bytes(changed), x.dtype).reshape(x.shape)
            assert int(tree.digest(jnp.asarray(other))) != base
    if len(np.unique(x.view(np.uint8))) > 1:
        assert int(tree.digest(jnp.asarray(x[::-1]))) != base


def test_a_digest_does_not_know_the_sharding():
    x = jnp.arange(64, dtype=jnp.float32).reshape(8, 8)
    layout = mesh.make_layout(data=4, fsdp=2)
    for spec in (PartitionSpec("data"), PartitionSpec(None, "data"), PartitionSpec("fsdp", "data")):
        placed = jax.device_put(x, NamedSharding(layout.mesh, spec))
        assert int(jax.jit(tree.digest)(placed)) == int(tree.digest(x))


def test_the_hexdigest_sees_names():
    x = jnp.ones(3)
    assert tree.hexdigest({"a": x}) != tree.hexdigest({"b": x})
    assert tree.hexdigest({"a": x, "b": x * 2}) != tree.hexdigest({"a": x * 2, "b": x})
