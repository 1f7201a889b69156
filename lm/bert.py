"""BERT (Devlin et al. 2019): a bidirectional encoder, its pretraining heads, and heads for whole
texts (`Classifier`), for every token (`TokenClassifier`) and for an answer within a text
(`SpanAnswerer`).

    from lm import bert
    model = bert.Bert(**bert.SIZES["base"])
    params = model.init(jax.random.key(0), tokens)["params"]
    logits = model.apply({"params": params}, tokens)
    hidden = model.apply({"params": params}, tokens, method="encode")

The modules share the encoder's parameter names, so that each of the others can start from a `Bert`.
Their fields also cover later variants: pre-norm, no biases, a gated MLP and scaled sinusoids make
the crammed BERT of Geiping & Goldstein 2022; narrower embeddings make an ELECTRA.

Letters: B batch, L positions, P predicted positions, D width, E width of embeddings, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from common.errors import require
from common.nn import attention, transformer
from common.nn.blocks import ACTIVATIONS
from common.nn.layers import Dense, Dropout, Embedding, TiedEmbedding, padded
from common.nn.transformer import SequenceTransformer
from common.task import Table


def _size(layers: int, width: int) -> dict:
    shape = {"width": width, "layers": layers, "heads": width // 64, "hidden": 4 * width}
    return {"vocab_size": 30522, **shape}


# Devlin et al. 2019 and, below base, Turc et al. 2019.
SIZES = {
    "tiny": _size(2, 128),
    "mini": _size(4, 256),
    "small": _size(4, 512),
    "medium": _size(8, 512),
    "base": _size(12, 768),
    "large": _size(24, 1024),
}


POOLER_ACTIVATIONS = {"tanh": jnp.tanh} | {k: ACTIVATIONS[k] for k in ("relu", "gelu")}


class Encoder(SequenceTransformer, kw_only=True):
    """Tokens to hidden states; the base of `Bert` and `Classifier`.

    Attributes:
      vocab_size: V.
      types: number of token types: 2 for sentences A and B; 0 is none.
      embedding_width: E, the width of the embedding tables and their norm, which a dense layer then
        projects to D (ALBERT: Lan et al. 2020; ELECTRA: Clark et al. 2020). None is D and no such
        layer.
      Others: see `common.nn.transformer.SequenceTransformer`; the defaults are BERT base's.
    """

    vocab_size: int
    types: int = 2
    embedding_width: int | None = None
    pre_norm: bool = False
    norm_eps: float = 1e-12

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        learned = ["position"] * (self.positions == "learned") + ["type"] * (self.types > 0)
        rows = [(f"({'|'.join(learned)})/embedding", (None, "embed"))] if learned else []
        if self.embedding_width is not None:
            rows += [(r"embedding_projection/kernel", ("embed", "mlp"))]
        return ((r"token/embedding", ("vocab", "embed")), *rows, *transformer.PARTITION)

    def setup(self):
        """Creates embeddings and blocks."""
        require(self.types >= 0, f"config.model.types: {self.types} is negative")
        super().setup()
        shared = self.embedding_size, self.dtype, self.init_std, self.constrain
        self.token = TiedEmbedding(self.vocab_size, *shared)
        if self.positions == "learned":
            self.position = Embedding(self.max_length, *shared)
        if self.types:
            self.type = Embedding(self.types, *shared)
        self.embedding_norm = self.make_norm()
        self.embedding_dropout = Dropout(self.dropout)
        if self.embedding_width is not None:
            _, wide = self.head_layers()
            self.embedding_projection = wide(self.width, use_bias=self.bias is True)

    def _check(self):
        super()._check()
        size, odd = self.embedding_size, self.embedding_size % 2
        require(size > 0, f"config.model.embedding_width: {size} is not positive")
        require(
            self.positions in ("learned", "rotary") or not odd,
            f"config.model.embedding_width: {size} is odd, and {self.positions} positions pair "
            "columns",
        )

    @property
    def embedding_size(self) -> int:
        """E, or D if they are the same."""
        return self.width if self.embedding_width is None else self.embedding_width

    @nn.nowrap
    def embedding_flops(self, length: int) -> int:
        """FLOPs of the projection of L = `length` embeddings to the width D, if there is one."""
        projected = self.embedding_width is not None
        return 2 * length * self.embedding_size * self.width if projected else 0

    @nn.nowrap
    def padding(self) -> int:
        """The number of parameters in rows of the token table after the last token's."""
        rows = padded(self.vocab_size) - self.vocab_size
        return rows * self.embedding_size

    @nn.nowrap
    def head_layers(self) -> tuple[Callable, Callable]:
        """Constructors of a head's layers: (the small last one, the one of width D before it)."""
        init = nn.initializers.normal(self.init_std)
        dense = partial(Dense, dtype=self.dtype, kernel_init=init, constrain=self.constrain)
        return partial(dense, names=("mlp", None)), partial(dense, names=("embed", "mlp"))

    def encode(self, tokens, segments=None, types=None, train: bool = False):
        """The hidden state of every position: [B, L, D].

        Args:
          tokens: i32[B, L].
          segments: i32[B, L] or None: positions attend only within their segment and
            count from its start. Padding is segment 0.
          types: i32[B, L] or None: type 0 throughout.
          train: whether dropout is active; it needs an rng "dropout".
        """
        tokens = tokens.astype(jnp.int32)
        if segments is None:
            places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        else:
            segments = segments.astype(jnp.int32)
            places = attention.places(segments)
        x = self.token(tokens)
        if self.types:
            x = x + self.type(jnp.zeros_like(tokens) if types is None else types.astype(jnp.int32))
        x = self.with_positions(x, places, lambda at: self.position(at))
        x = self.embedding_dropout(self.embedding_norm(x), train)
        x = self.constrain(x, "batch", None, None)
        if self.embedding_width is not None:
            x = self.constrain(self.embedding_projection(x), "batch", None, None)
        return self.stack(x, places, segments, train)

    def __call__(self, tokens, segments=None, types=None, train: bool = False):
        """`encode`."""
        return self.encode(tokens, segments, types, train)


class Bert(Encoder, kw_only=True):
    """The encoder with the masked-LM head and, optionally, the next-sentence head.

    Attributes:
      next_sentence: whether there is a next-sentence head.
      head: whether a dense layer, activation and norm precede the projection onto the vocabulary;
        the layer also returns to the width of the embeddings.
      Others: see `Encoder`.
    """

    head: bool = True
    next_sentence: bool = False

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        rows = [(r"head_dense/kernel", ("embed", "mlp"))] if self.head else []
        if self.next_sentence:
            rows += [(r"pooler/kernel", ("embed", "mlp")), (r"next/kernel", ("mlp", None))]
        return (*super().PARTITION, *rows)

    def setup(self):
        """Creates the encoder and the heads."""
        super().setup()
        require(
            self.head or self.embedding_size == self.width,
            f"config.model.head: without one, logits are products of hidden states of width "
            f"{self.width} with embeddings of width {self.embedding_size}",
        )
        dense, wide = self.head_layers()
        if self.head:
            self.head_dense = wide(self.embedding_size, use_bias=self.bias is True)
            self.head_norm = self.make_norm()
        if self.bias is True:
            zeros = nn.initializers.zeros
            self.head_bias = self.param("head_bias", zeros, (self.vocab_size,), jnp.float32)
        if self.next_sentence:
            self.pooler = wide(self.width)
            self.next = dense(2)

    def predict(self, hidden):
        """Hidden states [..., D] -> token logits f32[..., V]."""
        # Sharding is pinned at every step: left to itself, XLA's partitioner lost part of the
        # gradients of this head when data, fsdp and tensor were all split.
        names = ("batch", *(None,) * (hidden.ndim - 2))
        hidden = self.constrain(hidden, *names, None)
        if self.head:
            hidden = self.head_norm(ACTIVATIONS[self.activation](self.head_dense(hidden)))
            hidden = self.constrain(hidden, *names, None)
        logits = self.constrain(self.token.logits(hidden), *names, "vocab")
        return logits + self.head_bias if self.bias is True else logits

    def predict_next(self, hidden):
        """Hidden states [B, L, D] -> logits f32[B, 2]: class 0 means that B follows A."""
        pooled = jnp.tanh(self.pooler(self.constrain(hidden[:, 0], "batch", None)))
        logits = self.next(self.constrain(pooled, "batch", None))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @nn.nowrap
    def flops(self, length: int, predictions: int) -> int:
        """FLOPs of one row's forward pass, counted as in `stack_flops`: with token logits at
        P = `predictions` of its L = `length` positions, and next-sentence logits if any."""
        head = self.width * self.embedding_size if self.head else 0
        following = self.width * (self.width + 2) if self.next_sentence else 0
        logits = predictions * (head + self.embedding_size * self.vocab_size)
        encoder = self.embedding_flops(length) + self.stack_flops(length)
        return encoder + 2 * (logits + following)

    def __call__(self, tokens, segments=None, types=None, picked=None, train: bool = False):
        """Token logits f32[B, L, V], or f32[B, P, V] at the positions `picked`; with a
        next-sentence head, (token logits, next-sentence logits f32[B, 2]).

        Args:
          tokens, segments, types, train: as in `encode`.
          picked: i32[B, P]; None is all positions.
        """
        hidden = self.encode(tokens, segments, types, train)
        at = hidden
        if picked is not None:
            at = jnp.take_along_axis(hidden, picked[:, :, None], axis=1)
        logits = self.predict(at)
        return (logits, self.predict_next(hidden)) if self.next_sentence else logits


class Classifier(Encoder, kw_only=True):
    """The encoder with a head for whole texts: class logits, or one number to regress.

    Attributes:
      num_classes: K; 1 for a regression.
      pooling: how hidden states become one vector per text: "first", a dense layer and an
        activation on the first position (BERT), or "mean", their mean (sentence transformers).
      pooler_activation: that activation: BERT's is tanh, DistilBERT's relu (Sanh et al. 2019),
        ELECTRA's gelu.
      head_dropout: dropout rate on the pooled vector; None is none. May be traced.
      Others: see `Encoder`.
    """

    num_classes: int
    pooling: Literal["first", "mean"] = "first"
    pooler_activation: Literal["tanh", "relu", "gelu"] = "tanh"
    head_dropout: float | None = None

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        pooler = [(r"pooler/kernel", ("embed", "mlp"))] if self.pooling == "first" else []
        return (*super().PARTITION, *pooler, (r"classifier/kernel", ("mlp", None)))

    def setup(self):
        """Creates the encoder and the head."""
        super().setup()
        dense, wide = self.head_layers()
        if self.pooling == "first":
            self.pooler = wide(self.width)
        self.classifier = dense(self.num_classes)
        self.drop = Dropout(self.head_dropout)

    def pool(self, hidden, segments=None):
        """Hidden states [B, L, D] -> vectors of texts [B, D]; padding (segment 0) has no weight.

        Args:
          hidden: [B, L, D].
          segments: i32[B, L] or None.
        """
        if self.pooling == "first":
            return POOLER_ACTIVATIONS[self.pooler_activation](self.pooler(hidden[:, 0]))
        return mean_pool(hidden, segments)

    @nn.nowrap
    def flops(self, length: int) -> int:
        """FLOPs of the forward pass on one row of L = `length` positions, as in `stack_flops`."""
        pooler = self.width**2 if self.pooling == "first" else 0
        encoder = self.embedding_flops(length) + self.stack_flops(length)
        return encoder + 2 * (pooler + self.width * self.num_classes)

    def __call__(self, tokens, segments=None, types=None, train: bool = False):
        """Logits f32[B, K]; arguments as in `encode`."""
        pooled = self.pool(self.encode(tokens, segments, types, train), segments)
        logits = self.classifier(self.drop(self.constrain(pooled, "batch", None), train))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class TokenClassifier(Encoder, kw_only=True):
    """The encoder with a linear head on every position: class logits of tokens, for tagging.

    Attributes:
      num_classes: K.
      head_dropout: dropout rate on hidden states before the head; None is none. May be traced.
      Others: see `Encoder`.
    """

    num_classes: int
    head_dropout: float | None = None

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        return (*super().PARTITION, (r"token_classifier/kernel", ("mlp", None)))

    def setup(self):
        """Creates the encoder and the head."""
        super().setup()
        dense, _ = self.head_layers()
        self.token_classifier = dense(self.num_classes)
        self.drop = Dropout(self.head_dropout)

    @nn.nowrap
    def flops(self, length: int) -> int:
        """FLOPs of the forward pass on one row of L = `length` positions, as in `stack_flops`."""
        head = 2 * length * self.width * self.num_classes
        return self.embedding_flops(length) + self.stack_flops(length) + head

    def __call__(self, tokens, segments=None, types=None, train: bool = False):
        """Logits f32[B, L, K]; arguments as in `encode`."""
        hidden = self.encode(tokens, segments, types, train)
        hidden = self.drop(self.constrain(hidden, "batch", None, None), train)
        logits = self.token_classifier(hidden)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class SpanAnswerer(Encoder, kw_only=True):
    """The encoder with a head that points: for every position the logits that an answer begins, and
    ends, there (Devlin et al. 2019, section 4.2)."""

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        return (*super().PARTITION, (r"span/kernel", ("mlp", None)))

    def setup(self):
        """Creates the encoder and the head."""
        super().setup()
        dense, _ = self.head_layers()
        self.span = dense(2)

    @nn.nowrap
    def flops(self, length: int) -> int:
        """FLOPs of the forward pass on one row of L = `length` positions, as in `stack_flops`."""
        head = 2 * length * self.width * 2
        return self.embedding_flops(length) + self.stack_flops(length) + head

    def __call__(self, tokens, segments=None, types=None, train: bool = False):
        """(start logits f32[B, L], end logits f32[B, L]); arguments as in `encode`."""
        hidden = self.encode(tokens, segments, types, train)
        logits = self.span(self.constrain(hidden, "batch", None, None))
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return logits[..., 0], logits[..., 1]


def mean_pool(hidden, segments=None):
    """Mean of hidden states [B, L, D] over positions, without padding (segment 0): [B, D]."""
    if segments is None:
        return hidden.mean(axis=1)
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    real = (segments > 0).astype(wide)[:, :, None]
    mean = (hidden * real).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)
    return mean.astype(hidden.dtype)
