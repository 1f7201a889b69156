"""Residual networks: ResNet (He et al. 2016a) and Wide ResNet (Zagoruyko & Komodakis 2016).

    from vision import resnet
    model = resnet.ResNet(**resnet.SIZES["resnet50"], num_classes=1000)
    variables = model.init(jax.random.key(0), images)            # params and batch_stats
    logits = model.apply(variables, images)

Letters: B batch, H height, W width, C channels, D width of the last stage, K classes.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from common.errors import require
from common.nn.layers import MOST_LAYERS, Dense, Dropout, Dtype, Remat, identity, named, recomputed
from common.task import Table

Kind = Literal["basic", "bottleneck"]


def _imagenet(block: Kind, *stages: int) -> dict:
    first = 256 if block == "bottleneck" else 64
    return {"block": block, "stages": stages, "widths": tuple(first * 2**i for i in range(4))}


def _wide(depth: int, factor: int) -> dict:
    """WRN-depth-factor: three stages; the depth counts the stem and one shortcut per stage."""
    shape = {
        "stages": ((depth - 4) // 6,) * 3,
        "widths": tuple(16 * factor * 2**i for i in range(3)),
    }
    return {"block": "basic", "stem": "small", "stem_width": 16, "preactivation": True, **shape}


# He et al. 2016a, table 1; Zagoruyko & Komodakis 2016, tables 4 and 5.
SIZES = {
    "resnet18": _imagenet("basic", 2, 2, 2, 2),
    "resnet34": _imagenet("basic", 3, 4, 6, 3),
    "resnet50": _imagenet("bottleneck", 3, 4, 6, 3),
    "resnet101": _imagenet("bottleneck", 3, 4, 23, 3),
    "resnet152": _imagenet("bottleneck", 3, 8, 36, 3),
    "wrn_40_2": _wide(40, 2),
    "wrn_16_8": _wide(16, 8),
    "wrn_28_10": _wide(28, 10),
}


def convolutions(block: Kind, width: int, stride: int) -> tuple[tuple[int, int, int], ...]:
    """(side, output channels, stride) of each convolution in a block's residual branch.

    The first 3x3 has the stride: "v1.5" (Goyal et al. 2017), more accurate than He et al.'s.
    """
    if block == "basic":
        return (3, width, stride), (3, width, 1)
    return (1, width // 4, 1), (3, width // 4, stride), (1, width, 1)


class Block(nn.Module):
    """A residual branch plus a shortcut: the input itself, or a 1x1 convolution if the shape
    changes.

    Attributes:
      kind: two 3x3 convolutions ("basic"), or a 3x3 between two 1x1 at a quarter of the width.
      width: output channels.
      stride: stride of the block.
      preactivation: norm and ReLU before each convolution and none on the sum (He et al. 2016b);
        otherwise norm after each and ReLU on the sum.
      dropout: rate before the last convolution; None is none. May be traced.
      convolution: (channels, side, stride, name=…) -> module.
      norm: name -> module.
    """

    kind: Kind
    width: int
    stride: int
    preactivation: bool
    dropout: float | None
    convolution: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train: bool = False):
        """[B, H, W, C] -> [B, H / stride, W / stride, width], rounded up."""
        branch = convolutions(self.kind, self.width, self.stride)
        changes = self.stride > 1 or x.shape[-1] != self.width
        drop, last, y = Dropout(self.dropout), len(branch) - 1, x
        for i, (side, width, stride) in enumerate(branch):
            if self.preactivation:
                y = nn.relu(self.norm(name=f"norm_{i}")(y))
            if i == 0 and changes:
                x = self.convolution(self.width, 1, self.stride, name="shortcut")(y)
            y = drop(y, train) if i == last else y
            y = self.convolution(width, side, stride, name=f"conv_{i}")(y)
            if not self.preactivation:
                # A block starts as its shortcut: the last scale is zero (Goyal et al. 2017).
                scale = nn.initializers.zeros if i == last else nn.initializers.ones
                y = self.norm(name=f"norm_{i}", scale_init=scale)(y)
                y = y if i == last else nn.relu(y)
        if self.preactivation:
            return x + y
        x = self.norm(name="shortcut_norm")(x) if changes else x
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stem, stages of blocks, global mean pooling, a dense head.

    Every stage but the first halves height and width in its first block. Convolutions have no
    biases, are initialised as in He et al. 2015 (normal, fan-out), and zero-pad all four sides
    equally, as in torch: "SAME" would shift the windows of strided ones.

    With `mutable=["intermediates"]`, `apply` also returns `stem_output`, `stage_0`, … and
    `features`, f32[B, D].

    Attributes:
      num_classes: K.
      stages: number of blocks in each stage.
      widths: output channels of each stage; a bottleneck is a quarter as wide inside.
      block: kind of block: two 3x3 convolutions ("basic"), or a 3x3 between two 1x1 ("bottleneck").
      preactivation: norm and ReLU before each convolution (He et al. 2016b) rather than norm after
        it; the stem then has no norm, and one follows the last stage.
      stem: a 7x7 convolution and a max-pool, both of stride 2 ("imagenet"), or a 3x3 convolution
        alone ("small", for small images).
      stem_width: output channels of the stem.
      dropout: rate before the last convolution of every block; None is none. May be traced.
      dtype: dtype of the computation before the head; None is that of the parameters.
      remat: what the backward pass recomputes to save memory: "none", all but the matrix products
        and convolutions ("dots"), or each block from its input ("block").
      constrain: pins activations and gathered parameters to a mesh (`mesh.constrainer`).
    """

    num_classes: int
    stages: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    block: Kind = "bottleneck"
    preactivation: bool = False
    stem: Literal["imagenet", "small"] = "imagenet"
    stem_width: int = 64
    dropout: float | None = None
    dtype: Dtype | None = None
    remat: Remat = "none"
    constrain: Callable = identity

    PARTITION: ClassVar[Table] = (
        (r"(stem|.*/(conv_\d+|shortcut))/kernel", (None, None, None, "embed")),
        (r"head/kernel", ("embed", None)),
    )

    @nn.compact
    def __call__(self, images, train: bool = False):
        """f32[B, H, W, C] -> logits f32[B, K].

        With `train`, normalises by batch statistics, moves the running ones (`batch_stats`, if
        mutable) a tenth of the way to them, and needs an rng "dropout" for dropout.

        Raises:
          BadInput: if stages and widths differ in number or are not positive, or the widths of
            bottlenecks are not multiples of four.
        """
        self._check()
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        if self.stem == "imagenet":
            x = self._convolution(self.stem_width, 7, 2, name="stem")(images)
        else:
            x = self._convolution(self.stem_width, 3, 1, name="stem")(images)
        if not self.preactivation:
            x = nn.relu(norm(name="stem_norm")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        x = self.constrain(x, "batch", None, None, None)
        x = named(self, "stem_output", x)
        make = recomputed(Block, self.remat, 2)
        for stage, (strides, width) in enumerate(self._plan()):
            for i, stride in enumerate(strides):
                fields = self.block, width, stride, self.preactivation, self.dropout
                block = make(*fields, self._convolution, norm, name=f"stage_{stage}_block_{i}")
                x = self.constrain(block(x, train), "batch", None, None, None)
            x = named(self, f"stage_{stage}", x)
        if self.preactivation:
            x = nn.relu(norm(name="final_norm")(x))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        x = named(self, "features", x)
        head = partial(Dense, names=("embed", None), constrain=self.constrain, name="head")
        return head(self.num_classes, kernel_init=nn.initializers.normal(0.01))(x)

    def _check(self):
        require(
            len(self.stages) == len(self.widths) > 0 and min(self.stages + self.widths) > 0,
            f"config.model.stages: {self.stages} blocks of widths {self.widths}: "
            "a positive number of blocks and a width for each stage are needed",
        )
        require(
            sum(self.stages) <= MOST_LAYERS and self.stem_width > 0,
            f"config.model.stages: {self.stages} blocks after a stem of width {self.stem_width}: "
            f"at most {MOST_LAYERS} blocks, and a positive width, are needed",
        )
        require(
            self.block == "basic" or not any(width % 4 for width in self.widths),
            f"config.model.widths: {self.widths}: a bottleneck's are multiples of four",
        )

    @nn.nowrap
    def _plan(self) -> list[tuple[tuple[int, ...], int]]:
        """(stride of each block, output channels) of each stage."""
        strides = [(2 if i else 1,) + (1,) * (blocks - 1) for i, blocks in enumerate(self.stages)]
        return list(zip(strides, self.widths, strict=True))

    @nn.nowrap
    def _convolution(self, channels: int, side: int, stride: int, name: str) -> nn.Module:
        return nn.Conv(
            channels,
            (side, side),
            stride,
            padding=side // 2,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            name=name,
        )

    @nn.nowrap
    def flops(self, shape: tuple[int, int, int]) -> int:
        """Forward FLOPs of one (H, W, C) image: two per multiply-add of the convolutions, padding
        included, and of the head; nothing else."""
        total = 0

        def convolve(shape, side, channels, stride):
            nonlocal total
            height, width = (-(-size // stride) for size in shape[:2])
            total += 2 * height * width * side**2 * shape[2] * channels
            return height, width, channels

        if self.stem == "imagenet":
            height, width, channels = convolve(shape, 7, self.stem_width, 2)
            shape = -(-height // 2), -(-width // 2), channels
        else:
            shape = convolve(shape, 3, self.stem_width, 1)
        for strides, width in self._plan():
            for stride in strides:
                before = shape
                for layer in convolutions(self.block, width, stride):
                    shape = convolve(shape, *layer)
                if stride > 1 or before[2] != width:
                    convolve(before, 1, width, stride)
        return total + 2 * shape[2] * self.num_classes
