"""ConvNeXt (Liu et al. 2022): a convolutional network with the proportions of a Swin Transformer.

    from vision import convnext
    model = convnext.ConvNeXt(**convnext.SIZES["tiny"], num_classes=1000)
    params = model.init(jax.random.key(0), images)["params"]
    logits = model.apply({"params": params}, images)

Letters: B batch, H height, W width, C channels, D width of the last stage, K classes.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from common.errors import require
from common.nn.blocks import ACTIVATIONS, Activation
from common.nn.layers import MOST_LAYERS, Dense, Dropout, Dtype, Remat, identity, named, recomputed
from common.task import Table

KERNEL = 7  # side of the depthwise convolutions
EXPANSION = 4  # of the channels inside a block
EPS = 1e-6  # of every norm but the last


def _size(third: int, width: int) -> dict:
    return {"stages": (3, 3, third, 3), "widths": tuple(width * 2**i for i in range(4))}


# Liu et al. 2022, section 3; "large" and "xlarge" are as deep as "base", and wider.
SIZES = {
    "tiny": _size(9, 96),
    "small": _size(27, 96),
    "base": _size(27, 128),
    "large": _size(27, 192),
    "xlarge": _size(27, 256),
}


class ConvNeXt(nn.Module):
    """Stem of patches, stages of blocks, global mean pooling, a norm, a dense head.

    Every stage but the first begins with a norm and a 2x2 convolution of stride 2. Strided
    convolutions do not pad: rows and columns that fill no window are dropped, as in torch.

    With `mutable=["intermediates"]`, `apply` also returns `stem_output`, `stage_0`, … and
    `features`, f32[B, D].

    Attributes:
      num_classes: K.
      stages: number of blocks in each stage.
      widths: channels of each stage.
      patch_size: side and stride of the stem's kernel; 1 or 2 suits small images.
      layer_scale: what LayerScale starts at (Touvron et al. 2021, CaiT); None is none.
      activation: activation inside the blocks.
      norm_eps: epsilon of the norm before the head; that of all others is 1e-6.
      drop_path: rate at which a row skips the residual branch of a block (stochastic depth, Huang
        et al. 2016), which grows linearly from 0 in the first block to this in the last. None is
        none. May be traced.
      dtype: dtype of the computation before the head; None is that of the parameters.
      remat: what the backward pass recomputes to save memory: "none", all but the matrix products
        and convolutions ("dots"), or each block from its input ("block").
      constrain: pins activations and gathered parameters to a mesh (`mesh.constrainer`).
    """

    num_classes: int
    stages: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    patch_size: int = 4
    layer_scale: float | None = 1e-6
    activation: Activation = "gelu"
    norm_eps: float = 1e-6
    drop_path: float | None = None
    dtype: Dtype | None = None
    remat: Remat = "none"
    constrain: Callable = identity

    PARTITION: ClassVar[Table] = (
        (r"(stem|downsample_\d+|.*/depthwise)/kernel", (None, None, None, "embed")),
        (r".*/up/kernel", ("embed", "mlp")),
        (r".*/down/kernel", ("mlp", "embed")),
        (r"head/kernel", ("embed", None)),
    )

    @nn.compact
    def __call__(self, images, train: bool = False):
        """f32[B, H, W, C] -> logits f32[B, K].

        With `train` and a `drop_path`, needs an rng "dropout".

        Raises:
          BadInput: if stages and widths differ in number or are not positive, or the images are too
            small for the stages.
        """
        self._check(images.shape)
        x = self._strided(self.widths[0], self.patch_size, name="stem")(images)
        x = self._norm(name="stem_norm")(x)
        x = named(self, "stem_output", self.constrain(x, "batch", None, None, None))
        last, i, make = max(1, sum(self.stages) - 1), 0, recomputed(Block, self.remat, 2)
        for stage, (blocks, width) in enumerate(zip(self.stages, self.widths, strict=True)):
            if stage:
                x = self._norm(name=f"downsample_norm_{stage}")(x)
                x = self._strided(width, 2, name=f"downsample_{stage}")(x)
            for j in range(blocks):
                rate = None if self.drop_path is None else self.drop_path * i / last
                fields = self.activation, self.layer_scale, rate, self.dtype, self.constrain
                x = make(*fields, self._norm, name=f"stage_{stage}_block_{j}")(x, train)
                x, i = self.constrain(x, "batch", None, None, None), i + 1
            x = named(self, f"stage_{stage}", x)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        x = jnp.mean(x, axis=(1, 2), dtype=wide)
        x = nn.LayerNorm(self.norm_eps, use_fast_variance=False, name="final_norm")(x)
        x = named(self, "features", self.constrain(x, "batch", None))
        head = partial(Dense, names=("embed", None), constrain=self.constrain, name="head")
        return head(self.num_classes, kernel_init=nn.initializers.normal(0.02))(x)

    def _check(self, shape: tuple[int, ...]):
        require(
            len(self.stages) == len(self.widths) > 0 and min(self.stages + self.widths) > 0,
            f"config.model.stages: {self.stages} blocks of widths {self.widths}: "
            "a positive number of blocks and a width for each stage are needed",
        )
        blocks = sum(self.stages)
        require(blocks <= MOST_LAYERS, f"config.model.stages: {blocks} blocks exceed {MOST_LAYERS}")
        require(self.patch_size > 0, f"config.model.patch_size: {self.patch_size} is not positive")
        least = self.patch_size * 2 ** (len(self.stages) - 1)
        require(
            min(shape[1:3]) >= least,
            f"config.model.patch_size: images of {shape[1]} x {shape[2]} pixels are too small for "
            f"patches of {self.patch_size} and {len(self.stages)} stages, which need {least}; "
            "lower it, or have fewer stages",
        )

    @nn.nowrap
    def _strided(self, width: int, side: int, name: str) -> nn.Module:
        return nn.Conv(
            width,
            (side, side),
            side,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=nn.initializers.truncated_normal(0.02),
            name=name,
        )

    @nn.nowrap
    def _norm(self, name: str) -> nn.Module:
        return nn.LayerNorm(EPS, dtype=self.dtype, use_fast_variance=False, name=name)

    @nn.nowrap
    def flops(self, shape: tuple[int, int, int]) -> int:
        """Forward FLOPs of one (H, W, C) image: two per multiply-add of the convolutions, padding
        included, of the MLPs and of the head; nothing else."""
        height, width, channels = shape
        total = 0
        for stage, (blocks, features) in enumerate(zip(self.stages, self.widths, strict=True)):
            side = 2 if stage else self.patch_size
            height, width = height // side, width // side
            block = features * (KERNEL**2 + 2 * EXPANSION * features)
            total += height * width * (side**2 * channels * features + blocks * block)
            channels = features
        return 2 * (total + channels * self.num_classes)


class Block(nn.Module):
    """Depthwise convolution, norm and an MLP over channels, scaled and added to the input.

    Attributes:
      activation: between the two layers of the MLP.
      layer_scale: what LayerScale starts at; None is none.
      drop_path: rate at which a row skips the branch, which is scaled up in the others to match.
        None is none. May be traced.
      dtype: dtype of the computation.
      constrain: pins activations and gathered parameters to a mesh.
      norm: name -> module.
    """

    activation: Activation
    layer_scale: float | None
    drop_path: float | None
    dtype: str | None
    constrain: Callable
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train: bool = False):
        """[B, H, W, C] -> [B, H, W, C]."""
        width, init = x.shape[-1], nn.initializers.truncated_normal(0.02)
        y = nn.Conv(
            width,
            (KERNEL, KERNEL),
            padding=KERNEL // 2,
            feature_group_count=width,
            dtype=self.dtype,
            kernel_init=init,
            name="depthwise",
        )(x)
        y = self.norm(name="norm")(y)
        dense = partial(Dense, dtype=self.dtype, kernel_init=init, constrain=self.constrain)
        y = dense(EXPANSION * width, names=("embed", "mlp"), name="up")(y)
        y = self.constrain(ACTIVATIONS[self.activation](y), "batch", None, None, "mlp")
        y = dense(width, names=("mlp", "embed"), name="down")(y)
        if self.layer_scale is not None:
            start = nn.initializers.constant(self.layer_scale)
            y = y * self.param("scale", start, (width,), jnp.float32).astype(y.dtype)
        kept = Dropout(self.drop_path)(jnp.ones((y.shape[0], 1, 1, 1), y.dtype), train)
        return x + kept * y
