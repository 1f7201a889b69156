"""What a compiled program takes: the reader of its text against programs whose numbers are known,
and the command line on simulated devices."""

import json

import jax
import jax.numpy as jnp
import pytest
from helpers import DIGITS, ROOT, exit_code, load
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from common.nn import flops
from common.planning import compiled, hlo

MLP = f"{DIGITS}:mlp"


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def module_of(mesh, f, *arguments):
    """The parsed program of f on arguments (shape, spec)."""
    given = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))
        for shape, spec in arguments
    ]
    with jax.set_mesh(mesh):
        return hlo.parse(jax.jit(f).lower(*given).compile().as_text())


def test_a_sum_over_devices_is_one_all_reduce_of_its_bytes(mesh):
    contract = lambda x, w: x @ w
    (found,) = hlo.collectives(
        module_of(mesh, contract, ((16, 64), (None, "data")), ((64, 32), ("data", None)))
    )
    assert (found.kind, found.times, found.bytes) == ("all-reduce", 1, 16 * 32 * 4)
    assert hlo.axes_of(found.group, dict(mesh.shape)) == "data"
    assert found.sent() == 2 * 3 / 4 * 16 * 32 * 4


def test_what_a_loop_does_counts_as_often_as_it_runs(mesh):
    def loop(x, w):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, length=5)[0]

    module = module_of(mesh, loop, ((16, 64), (None, None)), ((64, 64), ("data", None)))
    found = hlo.collectives(module)
    assert hlo.loops(module) == 1
    assert sum(one.times for one in found) in (5, 6)  # one may come in front
    assert {hlo.axes_of(one.group, dict(mesh.shape)) for one in found} == {"data"}
    jaxpr = jax.make_jaxpr(loop)(jnp.ones((16, 64)), jnp.ones((64, 64))).jaxpr
    assert flops.traced(jaxpr) == 5 * 2 * 16 * 64 * 64


def test_a_gather_is_of_the_whole_and_a_copy_reads_and_writes(mesh):
    whole = lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))
    module = module_of(mesh, whole, ((64, 32), (("data", "tensor"), None)))
    (found,) = hlo.collectives(module)
    assert (found.kind, found.bytes, len(found.group)) == ("all-gather", 64 * 32 * 4, 8)
    assert hlo.axes_of(found.group, dict(mesh.shape)) == "data+tensor"
    doubled = module_of(mesh, lambda x: jnp.sin(2 * x), ((64, 32), (None, None)))
    assert hlo.memory_traffic(doubled) == 2 * 64 * 32 * 4


# As TPUs write them; each with the group of partition 0.
@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("replica_groups={{0,1},{2,3}}", (0, 1)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
    ],
)
def test_groups_are_read_however_they_are_written(written, group):
    text = f"""HloModule m

%all-reduce-scatter.1 (input: f32[8,4]) -> f32[1,4] {{
  %input = f32[8,4]{{1,0:T(8,128)S(1)}} parameter(0)
  ROOT %sum = f32[8,4]{{1,0}} all-reduce(%input), channel_id=1, {written}, to_apply=%add
}}

ENTRY %main (x: f32[8,4]) -> f32[1,4] {{
  %x = f32[8,4]{{1,0:T(8,128)S(1)}} parameter(0)
  ROOT %cut = f32[1,4]{{1,0:T(8,128)}} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}}
"""
    module = hlo.parse(text)
    assert hlo.collectives(module) == [hlo.Collective("reduce-scatter", 1, 8 * 4 * 4, group)]
    assert hlo.memory_traffic(module) == 16  # x lies in another memory


def test_a_permute_lies_along_the_axis_of_its_ring(mesh):
    around = lambda x: jax.lax.ppermute(x, "data", [(i, (i + 1) % 4) for i in range(4)])
    ring = jax.shard_map(around, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    (found,) = hlo.collectives(module_of(mesh, ring, ((16, 64), ("data", None))))
    assert (found.kind, found.group) == ("collective-permute", (0, 2, 4, 6))
    assert hlo.axes_of(found.group, dict(mesh.shape)) == "data"


def test_a_report_adds_up():
    config = load(MLP)
    alone, split = (compiled.examine(config | {"mesh": config["mesh"]}, f"cpu:{n}") for n in (1, 8))
    assert alone.parameters == split.parameters == 4810
    assert alone.memory["parameters"] == split.memory["parameters"] == 4 * 4810
    assert (alone.collectives, split.collectives[0]["kind"]) == ([], "all-reduce")
    assert split.collectives[0]["axes"] == "data"
    # Gradients, and a few numbers: the loss, its metrics and weights.
    assert 0 <= split.collectives[0]["bytes"] - 2 * 7 / 8 * 4 * 4810 < 200
    assert split.flops == alone.flops / 8
    assert alone.aliased_bytes >= 4 * 3 * 4810  # parameters and two moments, in place
    parts = {k: v for k, v in alone.memory.items() if k not in ("total", "limit")}
    assert sum(parts.values()) == alone.memory["total"]
    assert alone.fits
    assert compiled.bound(alone)[0] == ""
    fsdp = compiled.examine(load(MLP, **{"mesh.data": 1, "mesh.fsdp": 8}), "cpu:8")
    assert fsdp.memory["parameters"] < alone.memory["parameters"] / 3  # biases are everywhere


@pytest.mark.slow
def test_the_command_line(capsys):
    assert exit_code("compile", "--config", MLP, "--topology", "cpu:8") == 0
    shown = capsys.readouterr().out
    for part in ("4,810 parameters", "memory a device", "all-reduce", "data 8", "FLOPs a device"):
        assert part in shown
    words = ("--config", MLP, "--topology", "cpu:4", "--json", "--search", "batch")
    assert exit_code("compile", *words) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(row["overrides"]["train.batch_size"] for row in rows) == [64, 128, 256]
    assert all(row["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1} for row in rows)
    for topology, message in (
        ("v9:8", "valid: v4, v5e"),
        ("v5e", "expected one such as v5e:16x16"),
        ("cpu:16", "set JAX_NUM_CPU_DEVICES"),
        ("cpu:3", "cannot be divided over 3 devices"),
    ):
        assert exit_code("compile", "--config", MLP, "--topology", topology) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert message in error[-1]
    assert exit_code("compile", "--config", MLP, "--topology", "cpu:8", "--search", "mseh") == 2
    assert "did you mean 'mesh'" in capsys.readouterr().err


def test_a_search_tries_what_it_says():
    config = load(MLP)
    tried = compiled.choices(config, 8, ("mesh", "remat", "batch"))
    shapes = {tuple(v for k, v in row.items() if k.startswith("mesh")) for row in tried}
    assert shapes == {(8, 1, 1), (1, 8, 1), (1, 4, 2), (1, 2, 4)}
    assert len(tried) == 4 * 3 * 3  # by three kinds of rematerialization and three batches
    text = compiled.choices(load(f"{ROOT}/configs/lm/gpt_7b.py"), 64, ("mesh", "remat"))
    assert len(text) == 6 * 3
