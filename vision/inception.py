"""InceptionV3 (Szegedy et al. 2016): blocks of parallel convolutional branches.

    from vision import inception
    model = inception.InceptionV3(num_classes=1000)
    variables = model.init(jax.random.key(0), images)            # params and batch_stats
    logits = model.apply(variables, images)

Designed for images of 299x299; the minimum is 75x75. Batch norms have biases but no scales: the
layer after the ReLU can learn them.

Letters: B batch, H height, W width, C channels, D pooled features, K classes.
"""

import math
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from common.errors import require
from common.nn.layers import Dense, Dropout, Dtype, Remat, identity, named, recomputed
from common.task import Table


class Conv(NamedTuple):
    """A convolution without bias, batch norm, ReLU."""

    width: int  # output channels
    window: tuple[int, int] = (1, 1)  # rows and columns
    stride: int = 1
    padding: str = "SAME"


class Pool(NamedTuple):
    """The mean of a window, excluding padding, or its maximum."""

    kind: Literal["mean", "max"]
    window: tuple[int, int]
    stride: int
    padding: str


# Layers in sequence. An inner tuple holds parallel convolutions, whose channels are concatenated.
Layers = tuple[Conv | Pool | tuple[Conv, ...], ...]

MEAN = Pool("mean", (3, 3), 1, "SAME")
MAX = Pool("max", (3, 3), 2, "VALID")


def _halving(width: int) -> Conv:
    return Conv(width, (3, 3), 2, "VALID")


def _plain(pooled: int) -> tuple[Layers, ...]:
    """The branches of a block at 35x35 positions."""
    return (
        (Conv(64),),
        (Conv(48), Conv(64, (5, 5))),
        (Conv(64), Conv(96, (3, 3)), Conv(96, (3, 3))),
        (MEAN, Conv(pooled)),
    )


def _factorized(width: int) -> tuple[Layers, ...]:
    """The same at 17x17 positions: a 7x7 convolution is factorized into 1x7 and 7x1."""
    row, column = Conv(width, (1, 7)), Conv(width, (7, 1))
    return (
        (Conv(192),),
        (Conv(width), row, Conv(192, (7, 1))),
        (Conv(width), column, row, column, Conv(192, (1, 7))),
        (MEAN, Conv(192)),
    )


def _expanded() -> tuple[Layers, ...]:
    """The same at 8x8 positions: 1x3 and 3x1 convolutions in parallel."""
    both = Conv(384, (1, 3)), Conv(384, (3, 1))
    return (
        (Conv(320),),
        (Conv(384), both),
        (Conv(448), Conv(384, (3, 3)), both),
        (MEAN, Conv(192)),
    )


def _auxiliary(rows: int, columns: int) -> Layers:
    """The layers between a block at these positions and the second head. Parameter shapes do not
    depend on the size: where fewer than 5x5 positions are left, the kernel extends into padding."""
    window = min(5, rows), min(5, columns)
    padding = "VALID" if min(rows, columns) >= 17 else "SAME"
    return Pool("mean", window, 3, "VALID"), Conv(128), Conv(768, (5, 5), 1, padding)


# Szegedy et al. 2016, table 1; the widths are those of the published weights.
STEM = (
    _halving(32),
    Conv(32, (3, 3), 1, "VALID"),
    Conv(64, (3, 3)),
    MAX,
    Conv(80),
    Conv(192, (3, 3), 1, "VALID"),
    MAX,
)
MIXED = (
    _plain(32),
    _plain(64),
    _plain(64),
    ((_halving(384),), (Conv(64), Conv(96, (3, 3)), _halving(96)), (MAX,)),
    _factorized(128),
    _factorized(160),
    _factorized(160),
    _factorized(192),
    (
        (Conv(192), _halving(320)),
        (Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), _halving(192)),
        (MAX,),
    ),
    _expanded(),
    _expanded(),
)
AUXILIARY = 7  # the block that feeds the second head, the last at 17x17 positions
LEAST = 75  # pixels per side, which leave one position at the end


class InceptionV3(nn.Module):
    """Stem, eleven blocks, global mean pooling, a dense head; in training, a second head.

    With `mutable=["intermediates"]`, `apply` also returns `stem_output`, `mixed_0`, …,
    `mixed_10` and `features`, f32[B, D]. In training, with `mutable=["auxiliary",
    "batch_stats"]`, it also returns the logits of the second head, {"auxiliary": {"logits":
    (f32[B, K],)}, …}, whose loss gets a weight such as 0.3 (Szegedy et al. 2015).

    Attributes:
      num_classes: K.
      auxiliary: whether there is a second head for training, after the last block at 17x17
        positions.
      dropout: dropout rate before the head; None is none. May be traced.
      dtype: dtype of the computation before the heads; None is that of the parameters.
      remat: what the backward pass recomputes to save memory: "none", all but the matrix products
        and convolutions ("dots"), or each branch from its input ("block").
      constrain: pins activations and gathered parameters to a mesh (`mesh.constrainer`).
    """

    num_classes: int
    auxiliary: bool = True
    dropout: float | None = None
    dtype: Dtype | None = None
    remat: Remat = "none"
    constrain: Callable = identity

    PARTITION: ClassVar[Table] = (
        (r".*/conv_\d+/kernel", (None, None, None, "embed")),
        (r"(auxiliary_)?head/kernel", ("embed", None)),
    )

    @nn.compact
    def __call__(self, images, train: bool = False):
        """f32[B, H, W, C] -> logits f32[B, K].

        With `train`, normalises by batch statistics, moves the running ones (`batch_stats`, if
        mutable) a hundredth of the way to them, and needs an rng "dropout" for dropout.

        Raises:
          BadInput: for images smaller than 75x75.
        """
        _check(images.shape[1:])
        x = self._branch()(STEM, self.dtype, name="stem")(images, train)
        x = named(self, "stem_output", self.constrain(x, "batch", None, None, None))
        for i, branches in enumerate(MIXED):
            names = (f"mixed_{i}_branch_{j}" for j in range(len(branches)))
            x = jnp.concatenate(
                [
                    self._branch()(layers, self.dtype, name=name)(x, train)
                    for layers, name in zip(branches, names, strict=True)
                ],
                axis=-1,
            )
            x = named(self, f"mixed_{i}", self.constrain(x, "batch", None, None, None))
            if i == AUXILIARY and self.auxiliary:
                self._second_head(x, train)
        x = Dropout(self.dropout)(named(self, "features", _mean(x)), train)
        return self._head("head", x)

    def _second_head(self, x, train: bool):
        if self.is_initializing() or (train and self.is_mutable_collection("auxiliary")):
            layers = _auxiliary(*x.shape[1:3])
            x = self._branch()(layers, self.dtype, name="auxiliary")(x, train)
            logits = self._head("auxiliary_head", _mean(x))
            if not self.is_initializing():
                self.sow("auxiliary", "logits", logits)

    @nn.nowrap
    def _branch(self) -> Callable:
        return recomputed(Branch, self.remat, 2)

    def _head(self, name: str, x):
        names = "embed", None
        return Dense(self.num_classes, names=names, constrain=self.constrain, name=name)(x)

    @nn.nowrap
    def flops(self, shape: tuple[int, int, int]) -> int:
        """Forward FLOPs of one (H, W, C) image: two per multiply-add of the convolutions, padding
        included, and of the head; nothing else. The second head, which runs only in training, does
        not count: a thousandth of the rest at 299x299."""
        _check(shape)
        total, shape = _flops(STEM, shape)
        for branches in MIXED:
            counts, shapes = zip(*(_flops(layers, shape) for layers in branches), strict=True)
            total += sum(counts)
            shape = *shapes[0][:2], sum(channels for _, _, channels in shapes)
        return total + 2 * shape[2] * self.num_classes


class Branch(nn.Module):
    """Layers in sequence; their convolutions are named `conv_0`, `conv_0_norm`, `conv_1`, ….

    Attributes:
      layers: the layers, in order.
      dtype: dtype of the computation.
    """

    layers: Layers
    dtype: str | None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """[B, H, W, C] -> [B, H', W', C']."""
        i = 0
        for layer in self.layers:
            if isinstance(layer, Pool):
                x = _pool(layer, x)
                continue
            convs = _parallel(layer)
            parts = [self._convolve(f"conv_{i + j}", c, x, train) for j, c in enumerate(convs)]
            x = jnp.concatenate(parts, axis=-1)
            i += len(parts)
        return x

    def _convolve(self, name: str, conv: Conv, x, train: bool):
        x = nn.Conv(
            features=conv.width,
            kernel_size=conv.window,
            strides=conv.stride,
            padding=conv.padding,
            use_bias=False,
            dtype=self.dtype,
            name=name,
        )(x)
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.99,
            epsilon=1e-3,
            use_scale=False,
            dtype=self.dtype,
            name=f"{name}_norm",
        )
        return nn.relu(norm(x))


def _parallel(layer: Conv | tuple[Conv, ...]) -> tuple[Conv, ...]:
    return (layer,) if isinstance(layer, Conv) else layer


def _pool(pool: Pool, x):
    strides = pool.stride, pool.stride
    if pool.kind == "max":
        return nn.max_pool(x, pool.window, strides, pool.padding)
    return nn.avg_pool(x, pool.window, strides, pool.padding, count_include_pad=False)


def _mean(x):
    """[B, H, W, C] -> [B, C], f32 or wider."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def _check(shape: tuple[int, int, int]) -> None:
    height, width = shape[:2]
    require(
        min(height, width) >= LEAST,
        f"config.model.module: InceptionV3 needs images of at least {LEAST}x{LEAST}, and these "
        f"are {height}x{width}: resize them",
    )


def _flops(layers: Layers, shape: tuple[int, int, int]) -> tuple[int, tuple[int, int, int]]:
    """FLOPs of layers in sequence, and their output shape."""
    total = 0
    for layer in layers:
        convs = () if isinstance(layer, Pool) else _parallel(layer)
        _, window, stride, padding = convs[0] if convs else layer
        cut = window if padding == "VALID" else (1, 1)
        rows, columns = (-(-(n - c + 1) // stride) for n, c in zip(shape, cut, strict=False))
        taps = sum(conv.width * math.prod(conv.window) for conv in convs)
        total += 2 * rows * columns * shape[2] * taps
        shape = rows, columns, sum(conv.width for conv in convs) or shape[2]
    return total, shape
