"""The Vision Transformer (Dosovitskiy et al. 2021): an encoder over the patches of an image.

    from vision import vit
    model = vit.ViT(**vit.SIZES["s16"], num_classes=1000)
    params = model.init(jax.random.key(0), images)["params"]
    logits = model.apply({"params": params}, images)

With sine positions and mean pooling it is the plain ViT of Beyer et al. 2022; the defaults are the
original, with its class token.

Letters: B batch, H height, W width and C channels of an image; p side of a patch, N patches,
L positions (N, and one for a class token), D width of the model, K classes.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from common.errors import require
from common.nn import transformer
from common.nn.attention import sinusoids
from common.nn.layers import Dense, Dropout, Embedding, named
from common.nn.transformer import Transformer
from common.task import Table

Pooling = Literal["class", "mean"]


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


class ViT(Transformer, kw_only=True):
    """A Vision Transformer: images to logits.

    Attributes:
      num_classes: K.
      image_size: side of the images in pixels; learned positions need square images of this size.
      patch_size: p, the side of a patch in pixels.
      pooling: how an image becomes one vector: the final state of a learned token before the
        patches ("class"), or the mean over the patches, without that token ("mean").
      positions: a learned vector per position ("learned"), or fixed sinusoids of the row in half of
        the features and of the column in the others, none for the class token ("sine": Chen et al.
        2021, MoCo v3). With "sine", images may be of any size.
      Others: see `common.nn.transformer.Transformer`; the defaults are those of ViT-B/16.
    """

    num_classes: int
    image_size: int = 224
    patch_size: int = 16
    pooling: Pooling = "class"
    positions: Literal["learned", "sine"] = "learned"
    norm_eps: float = 1e-6

    @property
    def PARTITION(self) -> Table:
        """Where the parameters live; see `common.devices.mesh`."""
        rows = [(r"patch/kernel", (None, "embed"))]
        if self.pooling == "class":
            rows += [(r"class_token", (None, "embed"))]
        if self.positions == "learned":
            rows += [(r"position/embedding", (None, "embed"))]
        return (*rows, *transformer.PARTITION, (r"head/kernel", ("embed", None)))

    def setup(self):
        """Creates embeddings, blocks and the head."""
        super().setup()
        require(
            self.positions == "learned" or self.width % 4 == 0,
            f"config.model.width: {self.width} is not a multiple of 4, which sine positions need",
        )
        shared = {"dtype": self.dtype, "constrain": self.constrain}
        self.patch = Dense(self.width, names=(None, "embed"), **shared)
        if self.pooling == "class":
            zeros = nn.initializers.zeros
            self.class_token = self.param("class_token", zeros, (1, self.width), jnp.float32)
        if self.positions == "learned":
            rows = self._length((self.image_size, self.image_size))
            self.position = Embedding(rows, self.width, init_std=self.init_std, **shared)
        self.embedding_dropout = Dropout(self.dropout)
        # Initial logits are zero (as in big_vision): the first loss is log K, no class has a head
        # start, and noise from an untrained head does not reach the other parameters.
        init = nn.initializers.zeros
        self.head = Dense(self.num_classes, kernel_init=init, names=("embed", None), **shared)

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
            "takes any",
        )
        require(
            height % patch == 0 and width % patch == 0,
            f"config.model.patch_size: {patch} does not divide images of {height} x {width} pixels",
        )
        return height // patch, width // patch

    @nn.nowrap
    def _length(self, sides: tuple[int, int]) -> int:
        rows, columns = self._grid(*sides)
        return rows * columns + (self.pooling == "class")

    def _embed(self, images, train: bool):
        """Images f32[B, H, W, C] -> [B, L, D]."""
        batch, height, width, channels = images.shape
        (rows, columns), side = self._grid(height, width), self.patch_size
        # A matrix product over flattened patches: the equivalent strided convolution is slower on
        # CPU.
        x = images.reshape(batch, rows, side, columns, side, channels).swapaxes(2, 3)
        x = self.patch(x.reshape(batch, rows * columns, side * side * channels))
        x = named(self, "patches", x)
        if self.positions == "sine":
            x = x + sines(rows, columns, self.width, x.dtype)
        if self.pooling == "class":
            token = jnp.broadcast_to(self.class_token.astype(x.dtype), (batch, 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        if self.positions == "learned":
            x = x + self.position(jnp.arange(x.shape[1]))
        return self.constrain(self.embedding_dropout(x, train), "batch", None, None)

    def __call__(self, images, train: bool = False):
        """f32[B, H, W, C] -> logits f32[B, K].

        Raises:
          BadInput: if patches do not tile the images, or learned positions are of another size.
        """
        x = self._embed(images, train)
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        x = self.stack(x, positions, train=train)
        x = x[:, 0] if self.pooling == "class" else x.mean(axis=1)
        x = named(self, "features", self.constrain(x, "batch", None))
        logits = self.head(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @nn.nowrap
    def flops(self, shape: tuple[int, int, int]) -> int:
        """Forward FLOPs of one (H, W, C) image: those of `stack_flops`, the patch embedding and the
        head."""
        rows, columns = self._grid(*shape[:2])
        patches = rows * columns * self.patch_size**2 * shape[2] * self.width
        return self.stack_flops(self._length(shape[:2])) + 2 * (
            patches + self.width * self.num_classes
        )


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
