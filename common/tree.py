"""Parameter trees by path ('encoder/block_0/mlp/up/kernel'): regex tables, text tables, digests.

Sharding, weight decay, multipliers, freezing and partial loading all select parameters the same
way: by a table of (regex, value) rows, of which the first to match the full path applies.
"""

import math
import re
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common.errors import require

Rows = tuple[tuple[str, Any], ...]


def path_of(keys) -> str:
    """A jax key path as 'a/b/0/c'."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def flatten(tree) -> dict[str, Any]:
    """{path: leaf} of any pytree, in tree order."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_paths(function: Callable, tree, *rest):
    """`jax.tree.map` with the path as the first argument: function(path, leaf, …)."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, *leaves: function(path_of(keys), *leaves), tree, *rest
    )


def unflatten(flat: dict[str, Any]) -> dict:
    """Nested dicts from {'a/b': leaf}; the inverse of `flatten` for nested dicts."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def part(tree: dict, keep: Callable[[str], bool]) -> dict:
    """Nested dicts without the leaves at paths that `keep` does not want."""
    return unflatten({path: leaf for path, leaf in flatten(tree).items() if keep(path)})


def joined(tree, some: dict):
    """`tree` with the leaves that `some`, a `part` of such a tree, has in place of its own."""
    leaves = flatten(some)
    return map_paths(lambda path, leaf: leaves.get(path, leaf), tree)


def row_of(table: Rows, path: str) -> int | None:
    """The index of the first row whose regex matches all of `path`, or None."""
    return next((i for i, (regex, _) in enumerate(table) if re.fullmatch(regex, path)), None)


def lookup(table: Rows, path: str, default: Any = None) -> Any:
    """The value of the first row that matches `path`, or `default`."""
    row = row_of(table, path)
    return default if row is None else table[row][1]


def check_patterns(where: str, patterns: Iterable[str]) -> None:
    """Raises `BadInput` if one of `patterns` is not a regular expression."""
    for regex in patterns:
        try:
            re.compile(regex)
        except (re.error, OverflowError, RecursionError) as error:
            require(False, f"{where}: {regex!r} is not a regular expression: {error}")


def check_table(where: str, table: Rows, paths: Iterable[str], cover: Iterable[str] = ()) -> None:
    """Raises `BadInput` if a row of `table` is not the first match of any path, or a path in
    `cover` has no match."""
    paths = tuple(paths)
    check_patterns(where, (regex for regex, _ in table))
    used = {row_of(table, path) for path in paths}
    for i, (regex, _) in enumerate(table):
        require(
            i in used,
            f"{where}: row {regex!r} matches no parameter, or only those that rows above it match",
        )
    for path in cover:
        require(row_of(table, path) is not None, f"{where}: no row matches {path}")


def count(tree) -> int:
    """The number of elements in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def table_text(header: tuple[str, ...], rows: Iterable[tuple]) -> str:
    """Formats rows as an aligned text table with a header."""
    rows = [tuple(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, tuple("-" * w for w in widths), *rows]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in lines) + "\n"


# ----------------------------------------------------------------------------------------- digests


def mix(x):
    """A bijection of u32 in which any change flips half of the bits (the finaliser of
    MurmurHash3)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _words(x: jax.Array) -> list[jax.Array]:
    """The bits of `x` as u32 arrays of its shape: one, or two for 64-bit types."""
    if x.dtype == jnp.bool_:
        return [x.astype(jnp.uint32)]
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _words(x.real) + _words(x.imag)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    if x.dtype.itemsize < 8:
        return [bits.astype(jnp.uint32)]
    return [bits.astype(jnp.uint32), (bits >> 32).astype(jnp.uint32)]


def digest(x: jax.Array) -> jax.Array:
    """u32[]: sum over elements of mix(bits ^ mix(position)), modulo 2^32.

    A modular sum does not depend on order, so the result is the same for every sharding; the
    position makes swapped elements change it. A single flipped bit always changes it, since `mix`
    is a bijection.
    """
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        position += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride)
    total = jnp.uint32(0)
    for part, bits in enumerate(_words(x)):
        total += jnp.sum(mix(bits ^ mix(position + np.uint32(part * 0x9E3779B9))), dtype=jnp.uint32)
    return total


@jax.jit
def digests(tree) -> dict[str, jax.Array]:
    """{path: u32[]}: the digest of every array of `tree`."""
    return {path: digest(leaf) for path, leaf in flatten(tree).items()}


def hexdigest(tree) -> str:
    """The digest of a whole tree: 16 hexadecimal digits that change when any bit does."""
    total = 0
    for path, value in sorted(jax.device_get(digests(tree)).items()):
        word = int.from_bytes(path.encode(), "little") % (2**61 - 1)
        total = (total * 1_000_003 + word * 2**32 + int(value)) % (2**64 - 59)
    return f"{total:016x}"


def group_digests(leaf_digests: dict[str, int]) -> dict[str, str]:
    """Combines the digests of a TrainState's arrays, {path: u32}, by group: one per module of the
    parameters ("params/block_0/mlp/up"), and one for each other field."""
    groups: dict[str, int] = {}
    for path, value in leaf_digests.items():
        field, _, subpath = path.partition("/")
        name = path.rpartition("/")[0] if field == "params" and subpath else field
        groups[name] = zlib.crc32(f"{path} {int(value)}".encode(), groups.get(name, 0))
    return {name: f"{value:08x}" for name, value in groups.items() if name != "step"}
