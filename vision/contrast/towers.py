"""The towers of `vision.contrast.model`: a Vision Transformer of pictures and a transformer of
texts, each of which ends in a vector of the shared space.

Letters: B batch, H height, W width and C channels of an image, L positions of a text; D width of a
tower, F width inside its MLP, E width of the shared space, V vocabulary.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from common.nn import attention, transformer
from common.nn.attention import ATTENTION_NAMES
from common.nn.blocks import MLP, Activation
from common.nn.layers import (
    Dense,
    Dropout,
    Dtype,
    Embedding,
    TiedEmbedding,
    identity,
    named,
    partition_rows,
    repeated,
)
from common.nn.transformer import SequenceTransformer
from common.task import Table
from vision.vit import PatchTransformer

ImagePooling = Literal["class", "mean", "attention"]
TextPooling = Literal["end", "last", "mean"]

# ---------------------------------------------------------------------------------------- pictures


class AttentionPool(nn.Module):
    """Pooling by a learned query that attends to all positions, and an MLP behind it ("MAP": Lee et
    al. 2019, Zhai et al. 2022).

    Attributes:
      heads: number of attention heads.
      hidden: F.
      norm: name -> module.
      Others: as in `common.nn.blocks.MLP`.
    """

    heads: int
    hidden: int
    norm: Callable[..., nn.Module]
    activation: Activation = "gelu"
    dtype: Dtype | None = None
    kernel_init: Callable = nn.initializers.normal(0.02)
    constrain: Callable = identity

    @nn.compact
    def __call__(self, x):
        """[B, L, D] -> [B, D]."""
        shared = {"dtype": self.dtype, "constrain": self.constrain}
        shared |= {"kernel_init": self.kernel_init}
        width = x.shape[-1]
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, width), jnp.float32)
        probe = repeated(probe[None].astype(x.dtype), x, (len(x), 1, width))

        def project(name, x):
            y = Dense(width, names=ATTENTION_NAMES[name], name=name, **shared)(x)
            y = y.reshape(*x.shape[:2], self.heads, width // self.heads)
            return self.constrain(y, "batch", None, "heads", None)

        y = attention.plain(project("query", probe), project("key", x), project("value", x))
        y = self.constrain(y.reshape(len(x), 1, width), "batch", None, "heads")
        y = Dense(width, names=ATTENTION_NAMES["out"], name="out", **shared)(y)
        y = self.constrain(y, "batch", None, None)
        shared = shared | {"out_init": self.kernel_init}
        mlp = MLP(self.hidden, self.activation, name="mlp", **shared)
        return (y + mlp(self.norm(name="norm")(y)))[:, 0]


class ImageTower(PatchTransformer, kw_only=True):
    """A Vision Transformer that makes of a picture a vector of the shared space.

    Attributes:
      vector_width: E.
      pooling: how a picture becomes one vector: the final state of a learned token before the
        patches ("class"), the mean over the patches ("mean"), or by `AttentionPool` ("attention").
        Only the first has that token.
      projection: whether a linear layer without bias follows; False if the pooled vector is the
        result.
      norm_before: whether a norm stands before the first block (CLIP).
      patch_bias: whether the patch embedding has a bias.
      Others: see `vision.vit.PatchTransformer`.
    """

    vector_width: int
    pooling: ImagePooling = "class"
    projection: bool = True
    norm_before: bool = False
    patch_bias: bool = True

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        rows = super().PARTITION
        if self.pooling == "attention":
            rows += (
                (r"attention_pool/probe", (None, "embed")),
                *partition_rows("attention_pool", ATTENTION_NAMES),
            )
        return (*rows, ("head/kernel", ("embed", None))) if self.projection else rows

    def setup(self):
        """Creates embeddings, blocks, attention pooling and the projection."""
        super().setup()
        shared = {"dtype": self.dtype, "constrain": self.constrain}
        if self.norm_before:
            self.embedding_norm = self.make_norm()
        if self.pooling == "attention":
            sizes, init = (self.heads, self.hidden), nn.initializers.normal(self.init_std)
            fields = *sizes, self.make_norm, self.activation
            self.attention_pool = AttentionPool(*fields, kernel_init=init, **shared)
        if self.projection:
            self.head = Dense(self.vector_width, False, names=("embed", None), **shared)

    @nn.nowrap
    def patch_options(self) -> dict:
        """The bias of the patch embedding."""
        return {"use_bias": self.patch_bias}

    @nn.nowrap
    def _tokens(self) -> dict[str, int]:
        return super()._tokens() if self.pooling == "class" else {}

    def _embed(self, images, train: bool, visible=None):
        x = super()._embed(images, train, visible)
        return self.embedding_norm(x) if self.norm_before else x

    def __call__(self, images, train: bool = False):
        """f32[B, H, W, C] -> [B, E], of any length; raises as `encode`."""
        x = self.encode(images, train=train)
        if self.pooling == "attention":
            pooled = self.attention_pool(x)
        else:
            pooled = x[:, 0] if self.pooling == "class" else x.mean(axis=1)
        pooled = named(self, "features", self.constrain(pooled, "batch", None))
        return self.head(pooled) if self.projection else pooled

    @nn.nowrap
    def flops(self, shape: tuple[int, int, int]) -> int:
        """Forward FLOPs of one (H, W, C) image, as in `vision.vit.ViT.flops`."""
        length, width = self._length(shape[:2]), self.width
        count = self.stack_flops(length) + self.patch_flops(shape)
        if self.pooling == "attention":
            # Keys and values of all positions, query and output of one, its maps, and its MLP.
            count += 2 * width * (2 * length * width + 2 * width + 2 * length)
            count += 4 * width * self.hidden
        return count + 2 * width * self.vector_width * self.projection


# ------------------------------------------------------------------------------------------ texts


class TextTower(SequenceTransformer, kw_only=True):
    """A transformer that makes of a text a vector of the shared space.

    Attributes:
      vocab_size: V.
      vector_width: E.
      causal: whether a position sees only itself and earlier ones.
      pooling: how a text becomes one vector: the state of its last token, which is the one that
        ends it ("end": CLIP); of the last position of the row, where padding is part of the text,
        and seen as such ("last": SigLIP); or the mean over the text ("mean").
      projection_bias: whether the projection to the shared space has a bias.
      Others: see `common.nn.transformer.SequenceTransformer`.
    """

    vocab_size: int
    vector_width: int
    causal: bool = False
    pooling: TextPooling = "end"
    projection_bias: bool = False

    @property
    def CAUSAL(self) -> bool:
        """`causal`, as `Transformer` reads it."""
        return self.causal

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        rows = [(r"token/embedding", ("vocab", "embed"))]
        if self.positions == "learned":
            rows += [(r"position/embedding", (None, "embed"))]
        return (*rows, *transformer.PARTITION, (r"head/kernel", ("embed", None)))

    def setup(self):
        """Creates embeddings, blocks and the projection."""
        super().setup()
        shared = self.width, self.dtype, self.init_std, self.constrain
        self.token = TiedEmbedding(self.vocab_size, *shared)
        if self.positions == "learned":
            self.position = Embedding(self.max_length, *shared)
        self.embedding_dropout = Dropout(self.dropout)
        shared = {"dtype": self.dtype, "constrain": self.constrain, "names": ("embed", None)}
        self.head = Dense(self.vector_width, self.projection_bias, **shared)

    def encode(self, tokens, segments=None, train: bool = False):
        """The hidden state of every position, [B, L, D]; arguments as in `__call__`."""
        tokens = tokens.astype(jnp.int32)
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x = self.with_positions(self.token(tokens), places, lambda at: self.position(at))
        x = self.constrain(self.embedding_dropout(x, train), "batch", None, None)
        whole = segments is None or self.pooling == "last"
        return self.stack(x, places, None if whole else segments.astype(jnp.int32), train)

    def __call__(self, tokens, segments=None, train: bool = False):
        """[B, E], of any length.

        Args:
          tokens: i32[B, L].
          segments: i32[B, L], 1 in the text and 0 in the padding behind it; None is no padding.
          train: whether dropout is active; it needs an rng "dropout".
        """
        x = self.encode(tokens, segments, train)
        if self.pooling == "mean":
            there = jnp.ones_like(x[..., 0]) if segments is None else (segments > 0).astype(x.dtype)
            pooled = (x * there[..., None]).sum(1) / jnp.maximum(there.sum(1), 1)[:, None]
        elif self.pooling == "last" or segments is None:
            pooled = x[:, -1]
        else:
            last = jnp.maximum((segments > 0).sum(axis=1) - 1, 0)
            pooled = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        pooled = named(self, "features", self.constrain(pooled, "batch", None))
        return self.head(pooled)

    @nn.nowrap
    def flops(self, length: int) -> int:
        """Forward FLOPs of one row of L = `length` positions, as in `stack_flops`."""
        return self.stack_flops(length) + 2 * self.width * self.vector_width
