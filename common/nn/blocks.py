"""A transformer's block: attention, perhaps to a memory as well, and an MLP around the residual
stream.

Attention itself is in `common.nn.attention`, the stack of blocks in `common.nn.transformer`.

Letters: B batch, L query positions, D width, F width inside the MLP.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.nn.layers import Dense, Dropout, Dtype, Names, identity

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]

ACTIVATIONS: dict[str, Callable] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # Hendrycks & Gimpel 2016
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}

# Logical names of the kernels of `MLP`.
MLP_NAMES: dict[str, Names] = {
    "up": ("embed", "mlp"),
    "gate": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}


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
      layer_scale: LayerScale (Touvron et al. 2021): the output of each branch is multiplied by a
        learned vector, which starts at this value; None is none. May be traced.
      memory_attention: name -> module of a decoder's attention to a memory, between the other two;
        None is none.
    """

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    pre_norm: bool
    dropout: float | None = None
    constrain: Callable = identity
    layer_scale: float | None = None
    memory_attention: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self, x, positions, segments, train: bool, cache=None, memory=None, position_bias=None
    ):
        """Returns ([B, L, D], cache); arguments as in `Attention`, except that the bias is that of
        the first attention, and that a cache with a memory holds what both return: (keys, values)
        or, once computed, (keys, values, memory keys, memory values)."""
        attention, mlp = self.attention(name="attention"), self.mlp(name="mlp")
        norms = self.norm(name="attention_norm"), self.norm(name="mlp_norm")
        drop = Dropout(self.dropout)

        def added(x, y, scale, norm):
            x = x + drop(self._scaled(scale, y), train)
            return self.constrain(x if self.pre_norm else norm(x), "batch", None, None)

        own, known = (None, None) if cache is None else (cache[:2], cache[2:])
        y = norms[0](x) if self.pre_norm else x
        y, cache = attention(y, positions, segments, train, own, None, position_bias)
        x = added(x, y, "attention_scale", norms[0])
        if self.memory_attention is not None:
            attention = self.memory_attention(name="memory_attention")
            norm = self.norm(name="memory_norm")
            y = norm(x) if self.pre_norm else x
            y, known = attention(y, positions, segments, train, known, memory)
            x = added(x, y, "memory_scale", norm)
            cache = None if cache is None else (*cache, *known)
        y = mlp(norms[1](x) if self.pre_norm else x)
        return added(x, y, "mlp_scale", norms[1]), cache

    def _scaled(self, name: str, y):
        if self.layer_scale is None:
            return y
        start = nn.initializers.constant(self.layer_scale)
        return y * self.param(name, start, y.shape[-1:], jnp.float32).astype(y.dtype)
