"""The Vision Transformer (Dosovitskiy et al. 2021): an encoder over the patches of an image.

    from vision import vit
    model = vit.ViT(**vit.SIZES["s16"], num_classes=1000)
    params = model.init(jax.random.key(0), images)["params"]
    logits = model.apply({"params": params}, images)

With sine positions and mean pooling it is the plain ViT of Beyer et al. 2022; the defaults are the
original, with its class token.

Register tokens, LayerScale and both poolings at once make DINOv2 (Oquab et al. 2024); a
distillation token makes DeiT (Touvron et al. 2021).

Letters: B batch, H height, W width and C channels of an image; p side of a patch, N patches,
L positions (N, and one for every other token), D width of the model, K classes.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from common.errors import require
from common.nn import transformer
from common.nn.layers import Dense, Dropout, Embedding, looked_up, named, repeated, reshaped
from common.nn.rope import sinusoids
from common.nn.transformer import Transformer
from common.task import Table

Pooling = Literal["class", "mean", "class_mean", "patch_mean"]


def _size(layers: int, width: int, patch_size: int) -> dict:
    shape = {"width": width, "layers": layers, "heads": width // 64, "hidden": 4 * width}
    return {"patch_size": patch_size, **shape}


# Dosovitskiy et al. 2021 and, below base, Touvron et al. 2021.
SIZES = {
    "ti16": _size(12, 192, 16),
    "s16": _size(12, 384, 16),
    "s32": _size(12, 384, 32),
    "b16": _size(12, 768, 16),
    "b32": _size(12, 768, 32),
    "l16": _size(24, 1024, 16),
}


class PatchTransformer(Transformer, kw_only=True):
    """A transformer over the patches of an image: the base of classifiers and of autoencoders.

    Attributes:
      image_size: side of the images in pixels; learned positions need square images of this size.
      patch_size: p, the side of a patch in pixels.
      positions: a learned vector per position ("learned"), or fixed sinusoids of the row in half of
        the features and of the column in the others, none for the class token ("sine": Chen et al.
        2021, MoCo v3). With "sine", images may be of any size.
      Others: see `common.nn.transformer.Transformer`; the defaults are those of ViT-B/16.
    """

    image_size: int = 224
    patch_size: int = 16
    positions: Literal["learned", "sine"] = "learned"
    norm_eps: float = 1e-6

    @property
    def PARTITION(self) -> Table:
        """Where the parameters live; see `common.devices.mesh`."""
        rows = [(r"patch/kernel", (None, "embed"))]
        rows += [(name, (None, "embed")) for name in self._tokens()]
        if self.positions == "learned":
            rows += [(r"position/embedding", (None, "embed"))]
        return (*rows, *transformer.PARTITION)

    def setup(self):
        """Creates embeddings and blocks."""
        super().setup()
        require(
            self.positions == "learned" or self.width % 4 == 0,
            f"config.model.width: {self.width} is not a multiple of 4, which sine positions need",
        )
        shared = {"dtype": self.dtype, "constrain": self.constrain}
        self.patch = Dense(self.width, names=(None, "embed"), **shared, **self.patch_options())
        for name, rows in self._tokens().items():
            shape = rows, self.width
            token = self.param(name, nn.initializers.zeros, shape, jnp.float32)
            setattr(self, name, token)
        if self.positions == "learned":
            rows = self._length((self.image_size, self.image_size))
            rows -= self._tokens().get("register_tokens", 0)
            self.position = Embedding(rows, self.width, init_std=self.init_std, **shared)
        self.embedding_dropout = Dropout(self.dropout)

    @nn.nowrap
    def patch_options(self) -> dict:
        """Additional fields of the patch embedding, set by a subclass."""
        return {}

    @nn.nowrap
    def _tokens(self) -> dict[str, int]:
        """Learned tokens before the patches, in order: {parameter: rows}."""
        return {"class_token": 1}

    @nn.nowrap
    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches."""
        size, patch = self.image_size, self.patch_size
        for name, value in (("image_size", size), ("patch_size", patch)):
            require(value > 0, f"config.model.{name}: {value} is not positive")
        require(
            self.positions == "sine" or height == width == size,
            f"config.model.image_size: {size}, but the images are {height} x {width} pixels; "
            "learned positions need square images of one size, config.model.positions='sine' "
            f"takes any whose sides are multiples of config.model.patch_size, which is {patch}",
        )
        require(
            height % patch == 0 and width % patch == 0,
            f"config.model.patch_size: {patch} does not divide images of {height} x {width} "
            "pixels; their sides must be multiples of it",
        )
        return height // patch, width // patch

    @nn.nowrap
    def _length(self, sides: tuple[int, int]) -> int:
        rows, columns = self._grid(*sides)
        return rows * columns + sum(self._tokens().values())

    @nn.nowrap
    def patchified(self, images):
        """f32[B, H, W, C] -> [B, N, p p C]: the pixels of each patch, in order of rows."""
        batch, height, width, channels = images.shape
        (rows, columns), side = self._grid(height, width), self.patch_size
        x = reshaped(images, batch, rows, side, columns, side, channels).swapaxes(2, 3)
        return reshaped(x, batch, rows * columns, side * side * channels)

    def _embed(self, images, train: bool, visible=None):
        """Images f32[B, H, W, C] -> [B, L, D].

        Args:
          images, train: as of the model.
          visible: i32[B, V], the patches to embed, in whatever order; None is all.
        """
        x, batch, tokens = self.patchified(images), images.shape[0], self._tokens()
        if visible is not None:
            x = jnp.take_along_axis(x, visible[..., None], axis=1)
        # A matrix product over flattened patches: the equivalent strided convolution is slower on
        # CPU.
        x = named(self, "patches", self.patch(x))
        if self.positions == "sine":
            waves = sines(*self._grid(*images.shape[1:3]), self.width, x.dtype)
            x = x + (waves if visible is None else looked_up(waves, visible))
        tokens = {
            name: repeated(getattr(self, name).astype(x.dtype), x, (batch, count, self.width))
            for name, count in tokens.items()
        }
        registers = tokens.pop("register_tokens", None)
        if tokens:
            x = jnp.concatenate([*tokens.values(), x], axis=1)
        if self.positions == "learned":
            numbers = jnp.arange(x.shape[1])
            if visible is not None:
                first = repeated(numbers[: len(tokens)], visible, (batch, len(tokens)))
                numbers = jnp.concatenate([first, len(tokens) + visible], axis=1)
            x = x + self.position(numbers)
        if registers is not None:
            x = jnp.concatenate([x[:, : len(tokens)], registers, x[:, len(tokens) :]], axis=1)
        return self.constrain(self.embedding_dropout(x, train), "batch", None, None)

    def encode(self, images, visible=None, train: bool = False):
        """f32[B, H, W, C] -> the final state of every position, [B, L, D].

        Args:
          images: f32[B, H, W, C].
          visible: i32[B, V], the patches to encode, counted by rows, each once; None is all.
          train: whether dropout is active.

        Raises:
          BadInput: if patches do not tile the images, or learned positions are of another size.
        """
        x = self._embed(images, train, visible)
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        return self.stack(x, positions, train=train)

    @nn.nowrap
    def patch_flops(self, shape: tuple[int, int, int], visible: int | None = None) -> int:
        """Forward FLOPs of the patch embedding of one (H, W, C) image, of V = `visible` patches or
        of all."""
        rows, columns = self._grid(*shape[:2])
        patches = rows * columns if visible is None else visible
        return 2 * patches * self.patch_size**2 * shape[2] * self.width


class ViT(PatchTransformer, kw_only=True):
    """A Vision Transformer: images to logits.

    Attributes:
      num_classes: K.
      pooling: how an image becomes one vector: the final state of a learned token before the
        patches ("class"), the mean over the patches, without that token ("mean"), both, one behind
        the other ("class_mean"), or the mean over the patches of a model that has the token
        ("patch_mean": He et al. 2022).
      head_norm: whether that vector passes a batch norm without scale and bias, as where a linear
        head alone is trained (He et al. 2022).
      registers: number of learned tokens between class token and patches, without positions, which
        no head reads (Darcet et al. 2024).
      distilled: whether a distillation token follows the class token, with a head of its own
        (Touvron et al. 2021); logits are the mean of both heads', in training as well. Needs the
        pooling "class".
      layer_scale: what LayerScale starts at (Touvron et al. 2021, CaiT); None is none.
      Others: see `PatchTransformer`.
    """

    num_classes: int
    pooling: Pooling = "class"
    head_norm: bool = False
    registers: int = 0
    distilled: bool = False
    layer_scale: float | None = None

    @property
    def PARTITION(self) -> Table:
        """Where the parameters live; see `common.devices.mesh`."""
        heads = ["head"] + ["distillation_head"] * self.distilled
        heads = [(f"{name}/kernel", ("embed", None)) for name in heads]
        return (*super().PARTITION, *heads)

    def setup(self):
        """Creates embeddings, blocks and the head."""
        require(self.registers >= 0, f"config.model.registers: {self.registers} is negative")
        require(
            not self.distilled or self.pooling == "class",
            f"config.model.distilled: pooling must be 'class', not {self.pooling!r}",
        )
        super().setup()
        if self.head_norm:
            plain = {"use_scale": False, "use_bias": False, "momentum": 0.9, "epsilon": 1e-6}
            self.head_batch_norm = nn.BatchNorm(dtype=self.dtype, **plain)
        shared = {"dtype": self.dtype, "constrain": self.constrain}
        # Initial logits are zero (as in big_vision): the first loss is log K, no class has a head
        # start, and noise from an untrained head does not reach the other parameters.
        init = nn.initializers.zeros
        shared |= {"kernel_init": init, "names": ("embed", None)}
        self.head = Dense(self.num_classes, **shared)
        if self.distilled:
            self.distillation_head = Dense(self.num_classes, **shared)

    @nn.nowrap
    def block_options(self, index: int) -> dict:
        """LayerScale of `Block`."""
        del index
        return {"layer_scale": self.layer_scale}

    @nn.nowrap
    def _tokens(self) -> dict[str, int]:
        """Learned tokens before the patches, in order: {parameter: rows}."""
        rows = {
            "class_token": self.pooling != "mean",
            "distillation_token": self.distilled,
            "register_tokens": self.registers,
        }
        return {name: int(count) for name, count in rows.items() if count}

    def __call__(self, images, train: bool = False):
        """f32[B, H, W, C] -> logits f32[B, K]; raises as `encode`."""
        x = self.encode(images, train=train)
        patches = x[:, sum(self._tokens().values()) :]
        parts = [x[:, 0]] if self.pooling in ("class", "class_mean") else []
        parts += [patches.mean(axis=1)] if self.pooling != "class" else []
        pooled = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
        pooled = named(self, "features", self.constrain(pooled, "batch", None))
        if self.head_norm:
            pooled = self.head_batch_norm(pooled, use_running_average=not train)
        logits = self.head(pooled)
        if self.distilled:
            distilled = self.distillation_head(self.constrain(x[:, 1], "batch", None))
            logits = (logits + distilled) / 2
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @nn.nowrap
    def flops(self, shape: tuple[int, int, int]) -> int:
        """Forward FLOPs of one (H, W, C) image: those of `stack_flops`, the patch embedding and the
        head."""
        inputs = self.width * (1 + (self.distilled or self.pooling == "class_mean"))
        stack = self.stack_flops(self._length(shape[:2]))
        return stack + self.patch_flops(shape) + 2 * inputs * self.num_classes


def sines(rows: int, columns: int, width: int, dtype=jnp.float32):
    """Fixed 2-D positions, [rows * columns, D]: D / 2 sinusoids of the row, then of the column.

    As in MoCo v3 (Chen et al. 2021), but sines and cosines alternate, an order to which later
    layers are indifferent. Those of Beyer et al. 2022 end at a slightly longer wavelength.

    Args:
      rows, columns: rows and columns of patches.
      width: D, a multiple of 4.
      dtype: dtype of the result; the sinusoids are computed in f32 or wider.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    row, column = jnp.indices((rows, columns)).reshape(2, -1)
    waves = [sinusoids(at, width // 2, wide) for at in (row, column)]
    return jnp.concatenate(waves, axis=-1).astype(dtype)


def resized_positions(
    table,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    extra_tokens: int = 1,
    antialias: bool = False,
):
    """Learned positions for images of another size, by bicubic interpolation: f32[L, D].

    Without `antialias` it interpolates as the code of DINO, DeiT and DINOv2 does, that is as
    PyTorch (Keys 1981 with a = -0.75, edges repeated); with it, as that of DINOv2 with registers:
    a = -0.5, and a wider kernel where the grid shrinks, cut off at the edges.

    Args:
      table: f32[extra_tokens + rows * columns, D], `position/embedding`.
      old_grid, new_grid: rows and columns of patches, before and after.
      extra_tokens: how many first positions are not of patches; they stay.
      antialias: see above.

    Raises:
      BadInput: if the table is not of the old grid, or a side of the new one is not positive.
    """
    table = np.asarray(table)
    (rows, columns), (patches, width) = old_grid, (len(table) - extra_tokens, table.shape[-1])
    require(
        patches == rows * columns,
        f"position/embedding: {len(table)} rows, and a grid of {rows} x {columns} patches needs "
        f"{rows * columns + extra_tokens}",
    )
    require(min(new_grid) > 0, f"position/embedding: no grid has {new_grid[0]} x {new_grid[1]}")
    by_row, by_column = (
        _bicubic(old, new, antialias) for old, new in zip(old_grid, new_grid, strict=True)
    )
    grid = table[extra_tokens:].reshape(rows, columns, width).astype(np.float64)
    grid = np.einsum("ir,jc,rcd->ijd", by_row, by_column, grid, optimize=True)
    grid = grid.reshape(-1, width).astype(table.dtype)
    return np.concatenate([table[:extra_tokens], grid])


def _bicubic(old: int, new: int, antialias: bool) -> np.ndarray:
    """f64[new, old]: the weights of the old samples in each new one; a row's sum is 1."""
    a, stretch = (-0.5, max(old / new, 1.0)) if antialias else (-0.75, 1.0)
    # Pixel centres are at halves. Samples outside are the edge's, or have no weight.
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    samples = np.arange(old) if antialias else np.arange(-2, old + 2)
    x = np.abs(centres[:, None] - samples) / stretch
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    if antialias:
        return weights / weights.sum(axis=1, keepdims=True)
    inside = np.eye(old)[samples.clip(0, old - 1)]
    return weights @ inside
