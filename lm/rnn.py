"""Recurrent networks over tokens: a language model (Mikolov et al. 2010; with LSTM, Zaremba et al.
2014) and a classifier of texts.

    from lm import rnn
    model = rnn.RNN(vocab_size=4096, cell="lstm", width=512, layers=2)
    params = model.init(jax.random.key(0), tokens)["params"]
    logits = model.apply({"params": params}, tokens)

The layers are those of `common.nn.recurrent`.

Letters: B batch, L positions, T positions of a cache, E width of embeddings, H width of a cell, P
width of a hidden state, V vocabulary, K classes.
"""

from functools import partial
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.errors import require
from common.nn import cells
from common.nn.cells import States
from common.nn.layers import Dense, Dropout, TiedEmbedding, padded, split_like
from common.nn.recurrent import RecurrentStack
from common.task import Table
from lm.bert import mean_pool


class Encoder(RecurrentStack, kw_only=True):
    """Tokens to hidden states; the base of `RNN` and `Classifier`.

    Attributes:
      vocab_size: V.
      embedding_width: E; None is the width of the layers' outputs.
      Others: see `common.nn.recurrent.RecurrentStack`.
    """

    vocab_size: int
    embedding_width: int | None = None

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        return ((r"token/embedding", ("vocab", "embed")), *self.partition_rows)

    @property
    def embedding_size(self) -> int:
        """E."""
        return self.out_width if self.embedding_width is None else self.embedding_width

    def setup(self):
        """Creates embeddings and layers."""
        super().setup()
        shared = self.dtype, self.init_std, self.constrain
        self.token = TiedEmbedding(self.vocab_size, self.embedding_size, *shared)
        self.embedding_dropout = Dropout(self.dropout)

    def _check(self):
        super()._check()
        size = self.embedding_size
        require(size > 0, f"config.model.embedding_width: {size} is not positive")

    def states(self, tokens, segments=None, train: bool = False, before: tuple | None = None):
        """(hidden states [B, L, P or 2 P], states of each layer); see `RecurrentStack.stack`."""
        x = self.embedding_dropout(self.token(tokens.astype(jnp.int32)), train)
        x = self.constrain(x, "batch", None, None)
        segments = None if segments is None else segments.astype(jnp.int32)
        return self.stack(x, segments, train, before)

    def encode(self, tokens, segments=None, train: bool = False):
        """The hidden state of every position: [B, L, P], or [B, L, 2 P] in both directions.

        Args:
          tokens: i32[B, L].
          segments: i32[B, L] or None: the state is zero where a segment begins. Padding is 0.
          train: whether dropout is active; it needs an rng "dropout".
        """
        return self.states(tokens, segments, train)[0]

    def __call__(self, tokens, segments=None, train: bool = False):
        """`encode`."""
        return self.encode(tokens, segments, train)

    @nn.nowrap
    def padding(self) -> int:
        """The number of parameters in rows of the token table after the last token's."""
        return (padded(self.vocab_size) - self.vocab_size) * self.embedding_size


class RNN(Encoder, kw_only=True):
    """Tokens to next-token logits.

    Attributes:
      tied: whether the token embeddings are also the output projection; then E is P.
      output_bias: whether the logits have a bias.
      truncation: gradients do not pass from a position of a row that is a multiple of this to the
        one before (truncated backpropagation through time: Williams & Peng 1990), while the state
        does; None lets them pass everywhere.
      output_dropout: rate on the last hidden states; None is none. May be traced.
      Others: see `Encoder`.
    """

    tied: bool = True
    output_bias: bool = False
    truncation: int | None = None
    output_dropout: float | None = None

    CAUSAL: ClassVar[bool] = True

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        untied = () if self.tied else ((r"output/embedding", ("vocab", "embed")),)
        return (*super().PARTITION, *untied)

    def setup(self):
        """Creates the encoder and the projection onto the vocabulary."""
        super().setup()
        shared = self.out_width, self.dtype, self.init_std, self.constrain
        self.output = self.token if self.tied else TiedEmbedding(self.vocab_size, *shared)
        if self.output_bias:
            zeros = nn.initializers.zeros
            self.head_bias = self.param("head_bias", zeros, (self.vocab_size,), jnp.float32)
        self.drop = Dropout(self.output_dropout)

    def _check(self):
        super()._check()
        require(
            not self.bidirectional,
            "config.model.bidirectional: a language model that reads backward sees what it is to "
            "predict; set it to False",
        )
        require(
            not self.tied or self.embedding_size == self.out_width,
            f"config.model.embedding_width: {self.embedding_size}, and hidden states have "
            f"{self.out_width}; tied embeddings need the same, or set config.model.tied=False",
        )
        cut = self.truncation
        require(cut is None or cut > 0, f"config.model.truncation: {cut} is not positive")

    @nn.nowrap
    def layer_options(self) -> dict:
        """Where gradients stop."""
        return {"truncation": self.truncation}

    def _logits(self, hidden):
        logits = self.output.logits(hidden)
        return logits + self.head_bias if self.output_bias else logits

    def __call__(self, tokens, segments=None, train: bool = False):
        """Logits f32[B, L, V]: position i predicts token i + 1; arguments as in `encode`."""
        hidden = self.drop(self.encode(tokens, segments, train), train)
        return self.constrain(self._logits(hidden), "batch", None, "vocab")

    @nn.nowrap
    def padding(self) -> int:
        """The number of parameters in rows of the tables after the last token's."""
        rows = padded(self.vocab_size) - self.vocab_size
        return rows * (self.embedding_size + (0 if self.tied else self.out_width))

    @nn.nowrap
    def flops(self, length: int) -> int:
        """FLOPs of the forward pass on one row of L = `length` positions, as in `stack_flops`."""
        logits = 2 * length * self.out_width * self.vocab_size
        return self.stack_flops(length, self.embedding_size) + logits

    @nn.nowrap
    def empty_cache(self, batch_size: int, length: int, dtype=jnp.float32) -> States:
        """An empty cache: B rows with room for T = `length` positions. Needs no parameters."""
        sizes = self.cell, self.layers, self.width, self.state_width
        return cells.empty_states(*sizes, batch_size, length, dtype)

    def decode(self, tokens, cache: States, at=None):
        """Continues from a cache: (logits f32[B, V] of the token after position `at`, States).

        Args:
          tokens: i32[B, L], the new ones.
          cache: from `empty_cache` or an earlier call. Rows may go on from an earlier position:
            set its `length` to the number of tokens each row really holds, before the next call.
          at: i32[B], the index of each row's last new token, behind which there is padding; None is
            L - 1.
        """
        at = jnp.full(tokens.shape[0], tokens.shape[1] - 1) if at is None else at
        at, cache = jax.tree.map(lambda x: split_like(x, tokens), (at, cache))
        hidden, states = self.states(tokens, before=cells.latest(cache))
        hidden = jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0]
        return self._logits(hidden), cells.extended(cache, states)

    def extend(self, tokens, cache: States):
        """Continues from a cache, as `decode`, with the logits after each new token: (f32[B, L, V],
        States)."""
        cache = jax.tree.map(lambda x: split_like(x, tokens), cache)
        hidden, states = self.states(tokens, before=cells.latest(cache))
        return self._logits(hidden), cells.extended(cache, states)


class Classifier(Encoder, kw_only=True):
    """The encoder with a head for whole texts: class logits, or one number to regress.

    Attributes:
      num_classes: K; 1 for a regression.
      pooling: how hidden states become one vector per text: "last", the last state of each
        direction, or their "mean", or "max" (Conneau et al. 2017).
      head_dropout: dropout rate on the pooled vector; None is none. May be traced.
      Others: see `Encoder`.
    """

    num_classes: int
    bidirectional: bool = True
    pooling: Literal["last", "mean", "max"] = "last"
    head_dropout: float | None = None

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        return (*super().PARTITION, (r"classifier/kernel", ("mlp", None)))

    def setup(self):
        """Creates the encoder and the head."""
        super().setup()
        init = nn.initializers.normal(self.init_std)
        dense = partial(Dense, dtype=self.dtype, kernel_init=init, constrain=self.constrain)
        self.classifier = dense(self.num_classes, names=("mlp", None))
        self.drop = Dropout(self.head_dropout)

    def pool(self, hidden, segments=None):
        """Hidden states [B, L, P or 2 P] -> vectors of texts; padding (segment 0, at the end of a
        row) has no weight.

        Args:
          hidden: [B, L, P or 2 P].
          segments: i32[B, L] or None.
        """
        if self.pooling == "mean":
            return mean_pool(hidden, segments)
        real = jnp.ones(hidden.shape[:2], bool) if segments is None else segments > 0
        if self.pooling == "max":
            lowest = jnp.finfo(hidden.dtype).min
            return jnp.where(real[:, :, None], hidden, lowest).max(axis=1)
        last = jnp.maximum(real.sum(axis=1), 1) - 1
        forward, backward = jnp.split(hidden, [self.state_width], axis=-1)
        forward = jnp.take_along_axis(forward, last[:, None, None], axis=1)[:, 0]
        return jnp.concatenate([forward, backward[:, 0]], axis=-1)

    @nn.nowrap
    def flops(self, length: int) -> int:
        """FLOPs of the forward pass on one row of L = `length` positions, as in `stack_flops`."""
        head = 2 * self.out_width * self.num_classes
        return self.stack_flops(length, self.embedding_size) + head

    def __call__(self, tokens, segments=None, types=None, train: bool = False):
        """Logits f32[B, K].

        Args:
          tokens, segments, train: as in `encode`; a row is one segment, and padding.
          types: not read: the tokens between two texts tell them apart.
        """
        del types
        pooled = self.pool(self.encode(tokens, segments, train), segments)
        logits = self.classifier(self.drop(self.constrain(pooled, "batch", None), train))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
