"""The encoder-decoder of "Attention is all you need" (Vaswani et al. 2017), and by its fields T5
(Raffel et al. 2020), Marian (Junczys-Dowmunt et al. 2018) and BART (Lewis et al. 2020).

    from lm.seq2seq import transformer
    model = transformer.EncoderDecoder(**transformer.SIZES["base"])
    params = model.init(jax.random.key(0), source, None, tokens, None)["params"]
    logits = model.apply({"params": params}, source, None, tokens, None)

The decoder's tokens are those of the target shifted right, after a token that begins it: position i
predicts the target's token i. Packed rows have the segments 1, 2, … on both sides; a target sees
the source of its own number alone.

Letters: B batch, S source positions, L target positions, T positions of a cache, D width, V
vocabulary.
"""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.errors import require
from common.nn import attention, relative, rope, transformer
from common.nn.attention import Cache, Memory
from common.nn.blocks import Activation
from common.nn.layers import Dropout, Embedding, TiedEmbedding, padded, split_like
from common.nn.relative import RelativePositions
from common.nn.transformer import SequenceTransformer
from common.task import Table

Positions = Literal["sinusoidal", "sinusoidal_halves", "learned", "rotary", "relative"]


def _size(width: int, layers: int, heads: int, hidden: int, vocab_size: int) -> dict:
    shape = {"width": width, "layers": layers, "heads": heads, "hidden": hidden}
    return {"vocab_size": vocab_size, **shape}


T5 = {  # version 1.1: Shazeer 2020
    "positions": "relative",
    "pre_norm": True,
    "norm": "rms",
    "bias": False,
    "activation": "gelu_tanh",
    "gated": True,
    "head_width": 64,
    "scale_attention": False,
    "scale_embeddings": False,
    "tied": False,
    "initializer": "fan_in",
}
MARIAN = {
    "positions": "sinusoidal_halves",
    "activation": "silu",
    "norm_eps": 1e-5,
    "logits_bias": True,
}
BART = {
    "positions": "learned",
    "max_length": 1024,
    "activation": "gelu",
    "norm_eps": 1e-5,
    "norm_embeddings": True,
    "scale_embeddings": False,
    "logits_bias": True,
    "initializer": "normal",
}

# Vaswani et al. 2017; T5 version 1.1, OPUS-MT (Tiedemann & Thottingal 2020) and BART as in their
# checkpoints.
SIZES = {
    "base": _size(512, 6, 8, 2048, 37000),
    "big": _size(1024, 6, 16, 4096, 37000),
    "t5_small": T5 | _size(512, 8, 6, 1024, 32128),
    "t5_base": T5 | _size(768, 12, 12, 2048, 32128),
    "t5_large": T5 | _size(1024, 24, 16, 2816, 32128),
    "opus_mt": MARIAN | _size(512, 6, 8, 2048, 58101),
    "bart_base": BART | _size(768, 6, 12, 3072, 50265),
    "bart_large": BART | _size(1024, 12, 16, 4096, 50265),
}


class Stack(SequenceTransformer, kw_only=True):
    """The blocks of one side, with what their fields put around them: embeddings come in.

    Attributes:
      positions: sinusoidal, with sines and cosines in turn or as two halves (Marian); learned, a
        table for each side; rotary; or relative, a bias of attention by distance (T5).
      buckets: number of buckets of relative distances; both directions share them in an encoder.
      furthest: the relative distance from which on all share a bucket.
      scale_attention: whether dot products are divided by the root of a head's width; T5 does not.
      norm_embeddings: whether embeddings pass a norm before the blocks (BART).
      initializer: of matrices: "xavier", with embeddings of standard deviation 1 / sqrt(D), as the
        original's; "fan_in", by their number of inputs, with embeddings of standard deviation 1, as
        T5's; or "normal", of `init_std`.
      Others: see `common.nn.transformer.SequenceTransformer`.
    """

    width: int = 512
    layers: int = 6
    heads: int = 8
    hidden: int = 2048
    positions: Positions = "sinusoidal"
    buckets: int = 32
    furthest: int = 128
    scale_attention: bool = True
    pre_norm: bool = False
    norm_eps: float = 1e-6
    norm_embeddings: bool = False
    activation: Activation = "relu"
    initializer: Literal["xavier", "fan_in", "normal"] = "xavier"

    def setup(self):
        """Creates the blocks, and what embeddings pass before them."""
        super().setup()
        std = self.embedding_std
        if self.positions == "learned":
            self.position = Embedding(self.max_length, self.width, self.dtype, std, self.constrain)
        if self.positions == "relative":
            sizes = self.heads, self.buckets, self.furthest
            small = self.init_std if self.initializer == "normal" else self.width**-0.5
            self.relative = RelativePositions(*sizes, self.CAUSAL, small)
        if self.norm_embeddings:
            self.embedding_norm = self.make_norm()
        self.embedding_dropout = Dropout(self.dropout)

    def _check(self):
        super()._check()
        if self.positions == "relative":
            relative.check("config.model", self.buckets, self.furthest)
            require(
                self.implementation != "splash",
                "config.model.implementation: splash has no bias for relative positions; leave it "
                "out",
            )

    @property
    def embedding_std(self):
        """Standard deviation of embeddings at initialisation."""
        known = {"xavier": self.width**-0.5, "fan_in": 1.0}
        return known.get(self.initializer, self.init_std)

    @nn.nowrap
    def kernel_inits(self):
        """As the base class, or the same for all kernels."""
        if self.initializer == "normal":
            return super().kernel_inits()
        known = {
            "xavier": nn.initializers.xavier_uniform(),
            "fan_in": nn.initializers.variance_scaling(1.0, "fan_in", "normal"),
        }
        return (known[self.initializer],) * 2

    @nn.nowrap
    def attention_options(self, index: int) -> dict:
        """As the base class, and whether dot products are scaled."""
        return super().attention_options(index) | self.memory_options()

    @nn.nowrap
    def memory_options(self) -> dict:
        """Whether dot products are scaled."""
        return {"scaled": self.scale_attention}

    def with_positions(self, x, positions, table):
        """As the base class, with its own kinds of positions."""
        if self.positions == "relative":
            return x
        if self.positions == "sinusoidal_halves":
            dtype = jnp.promote_types(x.dtype, jnp.float32)
            return x + rope.sinusoids(positions, x.shape[-1], dtype, halves=True).astype(x.dtype)
        return super().with_positions(x, positions, table)

    def __call__(
        self, x, places, segments, train: bool = False, cache: Cache | None = None, memory=None
    ):
        """Embeddings [B, L, D] -> states [B, L, D]; arguments as in `stack`."""
        x = self.with_positions(x, places, lambda at: self.position(at))
        if self.norm_embeddings:
            x = self.embedding_norm(x)
        x = self.constrain(self.embedding_dropout(x, train), "batch", None, None)
        bias = None
        if self.positions == "relative":
            # Distances within a row are those within its segments.
            bias = self.relative(x.shape[1])
            if cache is not None:
                bias = self.relative.at(places, cache.keys[0].shape[1])
            bias = self.constrain(bias, "batch" if cache else None, "heads", None, None)
        return self.stack(x, places, segments, train, cache, memory, bias)


class Encoder(Stack, kw_only=True):
    """The side of the source, whose positions see each other."""


class Decoder(Stack, kw_only=True):
    """The side of the target, whose positions see themselves, earlier ones, and the source."""

    CAUSAL: ClassVar[bool] = True
    MEMORY: ClassVar[bool] = True


class EncoderDecoder(Stack, kw_only=True):
    """Source and target tokens to logits of the target's next tokens.

    Attributes:
      vocab_size: V, of the target, and of the source unless that has its own.
      source_vocab_size: of the source, where its tokens and embeddings are others; None is one
        vocabulary for both.
      decoder_layers: blocks of the decoder; None is as many as the encoder's.
      tied: whether the target's embeddings are also the output projection.
      scale_embeddings: whether embeddings of tokens are multiplied by sqrt(D).
      scale_logits: whether logits are divided by it (T5 before version 1.1).
      logits_bias: whether logits have a bias.
      Others: see `Stack`; the defaults are those of the original, base.
    """

    vocab_size: int
    source_vocab_size: int | None = None
    decoder_layers: int | None = None
    tied: bool = True
    scale_embeddings: bool = True
    scale_logits: bool = False
    logits_bias: bool = False

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        tables = ["token"] + ["source_token"] * (self.source_vocab_size is not None)
        tables += ["output"] * (not self.tied)
        rows = [(f"({'|'.join(tables)})/embedding", ("vocab", "embed"))]
        if self.positions == "learned":
            rows += [(r"(encoder|decoder)/position/embedding", (None, "embed"))]
        if self.positions == "relative":
            rows += [(r"(encoder|decoder)/relative/embedding", (None, None))]
        return (*rows, *transformer.PARTITION, *transformer.MEMORY_PARTITION)

    def setup(self):
        """Creates embeddings, both sides and the output."""
        self._check()
        shared = self.width, self.dtype, self.embedding_std, self.constrain
        self.token = TiedEmbedding(self.vocab_size, *shared)
        self.source_token = self.token
        if self.source_vocab_size is not None:
            self.source_token = TiedEmbedding(self.source_vocab_size, *shared)
        self.encoder, self.decoder = self._sides()
        # Of untied ones: the logits of normalised states then begin near 1.
        out = (*shared[:2], self.init_std, self.constrain)
        if self.initializer != "normal":
            out = (*shared[:2], self.width**-0.5, self.constrain)
        self.output = self.token if self.tied else TiedEmbedding(self.vocab_size, *out)
        if self.logits_bias:
            zeros = nn.initializers.zeros
            self.bias_of_logits = self.param("logits_bias", zeros, (self.vocab_size,), jnp.float32)

    @nn.nowrap
    def _sides(self, **where) -> tuple[Encoder, Decoder]:
        names = {field.name for field in dataclasses.fields(Stack)} - {"parent", "name"}
        fields = {name: getattr(self, name) for name in names}
        layers = self.layers if self.decoder_layers is None else self.decoder_layers
        return Encoder(**fields, **where), Decoder(**fields | {"layers": layers}, **where)

    def _embed(self, table, tokens):
        x = table(tokens)
        return x * jnp.asarray(self.width**0.5, x.dtype) if self.scale_embeddings else x

    def encode(self, source, source_segments=None, train: bool = False):
        """The source's states, [B, S, D]: the memory of `decode`.

        Args:
          source: i32[B, S].
          source_segments: i32[B, S] or None: positions attend only within their segment and count
            from its start. Padding is segment 0.
          train: whether dropout is active; it needs an rng "dropout".
        """
        source = source.astype(jnp.int32)
        segments, places = _placed(source, source_segments)
        return self.encoder(self._embed(self.source_token, source), places, segments, train)

    def decode(
        self,
        tokens,
        segments=None,
        memory=None,
        source_segments=None,
        positions=None,
        cache: Cache | None = None,
        at=None,
        train: bool = False,
    ):
        """Logits f32[B, L, V] of the tokens after each position; with a cache, (logits f32[B, V]
        of the token after position `at`, Cache).

        Args:
          tokens: i32[B, L]: the target shifted right; with a cache, the new ones.
          segments: i32[B, L] or None: a position sees earlier ones of its segment, and the source
            of the same number. None is segment 1, as it is with a cache.
          memory: [B, S, D], from `encode`. With a cache, of the first call alone: the cache then
            has its keys and values.
          source_segments: i32[B, S] or None, as in `encode`; of the same call as `memory`. None
            hides nothing.
          positions: i32[B, L], each position's place in its segment; None counts them. Not with a
            cache.
          cache: from `empty_cache` or an earlier call. Where rows end before L, set its `length`
            to the number of tokens each row really holds, before the next call.
          at: i32[B], the index of each row's last new token, behind which there is padding; None is
            L - 1.
          train: whether dropout is active; it needs an rng "dropout".
        """
        tokens = tokens.astype(jnp.int32)
        if memory is not None:
            known = source_segments is not None
            memory = Memory(memory, source_segments.astype(jnp.int32) if known else None)
        x = self._embed(self.token, tokens)
        if cache is None:
            if segments is None and source_segments is not None:
                segments = jnp.ones_like(tokens)
            segments, places = _placed(tokens, segments)
            places = places if positions is None else positions
            return self._logits(self.decoder(x, places, segments, train, None, memory))
        at = jnp.full(tokens.shape[0], tokens.shape[1] - 1) if at is None else at
        at, cache = jax.tree.map(lambda x: split_like(x, tokens), (at, cache))
        new = jnp.minimum(jnp.arange(tokens.shape[1]), at[:, None])
        places = cache.length[:, None] + new
        x, cache = self.decoder(x, places, None, False, cache, memory)
        x = jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
        return self._logits(x), cache

    def _logits(self, x):
        x = x * jnp.asarray(self.width**-0.5, x.dtype) if self.scale_logits else x
        logits = self.output.logits(x)
        if x.ndim == 3:
            logits = self.constrain(logits, "batch", None, "vocab")
        return logits + self.bias_of_logits if self.logits_bias else logits

    def __call__(
        self, source, source_segments=None, tokens=None, segments=None, train: bool = False
    ):
        """Logits f32[B, L, V]: `encode` and `decode`, whose arguments these are."""
        memory = self.encode(source, source_segments, train)
        return self.decode(tokens, segments, memory, source_segments, train=train)

    @nn.nowrap
    def empty_cache(self, batch_size: int, length: int, dtype=jnp.float32) -> Cache:
        """An empty cache: B rows with room for T = `length` target positions. Needs no
        parameters."""
        return self._sides(parent=None)[1].empty_cache(batch_size, length, dtype)

    @nn.nowrap
    def padding(self) -> int:
        """The number of parameters in rows of the tables after the last token's."""
        sizes = [self.vocab_size] * (1 if self.tied else 2)
        sizes += [self.source_vocab_size] * (self.source_vocab_size is not None)
        return sum(padded(size) - size for size in sizes) * self.width

    @nn.nowrap
    def flops(self, source_length: int, length: int) -> int:
        """FLOPs of the forward pass on one pair of S = `source_length` and L = `length` positions,
        as in `stack_flops`."""
        encoder, decoder = self._sides(parent=None)
        logits = 2 * length * self.width * self.vocab_size
        return (
            encoder.stack_flops(source_length) + decoder.stack_flops(length, source_length) + logits
        )


def _placed(tokens, segments):
    """(segments i32[B, L] or None, i32[B, L]: each position's place in its segment)."""
    if segments is None:
        return None, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = segments.astype(jnp.int32)
    return segments, attention.places(segments)
