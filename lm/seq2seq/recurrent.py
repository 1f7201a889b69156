"""Recurrent encoder-decoders: with attention (Bahdanau et al. 2015), and without (Cho et al. 2014,
Sutskever et al. 2014).

    from lm.seq2seq import recurrent
    model = recurrent.EncoderDecoder(vocab_size=8192, cell="gru", width=512)
    params = model.init(jax.random.key(0), source, None, tokens, None)["params"]
    logits = model.apply({"params": params}, source, None, tokens, None)

The decoder's tokens are those of the target shifted right, as in `lm.seq2seq.transformer`, and so
are segments: a target sees the source of its own number alone, and begins with the state that this
leaves.

Letters: B batch, S source positions, L target positions, T positions of a cache, E width of
embeddings, H width of a cell, P width of a state, X width of the encoder's outputs, A width of the
attention's scores, V vocabulary.
"""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.errors import require
from common.nn import cells, recurrent
from common.nn.cells import CELLS, CellName, States
from common.nn.layers import (
    Dense,
    Dropout,
    TiedEmbedding,
    padded,
    partition_rows,
    recomputed,
    split_like,
)
from common.nn.recurrent import NAMES, Recurrent, RecurrentStack
from common.task import Table
from lm.seq2seq.additive import ATTENTION_NAMES, AttentionRecurrent, EncodedSource


class Encoder(RecurrentStack, kw_only=True):
    """The side of the source: embeddings come in."""

    def __call__(self, x, segments, train: bool = False):
        """(outputs [B, S, X], states of each layer's direction forward)."""
        return self.stack(x, segments, train)


class EncoderDecoder(RecurrentStack, kw_only=True):
    """Source and target tokens to logits of the target's next tokens.

    Attributes:
      vocab_size: V, of the target, and of the source unless that has its own.
      source_vocab_size: of the source, where its tokens and embeddings are others; None is one
        vocabulary for both.
      embedding_width: E; None is H.
      decoder_layers: layers of the decoder; None is as many as the encoder's.
      bidirectional: whether the encoder's layers also run from the end to the start.
      attention: whether the decoder's first layer looks at the source at every step; else it has
        its first state alone.
      start: the decoder's first state: "dense", a layer of it and tanh, of the last state of the
        encoder's last layer (of its direction backward, if there is one), or "same", the last
        states of the encoder's own layers, forward.
      readout: what logits are a projection of: "maxout" of two (Goodfellow et al. 2013) sums of the
        state, the context and the last token's embedding, as in the paper, but with the state after
        that token; or the "state" alone.
      tied: whether the target's embeddings are also the output projection.
      logits_bias: whether logits have a bias.
      Others: see `common.nn.recurrent.RecurrentStack`; the defaults are near the paper's, with one
        layer and GRUs.
    """

    vocab_size: int
    source_vocab_size: int | None = None
    layers: int = 1
    cell: CellName = "gru"
    bidirectional: bool = True
    embedding_width: int | None = None
    decoder_layers: int | None = None
    attention: bool = True
    start: Literal["dense", "same"] = "dense"
    readout: Literal["maxout", "state"] = "maxout"
    tied: bool = False
    logits_bias: bool = False

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        tables = ["token"] + ["source_token"] * (self.source_vocab_size is not None)
        tables += ["output"] * (not self.tied)
        rows = [(f"({'|'.join(tables)})/embedding", ("vocab", "embed"))]
        names = {k: v for k, v in NAMES.items() if k != "projection" or self.projection_width}
        names |= {k: v for k, v in ATTENTION_NAMES.items() if self.attention and k != "key"}
        rows += partition_rows("(forward|backward)", names)
        own = ["start_\\d+"] * (self.start == "dense") + ["key"] * self.attention
        readouts = ["state", "context", "last"] if self.attention else ["state", "last"]
        own += [f"readout_{name}" for name in readouts if self.readout == "maxout"]
        return (*rows, (f"({'|'.join(own)})/kernel", ("embed", None))) if own else tuple(rows)

    @property
    def embedding_size(self) -> int:
        """E."""
        return self.width if self.embedding_width is None else self.embedding_width

    @property
    def read_size(self) -> int:
        """The width of what logits are a projection of."""
        return self.state_width if self.readout == "state" else self.embedding_size

    @property
    def depth(self) -> int:
        """Layers of the decoder."""
        return self.layers if self.decoder_layers is None else self.decoder_layers

    def setup(self):
        """Creates embeddings, both sides and the output."""
        self._check()
        shared = self.dtype, self.init_std, self.constrain
        self.token = TiedEmbedding(self.vocab_size, self.embedding_size, *shared)
        self.source_token = self.token
        if self.source_vocab_size is not None:
            sizes = self.source_vocab_size, self.embedding_size
            self.source_token = TiedEmbedding(*sizes, *shared)
        self.encoder = Encoder(
            bidirectional=self.bidirectional, layers=self.layers, **self._shared_fields()
        )
        fields = {"width": self.width, "cell": self.cell, "activation": self.activation}
        fields |= {"projection_width": self.projection_width}
        fields |= {"dtype": self.dtype, "constrain": self.constrain}
        block = recomputed(_Forward, self.remat)
        for i in range(self.depth):
            kind = AttentionRecurrent if self.attention and not i else Recurrent
            # Named as the layers of any stack are, and their only direction.
            setattr(self, f"block_{i}", block(kind, tuple(fields.items())))
        dense = partial(
            Dense,
            dtype=self.dtype,
            kernel_init=recurrent.uniform(self.width**-0.5),
            names=("embed", None),
            constrain=self.constrain,
        )
        if self.attention:
            self.key = dense(self.width)
        for i in range(self.depth if self.start == "dense" else 0):
            setattr(self, f"start_{i}", dense(self.state_width))
        if self.readout == "maxout":
            self.readout_state = dense(2 * self.read_size)
            self.readout_last = dense(2 * self.read_size, use_bias=False)
            if self.attention:
                self.readout_context = dense(2 * self.read_size, use_bias=False)
        self.output = (
            self.token if self.tied else TiedEmbedding(self.vocab_size, self.read_size, *shared)
        )
        if self.logits_bias:
            zeros = nn.initializers.zeros
            self.bias_of_logits = self.param("logits_bias", zeros, (self.vocab_size,), jnp.float32)
        self.embedding_dropout = Dropout(self.dropout)
        self.layer_dropout = Dropout(self.dropout)

    @nn.nowrap
    def _shared_fields(self) -> dict:
        names = "width", "cell", "projection_width", "activation", "dropout", "dtype", "remat"
        return {name: getattr(self, name) for name in (*names, "constrain")}

    def _check(self):
        super()._check()
        sizes = {"embedding_width": self.embedding_size, "decoder_layers": self.depth}
        for name, size in sizes.items():
            require(size > 0, f"config.model.{name}: {size} is not positive")
        require(
            self.start == "dense" or self.depth == self.layers,
            f"config.model.start: 'same' is a state for each of the {self.layers} layers of the "
            f"encoder, and the decoder has {self.depth}",
        )
        require(
            not self.tied or self.read_size == self.embedding_size,
            f"config.model.tied: embeddings have {self.embedding_size} columns, and states "
            f"{self.read_size}; set it to False",
        )

    def encode(self, source, source_segments=None, train: bool = False) -> EncodedSource:
        """The memory of `decode`.

        Args:
          source: i32[B, S].
          source_segments: i32[B, S] or None: the state is zero where a segment begins. Padding is
            segment 0.
          train: whether dropout is active; it needs an rng "dropout".
        """
        x = self.source_token(source.astype(jnp.int32))
        x = self.constrain(self.embedding_dropout(x, train), "batch", None, None)
        outputs, states = self.encoder(x, _segments(source, source_segments), train)
        start = states
        if self.start == "dense":
            last = outputs[..., self.state_width if self.bidirectional else 0 :]
            start = tuple(self._start(i, last) for i in range(self.depth))
        if not self.attention:
            return EncodedSource(None, None, start)
        return EncodedSource(outputs, self.key(outputs), start)

    def _start(self, layer: int, last):
        hidden = jnp.tanh(getattr(self, f"start_{layer}")(last))
        zero = cells.zero_state(self.cell, self.width, self.state_width, hidden, hidden.dtype)
        spread = lambda x: jnp.zeros_like(hidden[..., :1], x.dtype) + x[:, None]
        return (hidden, *map(spread, zero[1:]))

    def decode(
        self,
        tokens,
        segments=None,
        memory: EncodedSource | None = None,
        source_segments=None,
        positions=None,
        cache: States | None = None,
        at=None,
        train: bool = False,
    ):
        """Logits f32[B, L, V] of the tokens after each position; with a cache, (logits f32[B, V]
        of the token after position `at`, States).

        Args:
          tokens: i32[B, L]: the target shifted right; with a cache, the new ones.
          segments: i32[B, L] or None: a target sees the source of the same number. None is segment
            1. Not with a cache.
          memory: from `encode`.
          source_segments: i32[B, S] or None, as in `encode`.
          positions: not read: states count for themselves.
          cache: from `empty_cache` or an earlier call. Rows may go on from an earlier position:
            set its `length` to the number of tokens each row really holds, before the next call.
          at: i32[B], the index of each row's last new token, behind which there is padding; None is
            L - 1.
          train: whether dropout is active; it needs an rng "dropout".
        """
        del positions
        tokens = tokens.astype(jnp.int32)
        segments = _segments(tokens, None if cache is not None else segments)
        source_segments = _segments(memory.start[0][0][..., 0], source_segments)
        fresh = self._fresh(segments, source_segments, memory)
        before = (None,) * self.depth
        if cache is not None:
            at = jnp.full(tokens.shape[0], tokens.shape[1] - 1) if at is None else at
            at, cache = jax.tree.map(lambda x: split_like(x, tokens), (at, cache))
            new = (cache.length == 0)[:, None]
            choose = lambda old, start: jnp.where(new, start[:, 0].astype(old.dtype), old)
            before = jax.tree.map(choose, cells.latest(cache), fresh)
            fresh = (None,) * self.depth
        embedded = self.embedding_dropout(self.token(tokens), train)
        x = embedded = self.constrain(embedded, "batch", None, None)
        states, context = [], None
        for i in range(self.depth):
            x = self.layer_dropout(x, train) if i else x
            layer = getattr(self, f"block_{i}")
            if self.attention and not i:
                inputs = x, segments, before[i], fresh[i]
                own, context = layer(*inputs, memory, source_segments)
            else:
                own = layer(x, segments if cache is None else None, before[i], fresh[i])
            states.append(own)
            x = self.constrain(own[0], "batch", None, None)
        if cache is None:
            return self._logits(x, context, embedded, train)
        pick = lambda x: jnp.take_along_axis(x, at[:, None, None], axis=1)
        last = (None if x is None else pick(x) for x in (x, context, embedded))
        return self._logits(*last, train)[:, 0], cells.extended(cache, tuple(states))

    def _fresh(self, segments, source_segments, memory: EncodedSource) -> tuple:
        """The first state of each position's segment: leaves [B, L, ...]."""
        backward = self.start == "dense" and self.bidirectional
        edge = cells.starts(source_segments, reverse=not backward)
        mine = edge[:, None] & (segments[:, :, None] == source_segments[:, None])
        index = jnp.argmax(mine, axis=-1)[:, :, None]
        return jax.tree.map(lambda x: jnp.take_along_axis(x, index, axis=1), memory.start)

    def _logits(self, x, context, embedded, train: bool):
        if self.readout == "maxout":
            y = self.readout_state(x) + self.readout_last(embedded)
            y = y + self.readout_context(context) if self.attention else y
            x = y.reshape(*y.shape[:-1], self.read_size, 2).max(axis=-1)
        logits = self.output.logits(self.layer_dropout(x, train))
        logits = self.constrain(logits, "batch", None, "vocab")
        return logits + self.bias_of_logits if self.logits_bias else logits

    def __call__(
        self, source, source_segments=None, tokens=None, segments=None, train: bool = False
    ):
        """Logits f32[B, L, V]: `encode` and `decode`, whose arguments these are."""
        memory = self.encode(source, source_segments, train)
        return self.decode(tokens, segments, memory, source_segments, train=train)

    @nn.nowrap
    def empty_cache(self, batch_size: int, length: int, dtype=jnp.float32) -> States:
        """An empty cache: B rows with room for T = `length` target positions. Needs no
        parameters."""
        sizes = self.cell, self.depth, self.width, self.state_width
        return cells.empty_states(*sizes, batch_size, length, dtype)

    @nn.nowrap
    def padding(self) -> int:
        """The number of parameters in rows of the tables after the last token's."""
        more = lambda size: padded(size) - size
        total = more(self.vocab_size) * self.embedding_size
        total += 0 if self.tied else more(self.vocab_size) * self.read_size
        if self.source_vocab_size is not None:
            total += more(self.source_vocab_size) * self.embedding_size
        return total

    @nn.nowrap
    def flops(self, source_length: int, length: int) -> int:
        """FLOPs of the forward pass on one pair of S = `source_length` and L = `length` positions:
        matrix multiplications only, two a multiply-add. Needs no parameters."""
        embedding, state, outputs = self.embedding_size, self.state_width, self.out_width
        columns = CELLS[self.cell].gates * self.width
        source, target = 0, 0
        if self.start == "dense":
            source += self.depth * state * state
        for i in range(self.depth):
            target += columns * ((state if i else embedding) + state)
            target += self.width * (self.projection_width or 0)
        if self.attention:
            source += outputs * self.width
            target += state * self.width + outputs * columns
            target += source_length * (self.width + outputs)
        if self.readout == "maxout":
            inputs = state + embedding + (outputs if self.attention else 0)
            target += 2 * self.read_size * inputs
        target += self.read_size * self.vocab_size
        encoder = self.stack_flops(source_length, embedding)
        return encoder + 2 * (source_length * source + length * target)


class _Forward(nn.Module):
    """A layer whose only direction is named as those of a `common.nn.recurrent.Layer`.

    Attributes:
      kind: the class of the direction.
      fields: of it, as pairs.
    """

    kind: type
    fields: tuple

    @nn.compact
    def __call__(self, *inputs):
        return self.kind(**dict(self.fields), name="forward")(*inputs)


def _segments(like, segments):
    """i32, shaped as `like`: the segments, or 1 throughout."""
    return jnp.ones_like(like, jnp.int32) if segments is None else segments.astype(jnp.int32)
