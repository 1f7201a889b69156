"""A shallow convolutional network that trains fast: airbench (Jordan 2024), for images of any size.

    from vision import airbench
    model = airbench.Airbench(num_classes=10)
    variables = model.init(jax.random.key(0), images)
    params = model.fitted(variables["params"], images)  # whitening; vision.classify does it
    logits = model.apply(variables | {"params": params}, images)

Its first convolution has filters that are not learned but whiten the patches of training images:
freeze them with `config.optim.freeze = ("whitening/kernel",)`.

Letters: B batch, H height, W width, C channels, K classes, n images to fit, k side of a filter.
"""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from common.errors import require
from common.nn.layers import Dense, Dtype, Remat, identity, max_pool, named, recomputed
from common.task import Table


class Airbench(nn.Module):
    """A whitening convolution and GELU, one block per width, global max pooling, a dense head.

    A block is a 3x3 convolution, 2x2 max pooling, norm and GELU, then another 3x3 convolution, norm
    and GELU with a skip connection (which airbench has only in its larger variant).

    Attributes:
      num_classes: K.
      widths: output channels of each block.
      whitening: k, the side of the 2 k k C whitening filters, for C input channels.
      fit: whether the first filters are fitted to whiten training images; False keeps their random
        initialisation, to be learned like the others (with `config.optim.freeze = ()`).
      momentum: momentum of batch norm's running statistics.
      dtype: dtype of the computation; None is that of the parameters.
      remat: what the backward pass recomputes to save memory: "none", all but the matrix products
        and convolutions ("dots"), or each block from its input ("block").
      constrain: pins activations to a mesh (`common.devices.mesh.constrainer`).
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 40, 56)
    whitening: int = 3
    fit: bool = True
    momentum: float = 0.8
    dtype: Dtype | None = None
    remat: Remat = "none"
    constrain: Callable = identity

    PARTITION: ClassVar[Table] = (
        (r"whitening/kernel", (None, None, None, None)),
        (r"block_\d+_conv_\d/kernel", (None, None, None, "embed")),
        (r"head/kernel", ("embed", None)),
    )

    @nn.compact
    def __call__(self, images, train: bool = False):
        """f32[B, H, W, C] -> logits f32[B, K]. Raises `BadInput` for sizes that make no model."""
        sizes, side = (*self.widths, self.whitening), min(images.shape[1:3])
        require(min(sizes) > 0, f"config.model: widths and whitening {sizes} are not all positive")
        require(
            side >> len(self.widths) > 0,
            f"config.model.widths: {len(self.widths)} blocks are too many for images of {side} "
            f"pixels, and need {1 << len(self.widths)}; give fewer widths",
        )

        def convolution(x, width, side, name):
            init = nn.initializers.he_normal()
            arguments = {"use_bias": False, "kernel_init": init, "dtype": self.dtype, "name": name}
            return nn.Conv(width, (side, side), padding="SAME", **arguments)(x)

        def active(x, name):
            norm = nn.BatchNorm(not train, momentum=self.momentum, dtype=self.dtype, name=name)
            return nn.gelu(norm(x))

        filters = 2 * self.whitening**2 * images.shape[-1]
        x = nn.gelu(convolution(images, filters, self.whitening, "whitening"))
        x = named(self, "stem", x)

        def block(module, x, name, width):
            del module
            x = max_pool(convolution(x, width, 3, f"{name}_conv_0"))
            x = active(x, f"{name}_norm_0")
            return x + active(convolution(x, width, 3, f"{name}_conv_1"), f"{name}_norm_1")

        for i, width in enumerate(self.widths):
            x = recomputed(block, self.remat, 2, 3)(self, x, f"block_{i}", width)
            x = self.constrain(x, "batch", None, None, None)
            x = named(self, f"block_{i}", x)
        x = named(self, "features", x.max(axis=(1, 2)))
        head = Dense(self.num_classes, names=("embed", None), constrain=self.constrain, name="head")
        return head(x.astype(jnp.promote_types(x.dtype, jnp.float32)))

    @nn.nowrap
    def fitted(self, params: dict, images: np.ndarray) -> dict:
        """`params` with filters that whiten the patches of `images` f32[n, H, W, C]."""
        if not self.fit:
            return params
        kernel = whitening_filters(images, self.whitening)
        return {**params, "whitening": {"kernel": jnp.asarray(kernel)}}

    @nn.nowrap
    def flops(self, shape: tuple[int, int, int]) -> int:
        """Forward FLOPs of one (H, W, C) image: two per multiply-add of the convolutions, padding
        included, and of the head; nothing else."""
        height, width, channels = shape
        filters = 2 * self.whitening**2 * channels
        total = 2 * height * width * self.whitening**2 * channels * filters
        channels = filters
        for features in self.widths:
            total += 2 * height * width * 9 * channels * features
            height, width, channels = height // 2, width // 2, features
            total += 2 * height * width * 9 * features * features
        return total + 2 * channels * self.num_classes


def whitening_filters(images: np.ndarray, side: int, epsilon: float = 5e-4) -> np.ndarray:
    """Filters that map patches to uncorrelated values of unit variance, and their negatives.

    Args:
      images: f32[n, H, W, C].
      side: k, the side of the patches.
      epsilon: added to the variances, so that noise is not amplified.

    Returns:
      f32[k, k, C, 2 k k C]: eigenvectors of the patches' second moments, divided by the root
      of their eigenvalues, largest first.
    """
    patches = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(1, 2))
    shape = side, side, images.shape[-1]
    rows = np.moveaxis(patches, 3, -1).reshape(-1, np.prod(shape))
    values, vectors = np.linalg.eigh((rows.T @ rows).astype(np.float64) / len(rows))
    filters = (vectors / np.sqrt(values + epsilon))[:, ::-1]
    filters = np.concatenate([filters, -filters], axis=1)
    return filters.reshape(*shape, -1).astype(np.float32)
