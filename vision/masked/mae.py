"""The masked autoencoder (He et al. 2022): a Vision Transformer over some patches of an image, and
a small one that predicts the pixels of all others.

    from vision.masked import mae, masking
    model = mae.MAE(**vit.SIZES["b16"], **mae.DECODER, channels=3)
    visible = masking.visible(keys, patches=196, count=49)
    params = model.init(jax.random.key(0), images, visible)["params"]
    pixels = model.apply({"params": params}, images, visible)

The encoder's parameters are those of `vision.vit.ViT` with a class token, under the same paths.

Letters: B batch, H height, W width and C channels of an image; p side of a patch, N patches, of
which V are visible; L positions (V, and one for the class token), D width of the encoder, E of the
decoder.
"""

import flax.linen as nn
import jax.numpy as jnp

from common.errors import require
from common.nn.layers import Dense, Embedding, named, repeated, reshaped
from common.nn.transformer import Transformer
from common.task import Table
from vision.vit import PatchTransformer, sines

EPSILON = 1e-6  # added to the variance of a patch's pixels

# He et al. 2022, for every size of the encoder.
DECODER = {"decoder_width": 512, "decoder_layers": 8, "decoder_heads": 16, "decoder_hidden": 2048}
# Fields of `Transformer` that the decoder has in common with the encoder.
SHARED = (
    *("qk_norm", "pre_norm", "norm", "norm_eps", "bias", "activation", "gated", "dropout"),
    *("attention_dropout", "init_std", "implementation", "dtype", "remat", "scan", "constrain"),
)


class MAE(PatchTransformer, kw_only=True):
    """A masked autoencoder: images, and their visible patches, to the pixels of all patches.

    Attributes:
      channels: C.
      decoder_width: E.
      decoder_layers, decoder_heads, decoder_hidden: blocks, attention heads and width inside the
        MLP of the decoder.
      normalised: whether predictions are pixels from which the mean of their patch is subtracted,
        divided by its standard deviation.
      Others: see `vision.vit.PatchTransformer`; `kv_heads` and `head_width` are the encoder's. With
        learned positions, the decoder has learned ones, too.
    """

    channels: int
    decoder_width: int = 512
    decoder_layers: int = 8
    decoder_heads: int = 16
    decoder_hidden: int = 2048
    normalised: bool = True

    @property
    def PARTITION(self) -> Table:
        """Where the parameters live; see `common.devices.mesh`."""
        rows = [("decoder_embed/kernel", ("embed", None)), ("mask_token", (None, "embed"))]
        if self.positions == "learned":
            rows += [("decoder_position/embedding", (None, "embed"))]
        return (*rows, *super().PARTITION, ("pixels/kernel", ("embed", None)))

    def setup(self):
        """Creates the encoder and the decoder."""
        super().setup()
        shared = {"dtype": self.dtype, "constrain": self.constrain}
        init = nn.initializers.normal(self.init_std)
        dense = {"kernel_init": init, "names": ("embed", None), **shared}
        self.decoder_embed = Dense(self.decoder_width, **dense)
        self.mask_token = self.param("mask_token", init, (1, self.decoder_width), jnp.float32)
        if self.positions == "learned":
            rows = self._length((self.image_size, self.image_size))
            table = Embedding(rows, self.decoder_width, init_std=self.init_std, **shared)
            self.decoder_position = table
        self.decoder = self.make_decoder()
        self.pixels = Dense(self.patch_size**2 * self.channels, **dense)

    def _check(self):
        super()._check()
        require(
            not self.normalised or self.patch_size**2 * self.channels > 1,
            "config.model.normalised: a patch of one grey pixel has no deviation: set "
            "it to false, or config.model.patch_size to more",
        )
        for name, size in self._decoder_sizes().items():
            require(size > 0, f"config.model.decoder_{name}: {size} is not positive")
        width, heads = self.decoder_width, self.decoder_heads
        require(
            width % heads == 0,
            f"config.model.decoder_heads: {heads} does not divide the decoder_width {width}",
        )
        require(
            self.positions == "learned" or width % 4 == 0,
            f"config.model.decoder_width: {width} is not a multiple of 4, as sine positions need",
        )

    @nn.nowrap
    def _decoder_sizes(self) -> dict[str, int]:
        return {
            "width": self.decoder_width,
            "layers": self.decoder_layers,
            "heads": self.decoder_heads,
            "hidden": self.decoder_hidden,
        }

    @nn.nowrap
    def make_decoder(self, **where) -> Transformer:
        """The decoder's blocks."""
        shared = {name: getattr(self, name) for name in SHARED}
        return Transformer(**self._decoder_sizes(), **shared, **where)

    def __call__(self, images, visible=None, train: bool = False):
        """f32[B, H, W, C] -> predicted pixels f32[B, N, p p C] of every patch; see `targets`.

        Exposes the mean of the visible patches' final states as `features`, [B, D].

        Args:
          images, visible, train: as in `encode`.

        Raises:
          BadInput: if patches do not tile the images, or learned positions are of another size.
        """
        x = self.encode(images, visible, train)
        features = self.constrain(x[:, 1:].mean(axis=1), "batch", None)
        named(self, "features", features)
        x = self.decoder_embed(x)
        rows, columns = self._grid(*images.shape[1:3])
        first, patches = x[:, :1], x[:, 1:]
        if visible is not None:
            patches = unshuffled(patches, visible, self.mask_token.astype(x.dtype), rows * columns)
        if self.positions == "sine":
            patches = patches + sines(rows, columns, self.decoder_width, x.dtype)
        x = jnp.concatenate([first, patches], axis=1)
        if self.positions == "learned":
            x = x + self.decoder_position(jnp.arange(x.shape[1]))
        x = self.constrain(x, "batch", None, None)
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        x = self.decoder.stack(x, positions, train=train)
        x = self.pixels(x[:, 1:])
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    @nn.nowrap
    def targets(self, images):
        """What is to be predicted: f32[B, N, p p C]."""
        x = self.patchified(images)
        return (x - _mean(x)) / _deviation(x) if self.normalised else x

    @nn.nowrap
    def reconstructed(self, images, predicted, visible):
        """Images f32[B, H, W, C] whose hidden patches are the predicted ones.

        Where predictions are normalised, the mean and the deviation of a hidden patch are those
        that it has in the image: they are shown, not predicted.

        Args:
          images: f32[B, H, W, C].
          predicted: f32[B, N, p p C].
          visible: i32[B, V].
        """
        if self.normalised:
            x = self.patchified(images)
            predicted = predicted * _deviation(x) + _mean(x)
        return self._with_hidden(images, predicted, visible)

    @nn.nowrap
    def masked(self, images, visible):
        """Images f32[B, H, W, C] whose hidden patches are 0; arguments as in `reconstructed`."""
        return self._with_hidden(images, 0.0, visible)

    @nn.nowrap
    def _with_hidden(self, images, values, visible):
        x = self.patchified(images)
        x = jnp.where(is_visible(visible, x.shape[1])[..., None], x, values)
        batch, height, width, channels = images.shape
        (rows, columns), side = self._grid(height, width), self.patch_size
        x = reshaped(x, batch, rows, columns, side, side, channels).swapaxes(2, 3)
        return reshaped(x, *images.shape)

    @nn.nowrap
    def patches(self, shape: tuple[int, int, int]) -> int:
        """N of an (H, W, C) image."""
        rows, columns = self._grid(*shape[:2])
        return rows * columns

    @nn.nowrap
    def flops(self, shape: tuple[int, int, int], visible: int) -> int:
        """Forward FLOPs of one (H, W, C) image with V = `visible` visible patches: those of
        `stack_flops` of both stacks, and of the layers before and behind them."""
        count, tokens = self.patches(shape), 1 + visible
        layers = tokens * self.width + count * self.patch_size**2 * shape[2]
        decoder = self.make_decoder(parent=None).stack_flops(1 + count)
        encoder = self.patch_flops(shape, visible) + self.stack_flops(tokens)
        return encoder + decoder + 2 * layers * self.decoder_width


def _mean(x):
    return x.mean(axis=-1, keepdims=True)


def _deviation(x):
    return jnp.sqrt(x.var(axis=-1, keepdims=True, ddof=1) + EPSILON)


def _matches(visible, patches: int):
    """bool[B, N, V]: whether patch n is the v-th visible one."""
    return visible[:, None, :] == jnp.arange(patches, dtype=visible.dtype)[None, :, None]


def is_visible(visible, patches: int):
    """bool[B, N] of the visible patches i32[B, V] among N."""
    return _matches(visible, patches).any(axis=-1)


def unshuffled(x, visible, other, patches: int):
    """[B, N, E]: the states of visible patches where they belong, and `other` in all other places.

    Args:
      x: [B, V, E].
      visible: i32[B, V].
      other: [1, E].
      patches: N.
    """
    places = jnp.argmax(_matches(visible, patches), axis=-1)
    moved = jnp.take_along_axis(x, places[..., None], axis=1)
    other = repeated(other, x, moved.shape)
    return jnp.where(is_visible(visible, patches)[..., None], moved, other)
