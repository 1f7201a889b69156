"""The classic small convolutional network and a plain multilayer perceptron, for images.

    from vision import cnn
    model = cnn.CNN(num_classes=10)
    params = model.init(jax.random.key(0), images)["params"]
    logits = model.apply({"params": params}, images)

Letters: B batch, H height, W width, C channels, K classes.
"""

import itertools
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from common.errors import require
from common.nn.layers import Dense, Dropout, Dtype, Remat, identity, max_pool, named, recomputed
from common.task import Table


class CNN(nn.Module):
    """Per width a convolution, ReLU and 2x2 max pooling; dense layers with ReLU; a dense head.

    The defaults are 32C3-MP2-64C3-MP2-64-K with valid padding: 3x3 convolutions as in LeCun et al.
    1998, ReLU after Nair & Hinton 2010. For 28x28x1 images and ten classes it has
    121,930 parameters.

    Attributes:
      num_classes: K.
      widths: output channels of each convolution.
      kernel: side of every convolution kernel.
      padding: padding of the convolutions: none ("VALID"), or to the size of the input ("SAME").
      hidden: widths of the dense layers before the head.
      dropout: dropout rate before the head; None is none. May be traced.
      dtype: dtype of the computation before the head; None is that of the parameters.
      remat: what the backward pass recomputes to save memory: "none", all but the matrix products
        and convolutions ("dots"), or each layer from its input ("block").
      constrain: pins activations to a mesh (`common.devices.mesh.constrainer`).
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64)
    kernel: int = 3
    padding: Literal["VALID", "SAME"] = "VALID"
    hidden: tuple[int, ...] = (64,)
    dropout: float | None = None
    dtype: Dtype | None = None
    remat: Remat = "none"
    constrain: Callable = identity

    PARTITION: ClassVar[Table] = (
        (r"conv_\d+/kernel", (None, None, None, "embed")),
        (r"dense_\d+/kernel", ("embed", "mlp")),
        (r"head/kernel", ("mlp", None)),
    )

    @nn.compact
    def __call__(self, images, train: bool = False):
        """f32[B, H, W, C] -> logits f32[B, K].

        Raises:
          BadInput: for a size that is not positive, or images that the convolutions use up.
        """
        _check_sizes(widths=self.widths, kernel=(self.kernel,), hidden=self.hidden)
        cut = self.kernel - 1 if self.padding == "VALID" else 0
        least, (height, width) = 1, images.shape[1:3]
        for _ in self.widths:
            least = 2 * least + cut
        instead = ", or set config.model.padding='SAME'" if cut else ""
        require(
            min(height, width) >= least,
            f"config.model.widths: {len(self.widths)} convolutions are too many for images of "
            f"{height} x {width} pixels, and need {least} x {least}; give fewer widths{instead}",
        )
        x, window = images, (self.kernel, self.kernel)

        def convolve(module, x, name, width):
            del module
            x = nn.Conv(width, window, padding=self.padding, dtype=self.dtype, name=name)(x)
            # Pooling first: the maximum commutes with ReLU, and leaves a quarter of the values.
            return nn.relu(max_pool(x))

        for i, width in enumerate(self.widths):
            x = recomputed(convolve, self.remat, 2, 3)(self, x, f"conv_{i}", width)
            x = named(self, f"stage_{i}", self.constrain(x, "batch", None, None, None))
        return _dense_layers(self, x, train, self.dropout, self.dtype, self.remat)

    @nn.nowrap
    def flops(self, shape: tuple[int, int, int]) -> int:
        """Forward FLOPs of one (H, W, C) image: two per multiply-add of the convolutions, padding
        included, and of the dense layers; nothing else."""
        height, width, channels = shape
        cut = self.kernel - 1 if self.padding == "VALID" else 0
        total = 0
        for features in self.widths:
            height, width = height - cut, width - cut
            total += 2 * height * width * self.kernel**2 * channels * features
            height, width, channels = height // 2, width // 2, features
        return total + _dense_flops(height * width * channels, *self.hidden, self.num_classes)


class MLP(nn.Module):
    """Flatten, dense layers with ReLU, a dense head.

    Attributes:
      num_classes: K.
      hidden: widths of the dense layers before the head.
      dropout: dropout rate before the head; None is none. May be traced.
      dtype: dtype of the computation before the head; None is that of the parameters.
      remat: what the backward pass recomputes to save memory: "none", all but the matrix products
        and convolutions ("dots"), or each layer from its input ("block").
      constrain: pins activations to a mesh (`common.devices.mesh.constrainer`).
    """

    num_classes: int
    hidden: tuple[int, ...] = (128,)
    dropout: float | None = None
    dtype: Dtype | None = None
    remat: Remat = "none"
    constrain: Callable = identity

    PARTITION: ClassVar[Table] = CNN.PARTITION[1:]

    @nn.compact
    def __call__(self, images, train: bool = False):
        """f32[B, ...] -> logits f32[B, K]. Raises `BadInput` for a width that is not positive."""
        _check_sizes(hidden=self.hidden)
        return _dense_layers(self, images, train, self.dropout, self.dtype, self.remat)

    @nn.nowrap
    def flops(self, shape: tuple[int, ...]) -> int:
        """Forward FLOPs of one image of this shape: two per multiply-add of the dense layers."""
        return _dense_flops(math.prod(shape), *self.hidden, self.num_classes)


def _dense_layers(model: CNN | MLP, x, train: bool, dropout, dtype, remat: Remat):
    """Flattens, then dense layers with ReLU and the head: [B, ...] -> logits f32[B, K]."""

    def layer(module, x, name, width):
        names, constrain = ("embed", "mlp"), module.constrain
        return nn.relu(Dense(width, dtype=dtype, names=names, constrain=constrain, name=name)(x))

    x = x.reshape(x.shape[0], -1)
    for i, width in enumerate(model.hidden):
        x = recomputed(layer, remat, 2, 3)(model, x, f"dense_{i}", width)
        x = model.constrain(x, "batch", "mlp")
    x = Dropout(dropout)(named(model, "features", x), train)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return nn.Dense(model.num_classes, name="head")(x)


def _check_sizes(**fields: tuple[int, ...]) -> None:
    for name, sizes in fields.items():
        for size in sizes:
            require(size > 0, f"config.model.{name}: {size} is not positive")


def _dense_flops(*widths: int) -> int:
    """FLOPs of consecutive dense layers; the first width is that of the input."""
    return sum(2 * inputs * outputs for inputs, outputs in itertools.pairwise(widths))
