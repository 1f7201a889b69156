"""Peak rates of accelerators, from their vendors: the reference for MFU and predicted times.

    chip = chips.of(jax.devices()[0].device_kind)  # None if it is not in the table

Figures are per JAX device. A device is a chip, except on TPU v3 and TPU7x, which expose each of
their two cores as one: their figures are half of the page's. Google and NVIDIA quote links for
both directions together: halved here. NVIDIA quotes FLOP/s with sparsity for chips that support
it: halved here. Memory that a page gives in GB is counted in GiB, as the devices report it; a few
percent of it are never available to a program.
"""

from typing import NamedTuple

GIB = 2.0**30


class Chip(NamedTuple):
    """A kind of accelerator; figures are per JAX device.

    Attributes:
      name: its common name.
      kinds: its values of `jax.Device.device_kind`.
      flops: peak FLOP/s of dense bfloat16 matrix multiplications (float16 on T4, which has no
        bfloat16), accumulated in float32.
      memory_bytes: device memory.
      memory_bandwidth: bytes/s between memory and cores.
      link_bandwidth: bytes/s out of the device in one direction, summed over its ICI or NVLink
        links; over PCIe if it has neither.
      source: the vendor's page that the figures come from.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    source: str


_TPU = "https://docs.cloud.google.com/tpu/docs"
_GPU = "https://www.nvidia.com/en-us/data-center"
# Table 4 of Jouppi et al. 2023: the pages of v3 and v4 do not give link bandwidth.
_TPU_V4 = "https://arxiv.org/abs/2304.01433"
_GA100 = (
    "https://images.nvidia.com/aem-dam/en-zz/Solutions/data-center/"
    "nvidia-ampere-architecture-whitepaper.pdf"
)
_A100 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)
_H100 = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"

# fmt: off
CHIPS: tuple[Chip, ...] = (
    Chip("TPU v3", ("TPU v3",), 123e12 / 2, 32 * GIB / 2, 900e9 / 2, 4 * 70e9 / 2, _TPU_V4),
    Chip("TPU v4", ("TPU v4",), 275e12, 32 * GIB, 1200e9, 6 * 50e9, _TPU_V4),
    Chip("TPU v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 400e9 / 2, f"{_TPU}/v5e"),
    Chip("TPU v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 1200e9 / 2, f"{_TPU}/v5p"),
    Chip("TPU v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1638e9, 800e9 / 2, f"{_TPU}/v6e"),
    Chip("TPU7x", ("TPU7x",), 2307e12 / 2, 192 * GIB / 2, 7380e9 / 2, 1200e9 / 4, f"{_TPU}/tpu7x"),
    Chip("T4", ("Tesla T4",), 65e12, 16 * GIB, 320e9, 32e9 / 2, f"{_GPU}/tesla-t4/"),
    Chip("L4", ("NVIDIA L4",), 242e12 / 2, 24 * GIB, 300e9, 64e9 / 2, f"{_GPU}/l4/"),
    Chip("A100 40GB SXM", ("NVIDIA A100-SXM4-40GB",), 312e12, 40 * GIB, 1555e9, 600e9 / 2, _GA100),
    Chip("A100 40GB PCIe", ("NVIDIA A100-PCIE-40GB",), 312e12, 40 * GIB, 1555e9, 600e9 / 2, _GA100),
    Chip("A100 80GB SXM", ("NVIDIA A100-SXM4-80GB",), 312e12, 80 * GIB, 2039e9, 600e9 / 2, _A100),
    Chip("A100 80GB PCIe", ("NVIDIA A100 80GB PCIe",), 312e12, 80 * GIB, 1935e9, 600e9 / 2, _A100),
    Chip("H100 SXM", ("NVIDIA H100 80GB HBM3",), 1979e12 / 2, 80 * GIB, 3350e9, 900e9 / 2, _H100),
    Chip("H100 PCIe", ("NVIDIA H100 PCIe",), 1513e12 / 2, 80 * GIB, 2000e9, 600e9 / 2, _H100),
    Chip("H200 SXM", ("NVIDIA H200",), 1979e12 / 2, 141 * GIB, 4800e9, 900e9 / 2, f"{_GPU}/h200/"),
    Chip("B200", ("NVIDIA B200",), 36e15 / 8 / 2, 180 * GIB, 8000e9, 1800e9 / 2, f"{_GPU}/hgx/"),
)
# fmt: on


def of(device_kind: str) -> Chip | None:
    """The chip with this `jax.Device.device_kind`; None if it is not in the table."""
    return next((chip for chip in CHIPS if device_kind in chip.kinds), None)
