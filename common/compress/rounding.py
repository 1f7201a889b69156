"""Numbers rounded to integers and scales, by qwix (an extra), and what is rounded."""

import re
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Weights = Literal["", "int8", "int4"]
Activations = Literal["", "int8"]
WHERE = "config.compress.quantize"
# By how much scales are larger than they need be. Else pixels of half the largest value would lie
# half-way between two integers, and the last bit of a quotient would decide.
ROOM = 1024 / 1023
COLLECTION = "quantized"  # of the kernels' integers, for products with integers


class Scheme(NamedTuple):
    """The section `compress.quantize`; see `scheme`."""

    weights: Weights
    activations: Activations
    paths: str
    how: Literal["training", "after"]

    @property
    def after(self) -> bool:
        """Whether the parameters are integers."""
        return bool(self.weights) and self.how == "after"


def named(chosen: Scheme, path: str) -> bool:
    """Whether the parameter of this path is quantized."""
    return re.fullmatch(chosen.paths, path) is not None


def channels_of(path: str, dimensions: int) -> int:
    """The dimension along which a parameter has a scale each: the outputs of its product."""
    return 0 if path.rpartition("/")[2] == "embedding" else dimensions - 1


def integers(x, kind: str, *channels: int):
    """A qwix.QArray of x, with integers of `kind` and f32 scales, one for each index of the
    dimensions `channels`, with which the largest number becomes the largest integer."""
    import qwix  # `applied` has reported it if it is missing

    most = jnp.iinfo(kind).max
    method = f"absmax,{ROOM * (most + 0.5) / most}"  # qwix divides by the largest and a half
    wide = x.astype(jnp.float32)
    return qwix.quantize(wide, kind, channelwise_axes=channels, calibration_method=method)


def rounded(x, kind: str, *channels: int):
    """`x` rounded to what integers and scales can say, in f32 and returned in x's dtype; its
    gradient is that of `x`.

    Args:
      x: floats.
      kind: "int8" or "int4".
      channels: the dimensions with a scale for each index.
    """
    q = integers(jax.lax.stop_gradient(x), kind, *channels)
    value = (q.qvalue.astype(jnp.float32) * q.scale).astype(x.dtype)
    return jax.lax.stop_gradient(value) + (x - jax.lax.stop_gradient(x))  # + 0, exactly
