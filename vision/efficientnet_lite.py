"""EfficientNet-Lite (Tan & Le 2019; Liu 2020): convolutions for phones and small accelerators.

    from vision import efficientnet_lite
    model = efficientnet_lite.EfficientNetLite(**efficientnet_lite.SIZES["lite0"], num_classes=1000)
    variables = model.init(jax.random.key(0), images)            # params and batch_stats
    logits = model.apply(variables, images)

Lite is EfficientNet without squeeze-and-excitation, with ReLU6 in place of swish, and with a stem
and a head of fixed size; lite0 to lite4 grow wider and deeper.

Letters: B batch, H height, W width, C channels, D pooled features, K classes.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from common.errors import require
from common.nn.layers import MOST_LAYERS, Dense, Dropout, Dtype, Remat, identity, named, recomputed
from common.task import Table

STEM, TOP = 32, 1280  # channels
# Tan & Le 2019, table 1. For each stage: the side of its depthwise kernels, the stride of its first
# block, and the number of blocks and channels of lite0.
KERNELS = (3, 3, 5, 3, 5, 5, 3)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
STAGES = (1, 2, 2, 3, 3, 4, 1)
WIDTHS = (16, 24, 40, 80, 112, 192, 320)


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, or the next one up if that loses more than a tenth."""
    nearest = int(channels + 4) // 8 * 8
    return nearest if nearest >= 0.9 * channels else nearest + 8


def _scaled(width: float, depth: float, dropout: float) -> dict:
    """Channels times `width`; blocks times `depth`, except in the first and last stage."""
    inner = (math.ceil(depth * blocks) for blocks in STAGES[1:-1])
    widths = tuple(_rounded(width * channels) for channels in WIDTHS)
    return {"stages": (STAGES[0], *inner, STAGES[-1]), "widths": widths, "dropout": dropout}


SIZES = {
    "lite0": _scaled(1.0, 1.0, 0.2),
    "lite1": _scaled(1.0, 1.1, 0.2),
    "lite2": _scaled(1.1, 1.2, 0.3),
    "lite3": _scaled(1.2, 1.4, 0.3),
    "lite4": _scaled(1.4, 1.8, 0.3),
}

# Side in pixels of the square images each model was published for.
RESOLUTIONS = {"lite0": 224, "lite1": 240, "lite2": 260, "lite3": 280, "lite4": 300}


def conv_norm(
    name: str,
    x,
    train: bool,
    width: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    padding: str | int = "SAME",
    momentum: float = 0.99,
    epsilon: float = 1e-3,
    dtype: str | None = None,
):
    """A convolution without bias, then batch norm: the caller's `name` and `name`_norm.

    Args:
      name: of the convolution.
      x: [B, H, W, C].
      train: whether to normalise by batch statistics.
      width: output channels.
      kernel, stride, groups, padding: of the convolution.
      momentum: share of the running statistics that a step of training keeps.
      epsilon: of the norm.
      dtype: of the computation; None is that of the parameters.
    """
    # fan-out as in He et al. 2015; for a depthwise kernel, [k, k, 1, C], linen calls it fan-in.
    fan = "fan_out" if groups == 1 else "fan_in"
    x = nn.Conv(
        width,
        (kernel, kernel),
        stride,
        padding=padding,
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, fan, "normal"),
        name=name,
    )(x)
    norm = nn.BatchNorm(
        not train, momentum=momentum, epsilon=epsilon, dtype=dtype, name=f"{name}_norm"
    )
    return norm(x)


class InvertedResiduals(nn.Module):
    """Stem, seven stages of inverted residuals, a 1x1 convolution, global mean pooling, a
    dense head: the base of EfficientNet-Lite and `vision.mobilenet`.

    With `mutable=["intermediates"]`, `apply` also returns `stem_output`, `stage_0`, …,
    `stage_6`, `top_output` and `features`, f32[B, D].

    Attributes:
      num_classes: K.
      stages: number of blocks in each of the seven stages.
      widths: output channels of each stage.
      dropout: dropout rate before the head; None is none. May be traced.
      drop_path: rate at which a row skips the residual branch of a block (stochastic depth, Huang
        et al. 2016); block i of n has i / n of it. None is none; published: 0.2. May be traced.
      dtype: dtype of the computation before the head; None is that of the parameters.
      remat: what the backward pass recomputes to save memory: "none", all but the matrix products
        and convolutions ("dots"), or each block from its input ("block").
      constrain: pins activations and gathered parameters to a mesh (`mesh.constrainer`).
    """

    num_classes: int
    stages: tuple[int, ...]
    widths: tuple[int, ...]
    dropout: float | None = None
    drop_path: float | None = None
    dtype: Dtype | None = None
    remat: Remat = "none"
    constrain: Callable = identity

    KERNELS: ClassVar[tuple[int, ...]]  # sides of each stage's depthwise kernels
    STRIDES: ClassVar[tuple[int, ...]]  # of each stage's first block
    EXPANSIONS: ClassVar[tuple[int, ...]] = (1, 6, 6, 6, 6, 6, 6)  # factors inside the blocks
    PARTITION: ClassVar[Table] = (
        (r"(stem|top|.*/(expand|depthwise|project))/kernel", (None, None, None, "embed")),
        (r"head/kernel", ("embed", None)),
    )

    @nn.compact
    def __call__(self, images, train: bool = False):
        """f32[B, H, W, C] -> logits f32[B, K].

        With `train`, normalises by batch statistics, moves the running ones (`batch_stats`, if
        mutable) towards them, and needs an rng "dropout" for either rate.

        Raises:
          BadInput: unless there are seven stages and seven widths, all positive.
        """
        sizes = self.stages + self.widths
        require(
            len(self.stages) == len(self.widths) == len(self.KERNELS) and min(sizes) > 0,
            f"config.model.stages: {self.stages} blocks of widths {self.widths}: "
            f"{len(self.KERNELS)} positive numbers of each are needed",
        )
        require(
            sum(self.stages) <= MOST_LAYERS,
            f"config.model.stages: {self.stages} are more than {MOST_LAYERS} blocks",
        )
        layer = self._layer()
        x = nn.relu6(layer("stem", images, train, STEM, kernel=3, stride=2))
        x = named(self, "stem_output", self.constrain(x, "batch", None, None, None))
        count, i, make = sum(self.stages), 0, recomputed(Block, self.remat, 2)
        for stage, blocks in enumerate(self._blocks()):
            for fields in blocks:
                rate = None if self.drop_path is None else self.drop_path * i / count
                x = make(*fields, rate, layer, name=f"block_{i}")(x, train)
                x = self.constrain(x, "batch", None, None, None)
                i += 1
            x = named(self, f"stage_{stage}", x)
        x = nn.relu6(layer("top", x, train, TOP))
        x = named(self, "top_output", self.constrain(x, "batch", None, None, None))
        x = x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        x = Dropout(self.dropout)(named(self, "features", x), train)
        init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
        head = {"kernel_init": init, "names": ("embed", None), "constrain": self.constrain}
        return Dense(self.num_classes, **head, name="head")(x)

    @nn.nowrap
    def _layer(self) -> Callable:
        """`conv_norm` as this model pads and normalises."""
        return partial(conv_norm, dtype=self.dtype)

    @nn.nowrap
    def _blocks(self) -> Iterator[list[tuple[int, int, int, int]]]:
        """(kernel, stride, expansion, width) of each block of each stage."""
        for kernel, stride, expansion, blocks, width in zip(
            self.KERNELS, self.STRIDES, self.EXPANSIONS, self.stages, self.widths, strict=True
        ):
            yield [(kernel, 1 if i else stride, expansion, width) for i in range(blocks)]

    @nn.nowrap
    def flops(self, shape: tuple[int, int, int]) -> int:
        """Forward FLOPs of one (H, W, C) image: two per multiply-add of the convolutions, padding
        included, and of the head; nothing else."""
        height, width, channels = -(-shape[0] // 2), -(-shape[1] // 2), STEM
        total = height * width * 9 * shape[2] * STEM
        for kernel, stride, expansion, features in (b for blocks in self._blocks() for b in blocks):
            wide = channels * expansion
            if expansion > 1:
                total += height * width * channels * wide
            height, width, channels = -(-height // stride), -(-width // stride), features
            total += height * width * wide * (kernel**2 + features)
        return 2 * (total + height * width * channels * TOP + TOP * self.num_classes)


class EfficientNetLite(InvertedResiduals):
    """EfficientNet-Lite; see `InvertedResiduals`. Pads as TensorFlow does; running statistics move
    a hundredth of the way to a batch's."""

    stages: tuple[int, ...] = STAGES
    widths: tuple[int, ...] = WIDTHS

    KERNELS: ClassVar[tuple[int, ...]] = KERNELS
    STRIDES: ClassVar[tuple[int, ...]] = STRIDES


class Block(nn.Module):
    """Inverted residual (Sandler et al. 2018): expand, convolve depthwise, project; added to the
    input if the shapes match.

    Attributes:
      kernel, stride: side and stride of the depthwise convolution.
      expansion: factor on the channels inside; 1 omits the expanding convolution.
      width: output channels.
      drop_path: rate at which a row skips the branch, which is scaled up in the others to match.
        None is none. May be traced.
      layer: `conv_norm`, or a like function.
    """

    kernel: int
    stride: int
    expansion: int
    width: int
    drop_path: float | None
    layer: Callable = conv_norm

    @nn.compact
    def __call__(self, x, train: bool = False):
        """[B, H, W, C] -> [B, H / stride, W / stride, width], rounded up."""
        y, inside = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = nn.relu6(self.layer("expand", y, train, inside))
        shape = {"kernel": self.kernel, "stride": self.stride, "groups": inside}
        y = nn.relu6(self.layer("depthwise", y, train, inside, **shape))
        y = self.layer("project", y, train, self.width)
        if self.stride > 1 or x.shape[-1] != self.width:
            return y
        kept = Dropout(self.drop_path)(jnp.ones((y.shape[0], 1, 1, 1), y.dtype), train)
        return x + kept * y
