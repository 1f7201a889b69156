"""The Vision Transformer (Dosovitskiy et al. 2021): an encoder over the patches of an image.

    from vision import vit
    model = vit.ViT(**vit.SIZES["s16"], num_classes=1000)
    params = model.init(jax.random.key(0), images)["params"]
    logits = model.apply({"params": params}, images)

Sine positions and mean pooling make the plain ViT of Beyer et al. 2022; the defaults are the
original with its class token.

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
    """Images to logits.

    Attributes:
      num_classes: K.
      image_size: side of the images, in pixels, that learned positions are for.
      patch_size: p, in pixels.
      pooling: how an image becomes one vector: "class", the last state of a learned token in front
        of the patches, or "mean" of the patches, and no such token.
      positions: "learned", a vector for each place; or "sine", fixed waves along rows in half of
        the columns and along columns in the others (Chen et al. 2021, MoCo v3), nothing for the
        class token. With sines, images may be of any size.
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
        """Makes embeddings, blocks and the head."""
        super().setup()
        require(
            self.positions == "learned" or self.width % 4 == 0,
            f"config.model.width: {self.width} is no multiple of 4, which sine positions need",
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
        # Logits are zero at first (as in big_vision): the first loss is log K, no class begins
        # ahead, and noise of an untrained head does not reach the other parameters.
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
            f"config.model.image_size: {size}, and the images are {height} x {width} pixels; "
            "learned positions are for one size of square images, config.model.positions='sine' "
            "for any",
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
        # A matrix product over patches laid flat: a convolution with this stride does the same, and
        # is slower on CPU.
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
          BadInput: if patches do not tile the images, or learned positions are for another size.
        """
        x = self._embed(images, train)
        places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        x = self.stack(x, places, train=train)
        x = x[:, 0] if self.pooling == "class" else x.mean(axis=1)
        x = named(self, "features", self.constrain(x, "batch", None))
        logits = self.head(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @nn.nowrap
    def flops(self, shape: tuple[int, int, int]) -> int:
        """FLOPs of one image of (H, W, C) forward: those of `stack_flops`, of the embedding of
        patches and of the head."""
        rows, columns = self._grid(*shape[:2])
        patches = rows * columns * self.patch_size**2 * shape[2] * self.width
        return self.stack_flops(self._length(shape[:2])) + 2 * (
            patches + self.width * self.num_classes
        )


def sines(rows: int, columns: int, width: int, dtype=jnp.float32):
    """Fixed positions on a grid, [rows * columns, D]: waves of the row, D / 2, and of the column.

    Those of MoCo v3 (Chen et al. 2021) in another order, which nothing behind can tell: sines and
    cosines take turns. Beyer et al. 2022 end at a wavelength a little longer.

    Args:
      rows, columns: of patches.
      width: D, a multiple of 4.
      dtype: of the result; the waves are computed in f32 or wider.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    row, column = jnp.indices((rows, columns)).reshape(2, -1)
    waves = [sinusoids(at, width // 2, wide) for at in (row, column)]
    return jnp.concatenate(waves, axis=-1).astype(dtype)
