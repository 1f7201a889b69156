"""Layers that linen lacks or implements more slowly; shared by image and language models.

Letters: B batch, H height, W width, C channels; D embedding width, V vocabulary.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

Names = tuple[str | None, ...]
Dtype = Literal["float32", "bfloat16"]  # of a computation; parameters and logits are f32
Remat = Literal["none", "dots", "block"]
MOST_LAYERS = 10_000  # tracing takes milliseconds for each of them


def identity(x, *names):
    """The default of a module's `constrain` field: no mesh. `names` are logical axes."""
    del names
    return x


def partition_rows(module: str, names: dict[str, Names]) -> tuple[tuple[str, Names], ...]:
    """Rows of a `PARTITION` for the kernels of a module, from the names that its layers carry.

    Args:
      module: name of the module, wherever it stands in a model.
      names: {layer: logical names of its kernel's dimensions}.
    """
    layers: dict[Names, list[str]] = {}
    for layer, axes in names.items():
        layers.setdefault(axes, []).append(layer)
    return tuple((rf"(.*/)?{module}/({'|'.join(g)})/kernel", axes) for axes, g in layers.items())


def gathered(constrain: Callable, x, names: Names):
    """All-gathers a parameter for use along `embed`, the dimension that FSDP shards.

    The constraint is explicit because XLA otherwise moves activations between devices instead, or
    multiplies around a ring. The gradient is reduced directly into the parameter's own sharding.

    Args:
      constrain: a module's `constrain` field.
      x: the parameter, in the dtype of the computation.
      names: logical names of its dimensions, as in the model's `PARTITION`.
    """
    if constrain is identity:
        return x
    unsharded = [None if name == "embed" else name for name in names]
    gather = jax.custom_vjp(lambda x: constrain(x, *unsharded))
    # The gradient is a sum over devices, of which each keeps its own shard.
    backward = lambda _, g: (constrain(constrain(g, *unsharded), *names),)
    gather.defvjp(lambda x: (constrain(x, *unsharded), None), backward)
    return gather(x)


def on_parts(constrain: Callable, function: Callable, names: Names, like: tuple, *arrays):
    """Runs `function(*arrays)` on each device's shard: for kernels, which XLA cannot partition.

    Args:
      constrain: a module's `constrain` field.
      function: takes arrays whose leading dimensions are sharded alike; so is its result.
      names: logical names of those dimensions.
      like: a shape that determines which of them are divisible.
      arrays: may have fewer dimensions than there are names; a dimension of size 1 is not sharded.
    """
    if constrain is identity:
        return function(*arrays)
    return constrain.on_parts(function, names, like, arrays)


def recomputed(block: Callable, remat: Remat, *static: int) -> Callable:
    """A block whose backward pass recomputes what a model's field `remat` says.

    Args:
      block: a module class, or a function whose first argument is a module.
      remat: "none" keeps every activation; "block" only the input of the block; "dots" the results
        of its matrix products and convolutions as well.
      static: places of arguments that are Python values; the module is at 0.
    """
    if remat == "none":
        return block
    return nn.remat(block, static_argnums=static, policy=_products if remat == "dots" else None)


def _products(primitive, *args, **params) -> bool:
    """Whether the backward pass finds the result of a primitive saved."""
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive.name == "conv_general_dilated" or products(primitive, *args, **params)


def wanted(module: nn.Module) -> bool:
    """Whether the caller asked for intermediates."""
    return module.is_mutable_collection("intermediates") and not module.is_initializing()


def named(module: nn.Module, name: str, x):
    """Exposes activation `x` by name for capture or perturbation gradients; otherwise a no-op.

    With `mutable=["intermediates"]`, `apply` returns it. An entry of that name in the collection
    `perturbations` is added to it, so that one can differentiate with respect to it:
    `apply({"params": params, "perturbations": {"stage_3": zeros}}, …)`.
    """
    if wanted(module):
        module.sow("intermediates", name, x)
    if module.has_variable("perturbations", name):
        x = x + module.get_variable("perturbations", name)
    return x


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014) whose rate may be traced.

    `rate=None` disables dropout at no cost; 0.0 draws the random bits and keeps everything. Needs
    an rng named "dropout" when active.
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
    """Max pooling over non-overlapping windows; drops a ragged edge, as "VALID" padding does.

    Args:
      x: [B, H, W, C].
      window: side and stride.

    Returns:
      [B, H // window, W // window, C]. Reshape and max: 1.4 times as fast as reduce_window on CPU.
    """
    batch, height, width, channels = x.shape
    height, width = height // window, width // window
    x = x[:, : height * window, : width * window]
    return reshaped(x, batch, height, window, width, window, channels).max(axis=(2, 4))


class Dense(nn.Module):
    """`nn.Dense` that flattens x to a matrix first: otherwise the kernel's gradient contracts two
    dimensions at once, which is slower on CPU.

    Attributes:
      features: columns of the kernel.
      use_bias: whether to add a bias.
      dtype: of the computation; None takes that of x and the parameters.
      kernel_init: initializer of the kernel.
      names: logical names of the kernel's dimensions, as in the model's `PARTITION`.
      constrain: pins the sharding of activations and gathered parameters.
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
        kernel = self.gather(kernel, self.names)
        y = product(x.reshape(-1, shape[0]), kernel)
        y = y if bias is None else y + bias
        return y.reshape(*x.shape[:-1], self.features)

    @nn.nowrap
    def gather(self, x, names: Names):
        """A kernel, or what is multiplied in its place (`common.compress.lora`), gathered for use
        as `gathered` does."""
        return gathered(self.constrain, x, names)


class Embedding(nn.Module):
    """A table with a vector for each of N integers: `nn.Embed`, sharded.

    Attributes:
      rows: N.
      width: D.
      dtype: of the result; None takes that of the parameters.
      init_std: standard deviation at initialization. May be traced.
      constrain: pins the sharding of the gathered table.
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
        return looked_up(table, numbers).astype(self.dtype or table.dtype)


class TiedEmbedding(nn.Module):
    """Token embeddings tied to the output projection onto the vocabulary (Press & Wolf 2017).

    The matrix is padded to a multiple of 128 rows, which accelerators multiply faster and which
    divides over more devices; rows beyond V are never predicted.

    Attributes:
      vocab_size: V.
      width: D.
      dtype: of the computation; None takes that of the parameters.
      init_std: standard deviation at initialization. May be traced.
      constrain: pins the sharding of the gathered table.
    """

    vocab_size: int
    width: int
    dtype: str | None = None
    init_std: float = 0.02
    constrain: Callable = identity

    def setup(self):
        """Creates `embedding` [V rounded up, D]."""
        shape = padded(self.vocab_size), self.width
        init = nn.initializers.normal(self.init_std)
        self.embedding = self.param("embedding", init, shape, jnp.float32)

    def __call__(self, tokens):
        """i32[...] -> [..., D]; NaN for a token beyond the last row."""
        table = gathered(self.constrain, self.embedding, ("vocab", "embed"))
        return looked_up(table, tokens).astype(self.dtype or table.dtype)

    def logits(self, x):
        """[..., D] -> [..., V], f32 or wider."""
        table = gathered(self.constrain, self.embedding.astype(x.dtype), ("vocab", "embed"))
        return project(x, table)[..., : self.vocab_size]


def padded(vocab_size: int) -> int:
    """The vocabulary rounded up to a multiple of 128."""
    return -(-vocab_size // 128) * 128


def project(x, table):
    """[..., D] times the transpose of [V, D]: [..., V], f32 or wider, multiplied in x's dtype."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    contracted = (x.ndim - 1,), (1,)
    table = table.astype(x.dtype)
    return jax.lax.dot_general(x, table, (contracted, ((), ())), preferred_element_type=dtype)


def product(x, kernel):
    """[N, inputs] times [inputs, outputs], of one dtype: the same program as `x @ kernel`, but
    spelled so that libraries which intercept products see it (`common.compress`)."""
    contracted = (1,), (0,)
    return jax.lax.dot_general(x, kernel, (contracted, ((), ())), preferred_element_type=x.dtype)


# ------------------------------------------------------------------------------------ explicit axes
# On a mesh with Explicit axes (`jax.make_mesh`'s default) jax follows shardings through types, and
# wants that of a result where an operation leaves it open. The rows of a batch stay where they are.


def by_rows(x, dimensions: int) -> NamedSharding | None:
    """The sharding of an array of so many dimensions whose first is split as that of `x`; None if
    `x` is not split by explicit axes, which leaves the choice to XLA."""
    sharding = jax.typeof(x).sharding
    split = sharding.spec[0] if len(sharding.spec) else None
    if split is None:
        return None
    return NamedSharding(sharding.mesh, P(split, *(None,) * (dimensions - 1)))


def reshaped(x, *shape: int):
    """`x.reshape(shape)`, where the first dimension is a batch before and after."""
    return jnp.reshape(x, shape, out_sharding=by_rows(x, len(shape)))


def repeated(x, like, shape: tuple[int, ...]):
    """`x` broadcast to `shape`, whose first dimension is the batch of `like`."""
    return jnp.broadcast_to(x, shape, out_sharding=by_rows(like, len(shape)))


def split_like(x, like):
    """`x`, whose first dimension is the batch of `like`, split over devices as that is."""
    sharding = by_rows(like, x.ndim)
    return x if sharding is None else jax.sharding.reshard(x, sharding)


def looked_up(table, numbers):
    """Rows of a table: [N, D], i32[...] -> [..., D]. NaN for numbers from N on."""
    sharding = by_rows(numbers, numbers.ndim + 1)
    if sharding is None:
        return jnp.take(table, numbers, axis=0)
    return table.at[numbers].get(mode="fill", fill_value=jnp.nan, out_sharding=sharding)
