"""Devices of machines that are not here, for programs to be compiled for them.

    devices = topology.devices("v5e:16x16")

TPUs come from PyPI's libtpu, H100 GPUs from the CUDA plugin; neither needs the chip. Where they are
not installed, and for "cpu:8", the devices are simulated on the host's CPU: what shards and what
fits can then still be seen, and what the compiler of the chip would make of it cannot.
"""

import contextlib
import importlib.util
import logging
import math
import os
import re

import jax
from jax.experimental import topologies

from common.devices import chips
from common.errors import BadInput, require

TPUS = ("v4", "v5e", "v5p", "v6e")  # as Cloud names its slices

# What XLA's GPU compiler asks of a chip. Figures of openxla/xla,
# xla/backends/gpu/target_config/specs/h100_sxm.txtpb.
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  platform_version: "Compute Capability 9.0a"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  pcie_bandwidth: 34359738368 device_interconnect_info { active_links: 18 }
  device_address_bits: 64 ecc_enabled: true
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
}
"""


def start(count: int | None = None) -> None:
    """Makes this process one that compiles and computes nothing: jax stays on the host's CPU.

    Args:
      count: of simulated CPU devices; None is one.

    To be called before jax is used.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask a cloud who it is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    jax.config.update("jax_platforms", "cpu")
    if count is not None and count > jax.config.jax_num_cpu_devices:
        with contextlib.suppress(RuntimeError):  # jax already runs: `devices` says so
            jax.config.update("jax_num_cpu_devices", count)


def devices(text: str) -> tuple[list, chips.Chip | None]:
    """The devices of a topology, and the chip that they are; None for simulated ones.

    Args:
      text: "v5e:16x16" (chips to a side, as Cloud names its slices), "h100:8", or with hosts
        "h100:4x8", or "cpu:8".

    Raises:
      BadInput: for a topology that there is not.
    """
    matched = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
    known = ", ".join([*TPUS, "h100", "cpu"])
    kind = matched[1] if matched else ""
    require(
        kind in {*TPUS, "h100", "cpu"},
        f"--topology: {text!r}; write one such as v5e:16x16, h100:8 or cpu:8 (there are {known})",
    )
    sizes = [int(n) for n in matched[2].split("x")]
    if kind in TPUS and importlib.util.find_spec("libtpu"):
        start()
        # The two cores of a v4 chip work as one, which libtpu has to be told.
        how = {"chip_config_name": "megacore"} if kind == "v4" else {}
        return _described("tpu", text, topology_name=text, **how)
    if kind == "h100" and importlib.util.find_spec("jax_cuda12_plugin"):
        start()
        shape = "x".join(map(str, [1] * (3 - len(sizes)) + sizes))
        return _described("cuda", text, topology=shape, target_config=H100)
    if kind != "cpu":
        extra = "compile" if kind in TPUS else "compile-h100"
        logging.warning(
            "%s: simulated on the CPU, since its compiler is not here: pip install "
            "'touchstone-jax[%s]'",
            text,
            extra,
        )
    count = math.prod(sizes)
    start(count)
    there = jax.devices("cpu")
    require(
        len(there) >= count,
        f"--topology: {text}: jax already runs with {len(there)} devices; set JAX_NUM_CPU_DEVICES",
    )
    return there[:count], None


def _described(platform: str, text: str, **options) -> tuple[list, chips.Chip | None]:
    try:
        found = topologies.get_topology_desc(platform=platform, **options).devices
        return found, chips.of(found[0].device_kind)
    except Exception as error:  # the plugins raise nothing narrower
        said = str(error).split("\n")[0][:200]
        raise BadInput(f"--topology: {text}: {said}") from error
