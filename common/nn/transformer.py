"""Transformers: the stack of blocks that BERT, GPT and others inherit.

A model subclasses `Transformer`: it inherits the fields below and the method `stack`, adds its own
embeddings and heads, and keeps plain parameters, `block_0/attention/query/kernel`, all matrices
two-dimensional. A block is in `common.nn.blocks`, attention in `common.nn.attention`.

With `mutable=["intermediates"]`, `apply` also returns every block's output (`hidden`) and attention
map (`attention`, f32[B, H, L, S]).

Letters: B batch, L query positions, S key positions, T positions of a cache, D width, F width
inside the MLP, H heads, G heads of keys and values, K width of a head.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.errors import brief, require
from common.nn import rope
from common.nn.attention import ATTENTION_NAMES, Attention, Cache, Implementation, Memory
from common.nn.blocks import MLP, MLP_NAMES, Activation, Block
from common.nn.layers import (
    MOST_LAYERS,
    Dtype,
    Remat,
    identity,
    partition_rows,
    recomputed,
    wanted,
)
from common.task import Table

Norm = Literal["layer", "rms"]
Bias = bool | Literal["qkv", "attention", "mlp"]

# The rows of every block; a model adds those of its embeddings and heads.
PARTITION: Table = (
    *partition_rows("attention", ATTENTION_NAMES),
    *partition_rows("mlp", MLP_NAMES),
)
# Those of blocks that attend to a memory as well.
MEMORY_PARTITION: Table = partition_rows("memory_attention", ATTENTION_NAMES)


class Transformer(nn.Module):
    """Base class of all transformers here: their fields and stack of blocks.

    Attributes:
      width: D, the width of the residual stream.
      layers: number of blocks.
      heads: H, the number of attention heads.
      kv_heads: G, the number of heads of keys and values; divides H. None is H.
      head_width: K, the width of a head; None is D / H, and H divides D.
      qk_norm: whether each head's query and key pass an RMSNorm over K (Henry et al. 2020,
        Dehghani et al. 2023).
      hidden: F, the width inside the MLP.
      pre_norm: True puts norms before attention and MLP and after the last block; False, after each
        (post-norm). With True, the projections onto the residual start 1 / sqrt(2 layers) as large
        (Radford et al. 2019).
      norm: LayerNorm ("layer") or RMSNorm ("rms": Zhang & Sennrich 2019).
      norm_eps: epsilon of the norms.
      bias: which layers have biases: all dense layers and LayerNorms, none, or only the projections
        to query, key and value ("qkv"), the four of "attention", or those of the "mlp".
      activation: activation of the MLP.
      gated: whether the MLP is gated; gated silu is SwiGLU, gated gelu GEGLU.
      dropout: rate after embeddings, attention and MLP; None is none. May be traced.
      attention_dropout: rate on the attention maps; None is none.
      init_std: standard deviation of matrices and embeddings at initialisation.
      implementation: kernel that computes attention; see `common.nn.attention.Attention`.
      dtype: dtype of the computation; None is that of the parameters.
      remat: what the backward pass recomputes to save memory: "none", all but the matrix products
        ("dots"), or each "block" from its input.
      scan: run one compiled block in a loop over stacked parameters: compiles faster, runs slower
        on CPU. Parameters stay the same; dropout draws other numbers.
      constrain: pins activations to a mesh (`common.devices.mesh.constrainer`).
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    kv_heads: int | None = None
    head_width: int | None = None
    qk_norm: bool = False
    hidden: int = 3072
    pre_norm: bool = True
    norm: Norm = "layer"
    norm_eps: float = 1e-5
    bias: Bias = True
    activation: Activation = "gelu"
    gated: bool = False
    dropout: float | None = None
    attention_dropout: float | None = None
    init_std: float = 0.02
    implementation: Implementation | None = None
    dtype: Dtype | None = None
    remat: Remat = "none"
    scan: bool = False
    constrain: Callable = identity

    CAUSAL: ClassVar[bool] = False  # whether a position attends only to itself and earlier ones
    MEMORY: ClassVar[bool] = False  # whether it attends to a memory as well

    def setup(self):
        """Creates `block_0`, … and, with pre-norm, `final_norm`."""
        self._check()
        for i in range(self.layers):
            setattr(self, f"block_{i}", self.make_block(i))
        if self.pre_norm:
            self.final_norm = self.make_norm()

    def _check(self):
        groups = self.heads if self.kv_heads is None else self.kv_heads
        sizes = {"width": self.width, "layers": self.layers, "heads": self.heads}
        sizes |= {"kv_heads": groups, "hidden": self.hidden}
        if self.head_width is not None:
            sizes["head_width"] = self.head_width
        for name, size in sizes.items():
            require(size > 0, f"config.model.{name}: {size} is not positive")
        require(self.layers <= MOST_LAYERS, f"config.model.layers: {self.layers} is too many")
        require(
            self.head_width is not None or self.width % self.heads == 0,
            f"config.model.heads: {self.heads} does not divide the width {self.width}",
        )
        require(
            self.heads % groups == 0,
            f"config.model.kv_heads: {groups} does not divide the {self.heads} heads",
        )
        named = isinstance(self.bias, bool) or self.bias in ("qkv", "attention", "mlp")
        require(
            named,
            f"config.model.bias: {brief(self.bias)} is not True, False, 'qkv', 'attention' "
            "or 'mlp'",
        )
        indices = range(self.layers if self.scan else 0)
        options = [self.attention_options(i) | self.block_options(i) for i in indices]
        require(
            all(_comparable(one) == _comparable(options[0]) for one in options),
            "config.model.scan: it runs one block for all, but the blocks of this model differ; "
            "set it to False",
        )

    @property
    def head_size(self) -> int:
        """K."""
        return self.width // self.heads if self.head_width is None else self.head_width

    @nn.nowrap
    def attention_options(self, index: int) -> dict:
        """Additional fields of the `Attention` of block `index`, set by a subclass."""
        del index
        return {}

    @nn.nowrap
    def memory_options(self) -> dict:
        """Additional fields of the `Attention` to a memory, set by a subclass."""
        return {}

    @nn.nowrap
    def block_options(self, index: int) -> dict:
        """Additional fields of the `Block` of that index, set by a subclass."""
        del index
        return {}

    @nn.nowrap
    def make_norm(self, **where) -> nn.Module:
        """A LayerNorm or RMSNorm of this model."""
        if self.norm == "rms":
            return nn.RMSNorm(epsilon=self.norm_eps, dtype=self.dtype, **where)
        bias = self.bias is True
        arguments = {"use_bias": bias, "dtype": self.dtype, "use_fast_variance": False}
        return nn.LayerNorm(epsilon=self.norm_eps, **arguments, **where)

    @nn.nowrap
    def kernel_inits(self) -> tuple[Callable, Callable]:
        """Initializers of the blocks' kernels: (of most, of those onto the residual stream)."""
        out_std = self.init_std / math.sqrt(2 * self.layers) if self.pre_norm else self.init_std
        return nn.initializers.normal(self.init_std), nn.initializers.normal(out_std)

    @nn.nowrap
    def make_block(self, index: int, **where) -> nn.Module:
        """Block `index` of this model."""
        kernel_init, out_init = self.kernel_inits()
        shared = {
            "dtype": self.dtype,
            "kernel_init": kernel_init,
            "out_init": out_init,
            "constrain": self.constrain,
        }
        attention = partial(
            Attention,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_width=self.head_width,
            qk_norm=self.qk_norm,
            norm_eps=self.norm_eps,
            bias={"attention": True, "mlp": False}.get(self.bias, self.bias),
            dropout=self.attention_dropout,
            implementation=self.implementation,
            **shared,
        )
        options = self.block_options(index)
        if self.MEMORY:
            options |= {"memory_attention": partial(attention, **self.memory_options())}
        attention = partial(attention, causal=self.CAUSAL, **self.attention_options(index))
        mlp = partial(
            MLP,
            hidden=self.hidden,
            activation=self.activation,
            gated=self.gated,
            bias=self.bias in (True, "mlp"),
            **shared,
        )
        block = recomputed(Block, self.remat, 4)
        fields = attention, mlp, self.make_norm, self.pre_norm, self.dropout, self.constrain
        return block(*fields, **options, **where)

    def stack(
        self, x, positions, segments=None, train=False, cache=None, memory=None, position_bias=None
    ):
        """Runs the blocks on embeddings: [B, L, D], or ([B, L, D], Cache) if a cache is given.

        Args:
          x: [B, L, D].
          positions: i32[B, L], each position's place in its segment.
          segments: i32[B, L] or None: positions attend only within their segment; 0 is padding.
          train: whether dropout is active.
          cache: a `Cache` of earlier positions, which the new ones follow; L + length must not
            exceed T. Excludes segments.
          memory: the `Memory` of a decoder. With a cache, the first call computes its keys and
            values; later ones are given None and take those of the cache.
          position_bias: [B or 1, H, L, L or T], added to the dot products of every block.
        """
        if cache is None:
            x = self._blocks(x, positions, segments, train, None, memory, position_bias)
            return self.final_norm(x) if self.pre_norm else x
        parts = cache.keys, cache.values
        if self.MEMORY and memory is None:
            memory = Memory(None, cache.memory_segments)
            parts += cache.memory_keys, cache.memory_values
        kept = []
        for i in range(self.layers):
            inputs = x, positions, None, train, tuple(part[i] for part in parts)
            x, part = getattr(self, f"block_{i}")(*inputs, memory, position_bias)
            kept.append(part)
        keys, values, *known = zip(*kept, strict=True)
        segments = memory.segments if self.MEMORY else None
        cache = Cache(keys, values, cache.length + x.shape[1], *known, memory_segments=segments)
        return (self.final_norm(x) if self.pre_norm else x), cache

    def _blocks(self, x, positions, segments, train: bool, *more):
        if self.scan and not self.is_initializing():
            return self._scanned(x, positions, segments, train, *more)
        for i in range(self.layers):
            x, _ = getattr(self, f"block_{i}")(x, positions, segments, train, *more)
            if wanted(self):
                self.sow("intermediates", f"hidden_{i}", x)
        return x

    def _scanned(self, x, positions, segments, train: bool, *more):
        params = [self.variables["params"][f"block_{i}"] for i in range(self.layers)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        block, captures = self.make_block(0, parent=None), wanted(self)
        key = self.make_rng("dropout") if self.has_rng("dropout") else jax.random.key(0)

        def body(x, inputs):
            params, key = inputs
            (x, _), kept = block.apply(
                {"params": params},
                *(x, positions, segments, train, *more),
                rngs={"dropout": key},
                mutable=["intermediates"] if captures else [],
            )
            return x, (x, kept) if captures else None

        x, kept = jax.lax.scan(body, x, (stacked, jax.random.split(key, self.layers)))
        for i in range(self.layers if captures else 0):
            hidden, inner = jax.tree.map(lambda leaf, i=i: leaf[i], kept)
            self.sow("intermediates", f"hidden_{i}", hidden)
            self.put_variable("intermediates", f"block_{i}", inner["intermediates"])
        return x

    @nn.nowrap
    def stack_flops(self, length: int, memory_length: int = 0) -> int:
        """FLOPs of the blocks' forward pass on one row of L = `length` positions (and, of a
        decoder, a memory of S = `memory_length`).

        Counts matrix multiplications only, two a multiply-add. Attention counts in full, whatever
        its mask hides, as for the MFU of PaLM (Chowdhery et al. 2022, appendix B): causality,
        windows and packed documents save nothing here. Needs no parameters.
        """
        groups = self.heads if self.kv_heads is None else self.kv_heads
        query_width, key_width = self.head_size * self.heads, self.head_size * groups
        projections = 2 * self.width * (query_width + key_width)  # query and out, key and value
        maps = 2 * query_width * length  # queries by keys, and by values
        mlp = (3 if self.gated else 2) * self.width * self.hidden
        block = length * (projections + maps + mlp)
        if self.MEMORY:
            block += 2 * self.width * (query_width * length + key_width * memory_length)
            block += 2 * query_width * length * memory_length
        return 2 * self.layers * block

    @nn.nowrap
    def empty_cache(self, batch_size: int, length: int, dtype=jnp.float32) -> Cache:
        """An empty cache: B rows with room for T = `length` positions. Needs no parameters."""
        groups = self.heads if self.kv_heads is None else self.kv_heads
        shape = (batch_size, length, groups, self.head_size)
        zeros = lambda: tuple(jnp.zeros(shape, dtype) for _ in range(self.layers))
        return Cache(zeros(), zeros(), jnp.zeros(batch_size, jnp.int32))


def _comparable(options: dict) -> dict:
    """Fields without their arrays, which may be traced: each equals itself alone."""
    return {k: id(v) if isinstance(v, jax.Array) else v for k, v in options.items()}


class SequenceTransformer(Transformer, kw_only=True):
    """A transformer over sequences of tokens: the base of BERT, GPT and others.

    Attributes:
      positions: position embeddings: learned; sinusoidal, or sinusoidal times one learned scale
        (Hua et al. 2022); or rotary.
      max_length: number of learned position embeddings.
      theta: base of the rotary wavelengths.
      rope_scaling: how these are stretched beyond the length trained on: a name, then numbers; see
        `common.nn.rope`. () is not at all.
      window: a position attends only to those at a distance below this; None is all.
      Others: see `Transformer`.
    """

    positions: Literal["learned", "sinusoidal", "scaled_sinusoidal", "rotary"] = "learned"
    max_length: int = 512
    theta: float = 10000.0
    rope_scaling: tuple = ()
    window: int | None = None

    def setup(self):
        """Creates the blocks, and the scale of scaled sinusoids."""
        super().setup()
        if self.positions == "scaled_sinusoidal":
            start = nn.initializers.constant(self.width**-0.5)
            self.position_scale = self.param("position_scale", start, (), jnp.float32)

    def _check(self):
        super()._check()
        for name, size in {"max_length": self.max_length, "window": self.window}.items():
            require(size is None or size > 0, f"config.model.{name}: {size} is not positive")
        rotary, where = self.positions == "rotary", "config.model.rope_scaling"
        require(
            rotary or not self.rope_scaling,
            f"{where}: it stretches rotary positions, and config.model.positions is "
            f"{self.positions!r}",
        )
        for i in range(self.layers):
            options = self.attention_options(i)
            columns = (options.get("rotary_width") or self.head_size) if rotary else self.width
            paired = f"config.model.positions: {self.positions!r} pairs columns"
            odd = self.positions not in ("learned", "relative") and columns % 2
            require(not odd, f"{paired}, but their number is odd")
            rope.check(where, options.get("rope_scaling", ()), columns)

    @nn.nowrap
    def attention_options(self, index: int) -> dict:
        """Window and rotary wavelengths of `Attention`, the same in every block."""
        del index
        theta = self.theta if self.positions == "rotary" else None
        return {"window": self.window, "theta": theta, "rope_scaling": self.rope_scaling}

    def with_positions(self, x, positions, table: Callable):
        """Embeddings plus position embeddings, unless positions are rotary: shaped as x.

        Args:
          x: [B, L, E], where E is D or the width of a model's embeddings.
          positions: i32[B, L].
          table: i32[B, L] -> [B, L, E]: looks up learned position embeddings.

        Raises:
          BadInput: if L exceeds the number of learned positions.
        """
        if self.positions == "rotary":
            return x
        if self.positions == "learned":
            rows = self.max_length
            require(
                x.shape[1] <= rows,
                f"config.model.max_length: {rows} positions, and the rows have {x.shape[1]}",
            )
            return x + table(positions)
        waves = rope.sinusoids(positions, x.shape[-1], jnp.promote_types(x.dtype, jnp.float32))
        scale = 1.0 if self.positions == "sinusoidal" else self.position_scale
        return x + (scale * waves).astype(x.dtype)
