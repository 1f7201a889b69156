"""The three-layer network of Bengio et al. 2003: embeddings of the last few tokens side by side, a
hidden layer, and the next token's logits. It sees no further than its window.

Letters: B batch, L positions, T positions of a cache, N tokens in the window, E width of
embeddings, H width of the hidden layer, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.errors import require
from common.nn.layers import (
    Dense,
    Dropout,
    Dtype,
    Remat,
    TiedEmbedding,
    identity,
    padded,
    recomputed,
    split_like,
)
from common.task import Table


class Text(NamedTuple):
    """The tokens so far, passed in and returned updated.

    Attributes:
      tokens: a tuple of one array, i32[B, T].
      length: i32[B], the number of tokens that each row holds; those beyond are not read.
    """

    tokens: tuple
    length: jax.Array


class Hidden(nn.Module):
    """The hidden layer: [..., N E] -> [..., H]."""

    width: int
    dropout: float | None
    dtype: Dtype | None
    constrain: Callable

    @nn.compact
    def __call__(self, x, train: bool):
        names = ("embed", "mlp")
        dense = Dense(
            self.width, dtype=self.dtype, names=names, constrain=self.constrain, name="dense"
        )
        return Dropout(self.dropout)(jnp.tanh(dense(x)), train)


class Window(nn.Module):
    """Tokens to next-token logits.

    Attributes:
      vocab_size: V.
      window: N, the tokens that a prediction sees; those before a segment's start are zeros.
      embedding_width: E.
      width: H.
      dropout: rate on the hidden layer; None is none. May be traced.
      init_std: standard deviation of embeddings at initialisation.
      dtype: dtype of the computation; None is that of the parameters.
      remat: what the backward pass recomputes of the hidden layer: "none", all but its product
        ("dots"), or all of it ("block").
      constrain: pins activations to a mesh (`common.devices.mesh.constrainer`).
    """

    vocab_size: int
    window: int = 5
    embedding_width: int = 64
    width: int = 256
    dropout: float | None = None
    init_std: float = 0.02
    dtype: Dtype | None = None
    remat: Remat = "none"
    constrain: Callable = identity

    CAUSAL: ClassVar[bool] = True
    PARTITION: ClassVar[Table] = (
        (r"(token|output)/embedding", ("vocab", "embed")),
        (r"hidden/dense/kernel", ("embed", "mlp")),
    )

    def setup(self):
        """Creates embeddings, the hidden layer and the output."""
        sizes = {"window": self.window, "embedding_width": self.embedding_width}
        for name, size in (sizes | {"width": self.width}).items():
            require(size > 0, f"config.model.{name}: {size} is not positive")
        table = partial(
            TiedEmbedding, dtype=self.dtype, init_std=self.init_std, constrain=self.constrain
        )
        self.token = table(self.vocab_size, self.embedding_width)
        hidden = recomputed(Hidden, self.remat, 2)
        self.hidden = hidden(self.width, self.dropout, self.dtype, self.constrain)
        self.output = table(self.vocab_size, self.width)

    def __call__(self, tokens, segments=None, train: bool = False):
        """Logits f32[B, L, V]: position i predicts token i + 1.

        Args:
          tokens: i32[B, L].
          segments: i32[B, L] or None: a position sees its own segment. Padding is segment 0.
          train: whether dropout is active; it needs an rng "dropout".
        """
        x = self.token(tokens.astype(jnp.int32))
        segments = jnp.ones_like(tokens) if segments is None else segments
        seen = []
        for back in range(self.window):
            before = lambda y, back=back: jnp.pad(y, [(0, 0), (back, 0), *[(0, 0)] * (y.ndim - 2)])[
                :, : y.shape[1]
            ]
            inside = (before(segments) == segments) & (jnp.arange(x.shape[1]) >= back)
            seen.append(jnp.where(inside[:, :, None], before(x), 0))
        x = self.constrain(jnp.concatenate(seen, axis=-1), "batch", None, None)
        return self.constrain(self._logits(x, train), "batch", None, "vocab")

    def _logits(self, x, train: bool):
        return self.output.logits(self.hidden(x, train))

    def decode(self, tokens, cache: Text, at=None):
        """Continues from a cache: (logits f32[B, V] of the token after position `at`, Text);
        arguments as in `lm.gpt.GPT.decode`."""
        at = jnp.full(tokens.shape[0], tokens.shape[1] - 1) if at is None else at
        at, cache = jax.tree.map(lambda x: split_like(x, tokens), (at, cache))
        write = jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=0))
        written = write(cache.tokens[0], tokens.astype(jnp.int32), cache.length)
        places = (cache.length + at)[:, None] - jnp.arange(self.window)
        x = self.token(jnp.take_along_axis(written, jnp.maximum(places, 0), axis=1))
        x = jnp.where((places >= 0)[:, :, None], x, 0)
        logits = self._logits(x.reshape(x.shape[0], -1), False)
        return logits, Text((written,), cache.length + tokens.shape[1])

    @nn.nowrap
    def empty_cache(self, batch_size: int, length: int, dtype=jnp.float32) -> Text:
        """An empty cache: B rows with room for T = `length` positions. Needs no parameters."""
        del dtype
        tokens = jnp.zeros((batch_size, length), jnp.int32)
        return Text((tokens,), jnp.zeros(batch_size, jnp.int32))

    @nn.nowrap
    def padding(self) -> int:
        """The number of parameters in rows of the tables after the last token's."""
        rows = padded(self.vocab_size) - self.vocab_size
        return rows * (self.embedding_width + self.width)

    @nn.nowrap
    def flops(self, length: int) -> int:
        """FLOPs of the forward pass on one row of L = `length` positions: matrix multiplications
        only, two a multiply-add. Needs no parameters."""
        inputs = self.window * self.embedding_width
        return 2 * length * self.width * (inputs + self.vocab_size)
