"""The device mesh, with axes data, fsdp and tensor; array shardings; host rows to global arrays.

Each model has a table of logical names (`embed`, `mlp`, …) for the dimensions of its parameters;
rules in the config map logical names to mesh axes. The global batch is split over `data` and
`fsdp`.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from common import tree
from common.errors import require
from common.task import Table

AXES = ("data", "fsdp", "tensor")
Axes = str | tuple[str, ...]

RULES: tuple[tuple[str, Axes], ...] = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
)


class Layout(NamedTuple):
    """A mesh and the rules {logical name: mesh axes} that map arrays onto it."""

    mesh: jax.sharding.Mesh
    rules: dict[str, tuple[str, ...]]


def make_layout(
    devices=None,
    *,
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    rules: tuple[tuple[str, str | tuple[str, ...]], ...] = RULES,
) -> Layout:
    """Lays out devices as data x fsdp x tensor; one axis may be -1, for all remaining devices.

    Args:
      devices: the devices; None is all of them.
      data: devices along the data-parallel axis; -1 is all that the other axes leave.
      fsdp: devices that share one copy of the parameters and also split the batch (FSDP).
      tensor: devices that split each layer's matrices (tensor parallelism).
      rules: rows (logical name of a dimension, mesh axis or axes that split it).

    Raises:
      BadInput: if the sizes do not multiply to the number of devices, or a rule names an unknown
        axis.
    """
    sizes = [data, fsdp, tensor]
    devices = jax.devices() if devices is None else devices
    device_count = len(devices)
    require(
        all(s == -1 or s > 0 for s in sizes), f"config.mesh: sizes are positive or -1, got {sizes}"
    )
    require(sizes.count(-1) <= 1, f"config.mesh: only one axis can be -1, got {sizes}")
    known = math.prod(s for s in sizes if s != -1)
    sizes = [device_count // known if s == -1 else s for s in sizes]
    require(
        math.prod(sizes) == device_count,
        f"config.mesh: {' x '.join(map(str, sizes))} is not the number of devices, {device_count}",
    )
    mapped = {name: (axes,) if isinstance(axes, str) else tuple(axes) for name, axes in rules}
    for name, axes in mapped.items():
        for axis in axes:
            require(axis in AXES, f"config.mesh.rules: {name!r} names {axis!r}, not one of {AXES}")
    return Layout(
        jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices), mapped
    )


def spec(
    layout: Layout, names: tuple[str | None, ...], shape: tuple[int, ...], where: str = ""
) -> P:
    """The PartitionSpec of an array whose dimensions have these logical names.

    A dimension whose size its axes do not divide is replicated, with a warning if `where` names the
    array.
    """
    parts: list[Any] = []
    for name, size in zip(names, shape, strict=True):
        axes = layout.rules.get(name, ())
        axes = tuple(a for a in axes if layout.mesh.shape[a] > 1)
        ways = math.prod(layout.mesh.shape[a] for a in axes)
        if size % ways:
            if where:
                logging.warning(
                    "%s: %s=%d is not divisible by %d: replicated", where, name, size, ways
                )
            axes = ()
        parts.append(axes or None)
    return P(*parts)


def replicated(layout: Layout) -> NamedSharding:
    """The sharding of an array that every device holds in full."""
    return NamedSharding(layout.mesh, P())


def shardings(layout: Layout, table: Table, params, where: str = "partition table") -> Any:
    """The NamedSharding of every parameter, from the first row of `table` that matches its path. An
    empty table replicates all of them.

    Raises:
      BadInput: if a parameter of two or more dimensions matches no row, a row matches no
        parameter, or a row and its parameter differ in the number of dimensions; or if the table
        is empty and the mesh shards parameters.
    """
    flat = tree.flatten(params)
    shards = layout.mesh.shape["fsdp"] * layout.mesh.shape["tensor"] > 1
    require(
        bool(table) or not shards,
        "config.mesh: this mesh shards parameters, and the model's PARTITION table is empty",
    )
    matrices = [path for path, leaf in flat.items() if len(leaf.shape) >= 2] if table else []
    tree.check_table(where, table, flat, cover=matrices)

    def place(path, leaf):
        names = tree.lookup(table, path, (None,) * len(leaf.shape))
        require(
            len(names) == len(leaf.shape),
            f"{where}: {path} has shape {tuple(leaf.shape)}, its row names {names}",
        )
        return NamedSharding(layout.mesh, spec(layout, names, leaf.shape, path))

    return tree.map_paths(place, params)


def follow(layout: Layout, state, params, params_shardings) -> Any:
    """Shardings of an optimizer state: a leaf follows the parameter of its shape whose path is a
    suffix of its own, and is replicated if there is none."""
    by_path = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            tree.flatten(params).items(), jax.tree.leaves(params_shardings), strict=True
        )
    }

    def place(path, leaf):
        parts = path.split("/")
        for i in range(len(parts)):
            shape, sharding = by_path.get("/".join(parts[i:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated(layout)

    return tree.map_paths(place, state)


def constrainer(layout: Layout) -> Callable:
    """A function (x, *logical names) -> x that pins an activation's sharding, for a module's
    `constrain` field. Its attributes: `on_parts`, see `common.nn.layers`, and `platform`."""

    def constrain(x, *names):
        sharding = NamedSharding(layout.mesh, spec(layout, names, x.shape))
        return jax.lax.with_sharding_constraint(x, sharding)

    def on_parts(function, names, like, arrays):
        full = spec(layout, names, like)
        spec_of = lambda x: P(*(None if n == 1 else p for n, p in zip(x.shape, full, strict=False)))
        specs = tuple(map(spec_of, arrays))
        return jax.shard_map(
            function, mesh=layout.mesh, in_specs=specs, out_specs=full, check_vma=False
        )(*arrays)

    constrain.on_parts = on_parts
    constrain.platform = layout.mesh.devices.flat[0].platform
    return constrain


def ways(layout: Layout) -> int:
    """The number of parts that the batch is split into."""
    return math.prod(layout.mesh.shape[a] for a in layout.rules.get("batch", ()))


def check_batch(layout: Layout, batch_size: int, where: str) -> None:
    """Raises `BadInput` unless the number of devices that split the batch divides its size."""
    require(batch_size > 0, f"{where}: {batch_size} is not a positive number of examples")
    parts = ways(layout)
    require(
        batch_size % parts == 0,
        f"{where}: {batch_size} examples cannot be divided over {parts} devices; "
        f"take {max(batch_size // parts, 1) * parts}",
    )


def batch_sharding(layout: Layout) -> NamedSharding:
    """The sharding of a batch: its first dimension is split, the others are not."""
    axes = tuple(a for a in layout.rules.get("batch", ()) if layout.mesh.shape[a] > 1)
    return NamedSharding(layout.mesh, P(axes or None))


def local_rows(layout: Layout, batch_size: int) -> np.ndarray:
    """u32[n]: the rows of a global batch that this process's devices hold, in increasing order."""
    slices = batch_sharding(layout).addressable_devices_indices_map((batch_size,))
    rows = np.arange(batch_size, dtype=np.uint32)
    return np.unique(np.concatenate([rows[index] for index in slices.values()]))


def to_global(
    layout: Layout, batch_size: int, local: dict[str, np.ndarray]
) -> dict[str, jax.Array]:
    """Global arrays [B, ...] from this process's rows, which are in the order of `local_rows`."""
    rows, sharding = local_rows(layout, batch_size), batch_sharding(layout)

    def put(value):
        def shard(index):
            start, stop, _ = index[0].indices(batch_size)
            return value[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]

        return jax.make_array_from_callback((batch_size, *value.shape[1:]), sharding, shard)

    return {name: put(value) for name, value in local.items()}


def put_like(x, like) -> jax.Array:
    """Copies a host array, equal on every process, to where the array `like` is to be."""
    return jax.make_array_from_callback(x.shape, like.sharding, lambda i: np.asarray(x)[i])


def put_replicated(layout: Layout, arrays) -> Any:
    """Copies host arrays, equal on every process, to every device."""
    put = lambda x: jax.make_array_from_callback(x.shape, replicated(layout), lambda i: x[i])
    with jax.transfer_guard("allow"):  # a deliberate transfer
        return jax.tree.map(put, arrays)
