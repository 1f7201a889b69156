"""Devices of machines that need not be attached, as compile targets.

    devices = topology.devices("v5e:16x16")

TPUs need PyPI's libtpu, H100 GPUs the CUDA plugin; neither needs the chip. Without them, and for
"cpu:8", devices are simulated on the host's CPU: this still shows what shards and what fits, but
not what the chip's compiler would produce.
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

TPUS = ("v4", "v5e", "v5p", "v6e")  # Google Cloud's names of slices

# The chip as XLA's GPU compiler describes it. Figures from openxla/xla,
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
    """Makes this a compile-only process: jax stays on the host's CPU. Call before using jax.

    Args:
      count: number of simulated CPU devices; None is one.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu queries the cloud it runs in
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    jax.config.update("jax_platforms", "cpu")
    if count is not None and count > jax.config.jax_num_cpu_devices:
        with contextlib.suppress(RuntimeError):  # jax is already running: `devices` reports it
            jax.config.update("jax_num_cpu_devices", count)


def devices(text: str) -> tuple[list, chips.Chip | None]:
    """The devices of a topology, and their chip; None for simulated ones.

    Args:
      text: "v5e:16x16" (chips per side, as in Google Cloud's slices), "h100:8", or with hosts
        "h100:4x8", or "cpu:8".

    Raises:
      BadInput: for an unknown topology.
    """
    matched = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
    known = ", ".join([*TPUS, "h100", "cpu"])
    kind = matched[1] if matched else ""
    require(
        kind in {*TPUS, "h100", "cpu"},
        f"--topology: {text!r}; expected one such as v5e:16x16, h100:8 or cpu:8 (valid: {known})",
    )
    sizes = [int(n) for n in matched[2].split("x")]
    if kind in TPUS and importlib.util.find_spec("libtpu"):
        start()
        # libtpu must be told that the two cores of a v4 chip act as one device.
        chip_options = {"chip_config_name": "megacore"} if kind == "v4" else {}
        return _described("tpu", text, topology_name=text, **chip_options)
    if kind == "h100" and importlib.util.find_spec("jax_cuda12_plugin"):
        start()
        shape = "x".join(map(str, [1] * (3 - len(sizes)) + sizes))
        return _described("cuda", text, topology=shape, target_config=H100)
    if kind != "cpu":
        extra = "compile" if kind in TPUS else "compile-h100"
        logging.warning(
            "%s: simulated on the CPU, as its compiler is not installed: pip install "
            "'touchstone-jax[%s]'",
            text,
            extra,
        )
    count = math.prod(sizes)
    start(count)
    cpu_devices = jax.devices("cpu")
    require(
        len(cpu_devices) >= count,
        f"--topology: {text}: jax already has {len(cpu_devices)} devices; set JAX_NUM_CPU_DEVICES",
    )
    return cpu_devices[:count], None


def _described(platform: str, text: str, **options) -> tuple[list, chips.Chip | None]:
    try:
        targets = topologies.get_topology_desc(platform=platform, **options).devices
        return targets, chips.of(targets[0].device_kind)
    except Exception as error:  # the plugins raise nothing narrower
        reason = str(error).split("\n")[0][:200]
        raise BadInput(f"--topology: {text}: {reason}") from error
