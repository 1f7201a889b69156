"""Transformers: MLP, block, and the stack of blocks that BERT, GPT and others inherit.

A model subclasses `Transformer`: it inherits the fields below and the method `stack`, adds its own
embeddings and heads, and keeps plain parameters, `block_0/attention/query/kernel`, all matrices
two-dimensional. Attention itself is in `common.nn.attention`.

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

from common.errors import require
from common.nn.attention import (
    ATTENTION_NAMES,
    Attention,
    Cache,
    Dtype,
    Implementation,
    sinusoids,
)
from common.nn.layers import MOST_LAYERS, Dense, Dropout, Names, identity, partition_rows, wanted
from common.task import Table

Norm = Literal["layer", "rms"]
Remat = Literal["none", "dots", "block"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]

ACTIVATIONS: dict[str, Callable] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}

# Logical names of the kernels of `MLP`.
MLP_NAMES: dict[str, Names] = {
    "up": ("embed", "mlp"),
    "gate": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}
# The rows of every block; a model adds those of its embeddings and heads.
PARTITION: Table = (
    *partition_rows("attention", ATTENTION_NAMES),
    *partition_rows("mlp", MLP_NAMES),
)


class MLP(nn.Module):
    """Two dense layers around an activation, or three with a gate (SwiGLU: Shazeer 2020).

    Attributes:
      hidden: F.
      activation: a key of `ACTIVATIONS`.
      gated: apply the activation to a third projection, `gate`, and multiply `up` by it.
      bias, dtype, kernel_init, out_init, constrain: as in `Attention`.
    """

    hidden: int
    activation: Activation = "gelu"
    gated: bool = False
    bias: bool = True
    dtype: Dtype | None = None
    kernel_init: Callable = nn.initializers.normal(0.02)
    out_init: Callable = nn.initializers.normal(0.02)
    constrain: Callable = identity

    @nn.compact
    def __call__(self, x):
        """[B, L, D] -> [B, L, D]."""
        dense = partial(Dense, use_bias=self.bias, dtype=self.dtype, constrain=self.constrain)

        def layer(name, features, init):
            return dense(features, kernel_init=init, names=MLP_NAMES[name], name=name)

        y = layer("up", self.hidden, self.kernel_init)(x)
        activation = ACTIVATIONS[self.activation]
        if self.gated:
            y = activation(layer("gate", self.hidden, self.kernel_init)(x)) * y
        else:
            y = activation(y)
        y = self.constrain(y, "batch", None, "mlp")
        return layer("down", x.shape[-1], self.out_init)(y)


class Block(nn.Module):
    """Attention and MLP, each with a residual connection and a norm before (pre) or after (post).

    Attributes:
      attention, mlp, norm: name -> module.
      pre_norm: x + f(norm(x)) (GPT-2) or norm(x + f(x)) (Vaswani et al. 2017, BERT).
      dropout: rate on the output of each branch; None is none. May be traced.
      constrain: pins activations to a mesh.
    """

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    pre_norm: bool
    dropout: float | None = None
    constrain: Callable = identity

    @nn.compact
    def __call__(self, x, positions, segments, train: bool, cache=None):
        """Returns ([B, L, D], cache); arguments as in `Attention`."""
        attention, mlp = self.attention(name="attention"), self.mlp(name="mlp")
        norms = self.norm(name="attention_norm"), self.norm(name="mlp_norm")
        drop = Dropout(self.dropout)
        y, cache = attention(norms[0](x) if self.pre_norm else x, positions, segments, train, cache)
        x = x + drop(y, train)
        x = x if self.pre_norm else norms[0](x)
        x = self.constrain(x, "batch", None, None)
        x = x + drop(mlp(norms[1](x) if self.pre_norm else x), train)
        x = x if self.pre_norm else norms[1](x)
        return self.constrain(x, "batch", None, None), cache


# ------------------------------------------------------------------------------------------- stack


class Transformer(nn.Module):
    """Base class of all transformers here: their fields and stack of blocks.

    Attributes:
      width: D, the width of the residual stream.
      layers: number of blocks.
      heads: H, the number of attention heads; divides D.
      kv_heads: G, the number of heads of keys and values; divides H. None is H.
      hidden: F, the width inside the MLP.
      pre_norm: True puts norms before attention and MLP and after the last block; False, after each
        (post-norm). With True, the projections onto the residual start 1 / sqrt(2 layers) as large
        (Radford et al. 2019).
      norm: LayerNorm ("layer") or RMSNorm ("rms": Zhang & Sennrich 2019).
      norm_eps: epsilon of the norms.
      bias: whether dense layers and LayerNorms have biases.
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
    hidden: int = 3072
    pre_norm: bool = True
    norm: Norm = "layer"
    norm_eps: float = 1e-5
    bias: bool = True
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

    def setup(self):
        """Creates `block_0`, … and, with pre-norm, `final_norm`."""
        self._check()
        for i in range(self.layers):
            setattr(self, f"block_{i}", self.make_block())
        if self.pre_norm:
            self.final_norm = self.make_norm()

    def _check(self):
        groups = self.heads if self.kv_heads is None else self.kv_heads
        sizes = {"width": self.width, "layers": self.layers, "heads": self.heads}
        sizes |= {"kv_heads": groups, "hidden": self.hidden}
        for name, size in sizes.items():
            require(size > 0, f"config.model.{name}: {size} is not positive")
        require(self.layers <= MOST_LAYERS, f"config.model.layers: {self.layers} is too many")
        require(
            self.width % self.heads == 0,
            f"config.model.heads: {self.heads} does not divide the width {self.width}",
        )
        require(
            self.heads % groups == 0,
            f"config.model.kv_heads: {groups} does not divide the {self.heads} heads",
        )

    @nn.nowrap
    def attention_options(self) -> dict:
        """Additional fields of `Attention`, set by a subclass."""
        return {}

    @nn.nowrap
    def make_norm(self, **where) -> nn.Module:
        """A LayerNorm or RMSNorm of this model."""
        if self.norm == "rms":
            return nn.RMSNorm(epsilon=self.norm_eps, dtype=self.dtype, **where)
        arguments = {"use_bias": self.bias, "dtype": self.dtype, "use_fast_variance": False}
        return nn.LayerNorm(epsilon=self.norm_eps, **arguments, **where)

    @nn.nowrap
    def make_block(self, **where) -> nn.Module:
        """One block of this model."""
        out_std = self.init_std / math.sqrt(2 * self.layers) if self.pre_norm else self.init_std
        shared = {
            "bias": self.bias,
            "dtype": self.dtype,
            "kernel_init": nn.initializers.normal(self.init_std),
            "out_init": nn.initializers.normal(out_std),
            "constrain": self.constrain,
        }
        attention = partial(
            Attention,
            heads=self.heads,
            kv_heads=self.kv_heads,
            causal=self.CAUSAL,
            dropout=self.attention_dropout,
            implementation=self.implementation,
            **self.attention_options(),
            **shared,
        )
        mlp = partial(
            MLP, hidden=self.hidden, activation=self.activation, gated=self.gated, **shared
        )
        block = Block
        if self.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = policy if self.remat == "dots" else None
            block = nn.remat(Block, static_argnums=(4,), policy=policy)
        return block(
            attention, mlp, self.make_norm, self.pre_norm, self.dropout, self.constrain, **where
        )

    def stack(self, x, positions, segments=None, train: bool = False, cache: Cache | None = None):
        """Runs the blocks: [B, L, D] -> [B, L, D], or ([B, L, D], Cache) if a cache is given.

        Args:
          x: [B, L, D], embedded.
          positions: i32[B, L], each position's place in its segment.
          segments: i32[B, L] or None: positions attend only within their segment; 0 is padding.
          train: whether dropout is active.
          cache: keys and values of earlier positions, which the new ones follow; L + length must
            not exceed T. Excludes segments.
        """
        if cache is None:
            x = self._blocks(x, positions, segments, train)
            return self.final_norm(x) if self.pre_norm else x
        keys, values = [], []
        for i in range(self.layers):
            x, (key, value) = getattr(self, f"block_{i}")(
                x, positions, None, train, (cache.keys[i], cache.values[i])
            )
            keys.append(key)
            values.append(value)
        cache = Cache(tuple(keys), tuple(values), cache.length + x.shape[1])
        return (self.final_norm(x) if self.pre_norm else x), cache

    def _blocks(self, x, positions, segments, train: bool):
        if self.scan and not self.is_initializing():
            return self._scanned(x, positions, segments, train)
        for i in range(self.layers):
            x, _ = getattr(self, f"block_{i}")(x, positions, segments, train)
            if wanted(self):
                self.sow("intermediates", f"hidden_{i}", x)
        return x

    def _scanned(self, x, positions, segments, train: bool):
        params = [self.variables["params"][f"block_{i}"] for i in range(self.layers)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        block, captures = self.make_block(parent=None), wanted(self)
        key = self.make_rng("dropout") if self.has_rng("dropout") else jax.random.key(0)

        def body(x, inputs):
            params, key = inputs
            (x, _), kept = block.apply(
                {"params": params},
                *(x, positions, segments, train),
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
    def stack_flops(self, length: int) -> int:
        """FLOPs of the blocks' forward pass on one row of L = `length` positions.

        Counts matrix multiplications only, two a multiply-add. Attention counts in full, whatever
        its mask hides, as for the MFU of PaLM (Chowdhery et al. 2022, appendix B): causality,
        windows and packed documents save nothing here. Needs no parameters.
        """
        groups = self.heads if self.kv_heads is None else self.kv_heads
        key_width = self.width // self.heads * groups
        projections = 2 * self.width * (self.width + key_width)  # query and out, key and value
        maps = 2 * self.width * length  # queries by keys, and by values
        mlp = (3 if self.gated else 2) * self.width * self.hidden
        return 2 * self.layers * length * (projections + maps + mlp)

    @nn.nowrap
    def empty_cache(self, batch_size: int, length: int, dtype=jnp.float32) -> Cache:
        """An empty cache: B rows with room for T = `length` positions. Needs no parameters."""
        groups = self.heads if self.kv_heads is None else self.kv_heads
        shape = (batch_size, length, groups, self.width // self.heads)
        zeros = lambda: tuple(jnp.zeros(shape, dtype) for _ in range(self.layers))
        return Cache(zeros(), zeros(), jnp.zeros(batch_size, jnp.int32))


class SequenceTransformer(Transformer, kw_only=True):
    """A transformer over sequences of tokens: the base of BERT, GPT and others.

    Attributes:
      positions: position embeddings: learned; sinusoidal, or sinusoidal times one learned scale
        (Hua et al. 2022); or rotary.
      max_length: number of learned position embeddings.
      theta: base of the rotary wavelengths.
      window: a position attends only to those at a distance below this; None is all.
      Others: see `Transformer`.
    """

    positions: Literal["learned", "sinusoidal", "scaled_sinusoidal", "rotary"] = "learned"
    max_length: int = 512
    theta: float = 10000.0
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
        odd = (self.width // self.heads) % 2 if self.positions == "rotary" else self.width % 2
        require(
            self.positions == "learned" or not odd,
            f"config.model.positions: {self.positions!r} pairs columns, but their number is odd",
        )

    @nn.nowrap
    def attention_options(self) -> dict:
        """Window and rotary base of `Attention`."""
        theta = self.theta if self.positions == "rotary" else None
        return {"window": self.window, "theta": theta}

    def with_positions(self, x, positions, table: Callable):
        """Embeddings [B, L, D] plus position embeddings, unless positions are rotary.

        Args:
          x: [B, L, D].
          positions: i32[B, L].
          table: i32[B, L] -> [B, L, D]: looks up learned position embeddings.

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
        waves = sinusoids(positions, self.width, jnp.promote_types(x.dtype, jnp.float32))
        scale = 1.0 if self.positions == "sinusoidal" else self.position_scale
        return x + (scale * waves).astype(x.dtype)
