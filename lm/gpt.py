"""GPT-2 (Radford et al. 2019) and its Llama-style descendants (Touvron et al. 2023): decoders.

    from lm import gpt
    model = gpt.GPT(**gpt.SIZES["gpt2"])
    params = model.init(jax.random.key(0), tokens)["params"]
    logits = model.apply({"params": params}, tokens)

RMSNorm, no biases, rotary positions, a gated silu MLP and fewer key heads make a Llama: `LLAMA`.

Letters: B batch, L positions, T positions of a cache, D width, V vocabulary.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nn import attention, transformer
from common.nn.attention import Cache
from common.nn.blocks import Activation
from common.nn.layers import Dropout, Embedding, TiedEmbedding, padded, split_like
from common.nn.transformer import SequenceTransformer
from common.task import Table


def _gpt2(layers: int, width: int) -> dict:
    shape = {"width": width, "layers": layers, "heads": width // 64, "hidden": 4 * width}
    return {"vocab_size": 50257, **shape}


LLAMA = {
    "norm": "rms",
    "bias": False,
    "positions": "rotary",
    "activation": "silu",
    "gated": True,
}

# Radford et al. 2019 (heads of 64); SmolLM2, TinyLlama and Llama 2 as in their checkpoints.
SIZES = {
    "gpt2": _gpt2(12, 768),
    "gpt2_medium": _gpt2(24, 1024),
    "gpt2_large": _gpt2(36, 1280),
    "gpt2_xl": _gpt2(48, 1600),
    "smollm2_135m": LLAMA
    | {
        "vocab_size": 49152,
        "width": 576,
        "layers": 30,
        "heads": 9,
        "kv_heads": 3,
        "hidden": 1536,
        "max_length": 8192,
        "theta": 100000.0,
    },
    "tinyllama_1b": LLAMA
    | {
        "vocab_size": 32000,
        "width": 2048,
        "layers": 22,
        "heads": 32,
        "kv_heads": 4,
        "hidden": 5632,
        "max_length": 2048,
        "tied": False,
    },
    "llama2_7b": LLAMA
    | {
        "vocab_size": 32000,
        "width": 4096,
        "layers": 32,
        "heads": 32,
        "hidden": 11008,
        "max_length": 4096,
        "tied": False,
    },
}


class GPT(SequenceTransformer, kw_only=True):
    """Tokens to next-token logits.

    Attributes:
      vocab_size: V.
      tied: whether the token embeddings are also the output projection.
      Others: see `common.nn.transformer.SequenceTransformer`; the defaults are GPT-2's.
    """

    vocab_size: int
    max_length: int = 1024
    tied: bool = True
    activation: Activation = "gelu_tanh"

    CAUSAL: ClassVar[bool] = True

    @property
    def PARTITION(self) -> Table:
        """How parameters are sharded; see `common.devices.mesh`."""
        rows = [(r"token/embedding", ("vocab", "embed"))]
        if self.positions == "learned":
            rows += [(r"position/embedding", (None, "embed"))]
        if not self.tied:
            rows += [(r"output/embedding", ("vocab", "embed"))]
        return (*rows, *transformer.PARTITION)

    def setup(self):
        """Creates embeddings and blocks."""
        super().setup()
        shared = self.width, self.dtype, self.init_std, self.constrain
        self.token = TiedEmbedding(self.vocab_size, *shared)
        if self.positions == "learned":
            self.position = Embedding(self.max_length, *shared)
        self.output = self.token if self.tied else TiedEmbedding(self.vocab_size, *shared)
        self.embedding_dropout = Dropout(self.dropout)

    def _embed(self, tokens, places, train):
        x = self.with_positions(self.token(tokens), places, lambda at: self.position(at))
        return self.constrain(self.embedding_dropout(x, train), "batch", None, None)

    def encode(self, tokens, segments=None, train: bool = False):
        """The hidden state of every position, [B, L, D]; arguments as in `__call__`."""
        tokens = tokens.astype(jnp.int32)
        if segments is None:
            places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        else:
            segments = segments.astype(jnp.int32)
            places = attention.places(segments)
        return self.stack(self._embed(tokens, places, train), places, segments, train)

    def __call__(self, tokens, segments=None, train: bool = False):
        """Logits f32[B, L, V]: position i predicts token i + 1.

        Args:
          tokens: i32[B, L].
          segments: i32[B, L] or None: positions attend only within their segment and
            count from its start. Padding is segment 0.
          train: whether dropout is active; it needs an rng "dropout".
        """
        x = self.encode(tokens, segments, train)
        return self.constrain(self.output.logits(x), "batch", None, "vocab")

    @nn.nowrap
    def padding(self) -> int:
        """The number of parameters in rows of the tables after the last token's."""
        rows = padded(self.vocab_size) - self.vocab_size
        return rows * self.width * (1 if self.tied else 2)

    @nn.nowrap
    def flops(self, length: int) -> int:
        """FLOPs of the forward pass on one row of L = `length` positions, as in `stack_flops`."""
        return self.stack_flops(length) + 2 * length * self.width * self.vocab_size

    def decode(self, tokens, cache: Cache, at=None):
        """Continues from a cache: (logits f32[B, V] of the token after position `at`, Cache).

        Args:
          tokens: i32[B, L], the new ones.
          cache: from `empty_cache` or an earlier call. Where rows end before L, set its `length`
            to the number of tokens each row really holds, before the next call.
          at: i32[B], the index of each row's last new token, behind which there is padding; None is
            L - 1.
        """
        at = jnp.full(tokens.shape[0], tokens.shape[1] - 1) if at is None else at
        at, cache = jax.tree.map(lambda x: split_like(x, tokens), (at, cache))
        # Padding adds nothing to the length by which rotary wavelengths may be stretched.
        new = jnp.minimum(jnp.arange(tokens.shape[1]), at[:, None])
        places = cache.length[:, None] + new
        x, cache = self.stack(self._embed(tokens, places, False), places, cache=cache)
        x = jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
        return self.output.logits(x), cache

    def extend(self, tokens, cache: Cache):
        """Continues from a cache, as `decode`, with the logits after each new token: (f32[B, L, V],
        Cache). Tokens beyond the last position have no meaning, and harm no others.

        Args:
          tokens: i32[B, L].
          cache: from `empty_cache` or an earlier call, its `length` set to what each row holds.
        """
        cache = cache._replace(length=split_like(cache.length, tokens))
        places = cache.length[:, None] + jnp.arange(tokens.shape[1])
        known = jnp.minimum(places, self.max_length - 1) if self.positions == "learned" else places
        x, cache = self.stack(self._embed(tokens, known, False), places, cache=cache)
        return self.output.logits(x), cache
