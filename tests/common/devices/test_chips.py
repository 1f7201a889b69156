"""The table of chips: devices are found by what JAX calls them, and figures are of one device."""

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu

from common.devices import chips

# JAX's own table, and the cores that one device of it has.
TPUS = {
    "TPU v3": (pltpu.ChipVersion.TPU_V3, 1),
    "TPU v4": (pltpu.ChipVersion.TPU_V4, 2),
    "TPU v5e": (pltpu.ChipVersion.TPU_V5E, 1),
    "TPU v5p": (pltpu.ChipVersion.TPU_V5P, 2),
    "TPU v6e": (pltpu.ChipVersion.TPU_V6E, 1),
    "TPU7x": (pltpu.ChipVersion.TPU_7X, 1),
}
TOPOLOGIES = {"v4:2x2x1": "TPU v4", "v5e:2x4": "TPU v5e", "v5p:2x2x1": "TPU v5p"}
TOPOLOGIES |= {"v6e:2x4": "TPU v6e"}


def test_a_device_is_found_by_what_jax_calls_it():
    kinds = [kind for chip in chips.CHIPS for kind in chip.kinds]
    assert len(set(kinds)) == len(kinds)
    for chip in chips.CHIPS:
        assert all(chips.of(kind) is chip for kind in chip.kinds)
    assert chips.of("TPU v5 lite").name == "TPU v5e"
    assert chips.of("TPU v5").name == "TPU v5p"
    assert chips.of("NVIDIA H100 80GB HBM3").name == "H100 SXM"


def test_what_is_not_in_the_table_is_no_chip():
    assert chips.of(jax.devices("cpu")[0].device_kind) is None
    assert chips.of("NVIDIA H100") is None  # which of them is not known


@pytest.mark.parametrize("chip", chips.CHIPS, ids=lambda chip: chip.name)
def test_figures_are_in_the_units_that_they_claim(chip):
    # A slip by 8 (bits for bytes) or by 1000 leaves these: FLOPs a byte of memory, and bytes of
    # memory a byte of links, are nearly alike from chip to chip.
    assert 130 < chip.flops / chip.memory_bandwidth < 600
    assert 3 < chip.memory_bandwidth / chip.link_bandwidth < 21
    assert 16 <= chip.memory_bytes / 2**30 <= 192
    assert chip.source.startswith("https://")


@pytest.mark.parametrize("name", TPUS)
def test_figures_of_tpus_are_those_of_jax(name):
    # JAX rounds: its v3 has 140 TFLOP/s and its v5p 2.46 TB/s, 12% off Google's pages.
    version, cores = TPUS[name]
    (chip,) = (chip for chip in chips.CHIPS if chip.name == name)
    known = pltpu.get_tpu_info_for_chip(version, cores)
    assert chip.flops == pytest.approx(cores * known.bf16_ops_per_second, rel=0.15)
    assert chip.memory_bytes == pytest.approx(cores * known.hbm_capacity_bytes, rel=0.01)
    assert chip.memory_bandwidth == pytest.approx(cores * known.mem_bw_bytes_per_second, rel=0.15)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_tpus_are_called_what_the_table_says(topology, monkeypatch):
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    assert chips.of(described.devices[0].device_kind).name == TOPOLOGIES[topology]
