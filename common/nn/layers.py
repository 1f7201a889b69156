"""Layers that linen lacks or does in a slower way; shared by image and language models.

Letters: B batch, H height, W width, C channels; D width of an embedding, V vocabulary.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Names = tuple[str | None, ...]


def identity(x, *names):
    """The default of a module's `constrain` field: no mesh in sight. `names` are logical axes."""
    del names
    return x


def gathered(constrain: Callable, x, names: Names):
    """A parameter as it is used: whole along `embed`, the dimension that FSDP splits.

    Said outright, because XLA otherwise moves activations between devices instead, or multiplies in
    a ring. The gradient is reduced straight to where the parameter lives.

    Args:
      constrain: a module's `constrain` field.
      x: the parameter, in the type of the computation.
      names: the logical names of its dimensions, as in the model's `PARTITION`.
    """
    if constrain is identity:
        return x
    whole = [None if name == "embed" else name for name in names]
    use = jax.custom_vjp(lambda x: constrain(x, *whole))
    back = lambda _, g: (constrain(constrain(g, *whole), *names),)  # a sum, of which a part is kept
    use.defvjp(lambda x: (constrain(x, *whole), None), back)
    return use(x)


def on_parts(constrain: Callable, function: Callable, names: Names, like: tuple, *arrays):
    """`function(*arrays)` on each device with its part: for kernels, which XLA cannot divide.

    Args:
      constrain: a module's `constrain` field.
      function: of arrays whose first dimensions are split alike; what it returns is split so too.
      names: the logical names of those dimensions.
      like: a shape that decides which of them can be split.
      arrays: may have fewer dimensions than there are names; one of size 1 is not split.
    """
    if constrain is identity:
        return function(*arrays)
    return constrain.on_parts(function, names, like, arrays)


def wanted(module: nn.Module) -> bool:
    """Whether the caller asked for intermediates."""
    return module.is_mutable_collection("intermediates") and not module.is_initializing()


def named(module: nn.Module, name: str, x):
    """`x` under a name by which a caller gets at it; costs nothing where nobody does.

    With `mutable=["intermediates"]`, `apply` returns it. What stands under the name in a collection
    `perturbations` is added to it, so that a gradient with respect to it can be had:
    `apply({"params": params, "perturbations": {"stage_3": zeros}}, …)`.
    """
    if wanted(module):
        module.sow("intermediates", name, x)
    if module.has_variable("perturbations", name):
        x = x + module.get_variable("perturbations", name)
    return x


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014) whose rate may be a traced number.

    `rate=None` is no dropout at all and costs nothing; 0.0 draws the random bits and keeps
    everything. Needs an rng named "dropout" when it is active.
    """

    rate: float | None = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Returns x, with each element zeroed with probability `rate` when `train`."""
        if self.rate is None or not train:
            return x
        keep = 1.0 - jnp.asarray(self.rate, jnp.float32)
        kept = jax.random.uniform(self.make_rng("dropout"), x.shape) < keep
        return jnp.where(kept, x / jnp.maximum(keep, 1e-6).astype(x.dtype), 0)


def max_pool(x, window: int = 2):
    """Max over windows that do not overlap; a ragged edge is dropped, as `valid` padding does.

    Args:
      x: [B, H, W, C].
      window: side and stride.

    Returns:
      [B, H // window, W // window, C]. Reshape and max: on CPU 1.4 times faster than reduce_window.
    """
    batch, height, width, channels = x.shape
    height, width = height // window, width // window
    x = x[:, : height * window, : width * window]
    return x.reshape(batch, height, window, width, window, channels).max(axis=(2, 4))


class Dense(nn.Module):
    """`nn.Dense` that multiplies two matrices whatever the shape of x: on CPU the gradient of the
    kernel is otherwise a product over two dimensions at once, which is slower.

    Attributes:
      features: columns of the kernel.
      use_bias: whether there is a bias.
      dtype: of the computation; None is that of x and the parameters.
      kernel_init: of the kernel.
      names: logical names of the kernel's dimensions, as in the model's `PARTITION`.
      constrain: pins activations and gathered parameters to a mesh.
    """

    features: int
    use_bias: bool = True
    dtype: str | None = None
    kernel_init: Callable = nn.initializers.lecun_normal()
    names: Names = (None, None)
    constrain: Callable = identity

    @nn.compact
    def __call__(self, x):
        """[..., inputs] -> [..., features]."""
        shape = x.shape[-1], self.features
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        kernel = gathered(self.constrain, kernel, self.names)
        y = x.reshape(-1, shape[0]) @ kernel
        y = y if bias is None else y + bias
        return y.reshape(*x.shape[:-1], self.features)


class Embedding(nn.Module):
    """A vector for each of a few numbers: `nn.Embed`, on a mesh.

    Attributes:
      rows: N.
      width: D.
      dtype: of the result; None is that of the parameters.
      init_std: standard deviation at first. May be traced.
      constrain: pins gathered parameters to a mesh.
    """

    rows: int
    width: int
    dtype: str | None = None
    init_std: float = 0.02
    constrain: Callable = identity

    @nn.compact
    def __call__(self, numbers):
        """i32[...] -> [..., D]."""
        init = nn.initializers.normal(self.init_std)
        table = self.param("embedding", init, (self.rows, self.width), jnp.float32)
        table = gathered(self.constrain, table, (None, "embed"))
        return jnp.take(table, numbers, axis=0).astype(self.dtype or table.dtype)


class TiedEmbedding(nn.Module):
    """Token embeddings that are also the projection onto the vocabulary (Press & Wolf 2017).

    The matrix is padded to a multiple of 128 rows, which accelerators multiply faster and more
    devices can divide; the rows behind V are never predicted.

    Attributes:
      vocab_size: V.
      width: D.
      dtype: of the computation; None is that of the parameters.
      init_std: standard deviation at first. May be traced.
      constrain: pins gathered parameters to a mesh.
    """

    vocab_size: int
    width: int
    dtype: str | None = None
    init_std: float = 0.02
    constrain: Callable = identity

    def setup(self):
        """Makes `embedding` [V rounded up, D]."""
        shape = padded(self.vocab_size), self.width
        init = nn.initializers.normal(self.init_std)
        self.embedding = self.param("embedding", init, shape, jnp.float32)

    def __call__(self, tokens):
        """i32[...] -> [..., D]; NaN for a token behind the last row."""
        table = gathered(self.constrain, self.embedding, ("vocab", "embed"))
        return jnp.take(table, tokens, axis=0).astype(self.dtype or table.dtype)

    def logits(self, x):
        """[..., D] -> [..., V], f32 or wider."""
        table = gathered(self.constrain, self.embedding.astype(x.dtype), ("vocab", "embed"))
        return project(x, table)[..., : self.vocab_size]


def padded(vocab_size: int) -> int:
    """The vocabulary rounded up to a multiple of 128."""
    return -(-vocab_size // 128) * 128


def project(x, table):
    """[..., D] times the transpose of [V, D]: [..., V], f32 or wider, multiplied in x's type."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum("...d,vd->...v", x, table.astype(x.dtype), preferred_element_type=dtype)
