"""MobileNetV2 (Sandler et al. 2018): inverted residuals with linear bottlenecks, for phones.

    from vision import mobilenet
    model = mobilenet.MobileNetV2(num_classes=1000)
    variables = model.init(jax.random.key(0), images)            # params and batch_stats
    logits = model.apply(variables, images)

The stages of `vision.efficientnet_lite`, with 3x3 kernels throughout, and padded and normalised as
in torchvision. Its ImageNet weights take images resized to 256 and cropped to 224 (bilinear), with
ImageNet's mean and deviation.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn

from vision.efficientnet_lite import InvertedResiduals, conv_norm


class MobileNetV2(InvertedResiduals):
    """MobileNetV2 at width 1.0; see `InvertedResiduals`. Published with dropout 0.2 before the
    head; running statistics move a tenth of the way to a batch's."""

    stages: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)
    widths: tuple[int, ...] = (16, 24, 32, 64, 96, 160, 320)

    KERNELS: ClassVar[tuple[int, ...]] = (3,) * 7
    STRIDES: ClassVar[tuple[int, ...]] = (1, 2, 2, 2, 1, 2, 1)  # table 2

    @nn.nowrap
    def _layer(self) -> Callable:
        return partial(_torch_conv_norm, dtype=self.dtype)


def _torch_conv_norm(*args, kernel: int = 1, **kwargs):
    """`conv_norm` with torch's padding, alike on all sides, and its defaults of a batch norm."""
    like_torch = {"padding": kernel // 2, "momentum": 0.9, "epsilon": 1e-5}
    return conv_norm(*args, kernel=kernel, **like_torch, **kwargs)
