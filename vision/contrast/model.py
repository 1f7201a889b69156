"""Two towers, of pictures and of texts, whose unit vectors lie in one space: CLIP (Radford et al.
2021), SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025).

    from vision.contrast import model
    towers = model.Towers(**model.SIZES["clip_b32"])
    params = towers.init(jax.random.key(0), images, tokens)["params"]
    pictures, texts, scale, bias = towers.apply({"params": params}, images, tokens, segments)
    scores = scale * pictures @ texts.T                   # + bias, if there is one

The picture's tower is our ViT, the text's our transformer; each is a module of its own, so that
parameters of an image classifier fit below `image/`.

Letters: B batch, H height, W width and C channels of an image, L positions of a text; D width of a
tower, F width inside its MLP, E width of the shared space, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.errors import require
from common.nn.attention import Implementation
from common.nn.blocks import Activation
from common.nn.layers import Dtype, Remat, identity, padded
from common.task import Table
from vision.contrast.towers import ImagePooling, ImageTower, TextPooling, TextTower


def _clip(layers: int, width: int, patch_size: int, text_width: int, shared: int) -> dict:
    return {
        "vocab_size": 49408,
        "patch_size": patch_size,
        "image_layers": layers,
        "image_width": width,
        "image_heads": width // 64,
        "image_hidden": 4 * width,
        "text_width": text_width,
        "text_heads": text_width // 64,
        "text_hidden": 4 * text_width,
        "vector_width": shared,
        **CLIP,
    }


# What makes a model one of these kinds, whatever its size.
CLIP = {
    "max_length": 77,
    "image_pooling": "class",
    "image_norm": True,
    "patch_bias": False,
    "text_pooling": "end",
    "causal": True,
    "image_projection": True,
    "projection_bias": False,
    "activation": "quick_gelu",
    "norm_eps": 1e-5,
    "temperature": 0.07,
    "max_scale": 100.0,
    "score_bias": False,
}
SIGLIP = {
    "max_length": 64,
    "image_pooling": "attention",
    "image_norm": False,
    "patch_bias": True,
    "text_pooling": "last",
    "causal": False,
    "image_projection": False,
    "projection_bias": True,
    "activation": "gelu_tanh",
    "norm_eps": 1e-6,
    "temperature": 0.1,
    "max_scale": None,
    "score_bias": True,
}
SIZES = {
    "clip_b32": _clip(12, 768, 32, 512, 512),
    "clip_b16": _clip(12, 768, 16, 512, 512),
    "clip_l14": _clip(24, 1024, 14, 768, 768),
    "siglip_b16": {"vocab_size": 32000, "vector_width": 768, **SIGLIP},
    "siglip2_b16": {"vocab_size": 256000, "vector_width": 768, **SIGLIP},
}


class Vectors(NamedTuple):
    """What a batch of pictures with texts becomes.

    Attributes:
      images, texts: f32[B, E], of length 1.
      scale: f32[], the inverse of the temperature, by which their products are multiplied.
      bias: f32[], which is then added; None if the model has none.
    """

    images: jax.Array
    texts: jax.Array
    scale: jax.Array
    bias: jax.Array | None


@jax.custom_vjp
def at_most(x, limit):
    """The minimum of two numbers f32[]. At the limit and above it, a gradient that would move `x`
    further is 0, and one that would move it back is that of the identity. An optimizer's momentum
    may still carry `x` above the limit, where one that is clipped after every step cannot be."""
    return jnp.minimum(x, limit)


def _at_most_backward(exceeds, gradient):
    # Descent moves against the gradient.
    return jnp.where(exceeds & (gradient < 0), 0.0, gradient), None


at_most.defvjp(lambda x, limit: (jnp.minimum(x, limit), x >= limit), _at_most_backward)


class Towers(nn.Module):
    """Pictures and texts to unit vectors in one space, with a learned temperature and bias.

    Attributes:
      vocab_size: V.
      vector_width: E, the width of the shared space.
      image_size, patch_size: sides of a picture and of its patches in pixels.
      image_width, image_layers, image_heads, image_hidden: D, blocks, heads and F of the pictures'.
      image_pooling: "class", "mean" or "attention"; see `ImageTower`.
      image_norm: whether a norm stands before the first block of the pictures' tower (CLIP).
      image_projection: whether the pictures' tower ends in a projection; without one its width is
        E.
      patch_bias: whether the patch embedding has a bias.
      max_length: the most tokens of a text.
      text_width, text_layers, text_heads, text_hidden: of the texts' tower.
      text_pooling: "end", "last" or "mean"; see `TextTower`.
      causal: whether a token of a text sees only earlier ones.
      projection_bias: whether the projection of the texts has a bias.
      temperature: at which training starts; the model learns the logarithm of its inverse. May be
        traced.
      max_scale: the largest inverse temperature, beyond which it is neither used nor learned; 100
        is CLIP's, and None, no limit, SigLIP's. May be traced.
      score_bias: whether scores have a learned bias (SigLIP).
      bias_start: what it starts at. May be traced.
      locked: a tower that is not trained: it gets no gradient, and no dropout. "image" is LiT (Zhai
        et al. 2022), with the pictures' tower of `config.init.path`, which needs no projection;
        "text" locks the other. Name its parameters in config.optim.freeze, too, so that decay
        leaves them alone.
      activation, norm_eps, dropout, attention_dropout, init_std, implementation, dtype, remat,
      scan, constrain: of both towers; see `common.nn.transformer.Transformer`.
    """

    vocab_size: int
    vector_width: int = 512
    image_size: int = 224
    patch_size: int = 16
    image_width: int = 768
    image_layers: int = 12
    image_heads: int = 12
    image_hidden: int = 3072
    image_pooling: ImagePooling = "class"
    image_norm: bool = False
    image_projection: bool = True
    patch_bias: bool = True
    max_length: int = 64
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_hidden: int = 3072
    text_pooling: TextPooling = "end"
    causal: bool = False
    projection_bias: bool = False
    temperature: float = 0.07
    max_scale: float | None = None
    score_bias: bool = False
    bias_start: float = -10.0
    locked: Literal["none", "image", "text"] = "none"
    activation: Activation = "gelu"
    norm_eps: float = 1e-6
    dropout: float | None = None
    attention_dropout: float | None = None
    init_std: float = 0.02
    implementation: Implementation | None = None
    dtype: Dtype | None = None
    remat: Remat = "none"
    scan: bool = False
    constrain: Callable = identity

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        towers = {"image": self.image_tower(parent=None), "text": self.text_tower(parent=None)}
        return tuple(
            (f"{name}/{row}", names)
            for name, tower in towers.items()
            for row, names in tower.PARTITION
        )

    @nn.nowrap
    def _shared(self) -> dict[str, Any]:
        return {
            "activation": self.activation,
            "norm_eps": self.norm_eps,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "init_std": self.init_std,
            "implementation": self.implementation,
            "dtype": self.dtype,
            "remat": self.remat,
            "scan": self.scan,
            "constrain": self.constrain,
        }

    @nn.nowrap
    def image_tower(self, **where) -> ImageTower:
        """The pictures' tower, by itself outside of `setup`."""
        return ImageTower(
            vector_width=self.vector_width,
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.image_width,
            layers=self.image_layers,
            heads=self.image_heads,
            hidden=self.image_hidden,
            pooling=self.image_pooling,
            norm_before=self.image_norm,
            projection=self.image_projection,
            patch_bias=self.patch_bias,
            **self._shared(),
            **where,
        )

    @nn.nowrap
    def text_tower(self, **where) -> TextTower:
        """The texts' tower, by itself outside of `setup`."""
        return TextTower(
            vocab_size=self.vocab_size,
            vector_width=self.vector_width,
            max_length=self.max_length,
            width=self.text_width,
            layers=self.text_layers,
            heads=self.text_heads,
            hidden=self.text_hidden,
            pooling=self.text_pooling,
            causal=self.causal,
            projection_bias=self.projection_bias,
            **self._shared(),
            **where,
        )

    def setup(self):
        """Creates the towers, and what their products are scaled by."""
        sizes = {
            "image": (self.image_width, self.image_heads),
            "text": (self.text_width, self.text_heads),
        }
        for tower, (width, heads) in sizes.items():
            require(
                heads > 0 and width % heads == 0,
                f"config.model.{tower}_heads: {heads} does not divide the width {width}",
            )
        require(self.vector_width > 0, f"config.model.vector_width: {self.vector_width} is no size")
        require(
            self.image_projection or self.image_width == self.vector_width,
            f"config.model.image_projection: without one, vectors have the width of the pictures' "
            f"tower, {self.image_width}, and config.model.vector_width is {self.vector_width}",
        )
        # A traced one was checked before it was traced.
        known = lambda value: isinstance(value, int | float)
        start, most = self.temperature, self.max_scale
        for name, value in (("temperature", start), ("max_scale", most)):
            positive = not known(value) or value > 0
            require(positive, f"config.model.{name}: {value} is not positive")
        require(
            not (known(start) and known(most)) or start * most >= 1,
            f"config.model.temperature: {start} is less than 1 / config.model.max_scale, which is "
            f"{most}",
        )
        self.image, self.text = self.image_tower(), self.text_tower()
        scale = lambda key, shape: jnp.full(shape, -jnp.log(jnp.float32(self.temperature)))
        self.logit_scale = self.param("logit_scale", scale, (1,))
        if self.score_bias:
            bias = nn.initializers.constant(self.bias_start)
            self.logit_bias = self.param("logit_bias", bias, (1,), jnp.float32)

    def encode_images(self, images, train: bool = False):
        """f32[B, H, W, C] -> f32[B, E], of length 1."""
        return self._unit("image", self.image(images, train and self.locked != "image"))

    def encode_texts(self, tokens, segments=None, train: bool = False):
        """i32[B, L] -> f32[B, E], of length 1; arguments as in `TextTower`."""
        train = train and self.locked != "text"
        return self._unit("text", self.text(tokens, segments, train))

    def _unit(self, tower: str, x):
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = jax.lax.stop_gradient(x) if self.locked == tower else x
        length = jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))
        return self.constrain(x / length, "batch", None)

    def scale(self):
        """(the inverse temperature f32[], the bias f32[] or None)."""
        scale = self.logit_scale[0]
        if self.max_scale is not None:
            scale = at_most(scale, jnp.log(self.max_scale).astype(scale.dtype))
        return jnp.exp(scale), self.logit_bias[0] if self.score_bias else None

    def __call__(self, images, tokens, segments=None, train: bool = False) -> Vectors:
        """The vectors of pictures and of texts.

        Args:
          images: f32[B, H, W, C].
          tokens, segments: as in `TextTower`.
          train: whether dropout is active.
        """
        pictures = self.encode_images(images, train)
        return Vectors(pictures, self.encode_texts(tokens, segments, train), *self.scale())

    @nn.nowrap
    def padding(self) -> int:
        """The number of parameters in rows of the token table after the last token's."""
        return (padded(self.vocab_size) - self.vocab_size) * self.text_width

    @nn.nowrap
    def flops(self, shape: tuple[int, int, int], length: int) -> int:
        """Forward FLOPs of one (H, W, C) picture with a text of L = `length` positions. The product
        of all pictures with all texts, which grows with the batch, is not counted."""
        image, text = self.image_tower(parent=None), self.text_tower(parent=None)
        return image.flops(shape) + text.flops(length)
