"""Products by quantized kernels, as they are traced. Imports qwix; see `quantize`.

While a model's methods run, qwix puts something else in the place of `jax.lax.dot_general` and
`jax.lax.conv_general_dilated`, for the thread that traces them. A product is one by a kernel if it
is made in the module that owns the kernel, and its second factor has the kernel's shape.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import qwix
from flax.core import tracers

from common.compress.rounding import (
    COLLECTION,
    WHERE,
    Scheme,
    channels_of,
    integers,
    named,
    rounded,
)
from common.errors import BadInput, require


class _Kernel(NamedTuple):
    """A named kernel: the module that owns it, its name there, its path in the model."""

    module: nn.Module
    name: str
    path: str


class Products(qwix.QuantizationProvider):
    """Rounds the activations that meet a named kernel, or multiplies integers.

    Attributes:
      multiplied: the paths of the named kernels of which a product was seen.
    """

    def __init__(self, scheme: Scheme):
        """Of a scheme."""
        super().__init__([])
        self.scheme, self.multiplied = scheme, set()

    def get_intercept_map(self) -> dict[str, Callable]:
        """{function: what takes its place}, as qwix asks for it."""
        return super().get_intercept_map() | {
            "jax.lax.dot_general": self.dot_general,
            "jax.lax.conv_general_dilated": self.conv_general_dilated,
        }

    def dot_general(self, lhs, rhs, dimension_numbers, *args, **kwargs):
        """In the place of `jax.lax.dot_general`."""
        (left, right), _ = dimension_numbers
        floats = lambda lhs: jax.lax.dot_general(lhs, rhs, dimension_numbers, *args, **kwargs)
        multiplied = lambda lhs, rhs: qwix.dot_general(lhs, rhs, dimension_numbers)
        rows = [axis for axis in range(lhs.ndim) if axis not in left]
        return self._product(lhs, rhs, rows, right, floats, multiplied)

    def conv_general_dilated(self, lhs, rhs, *args, **kwargs):
        """In the place of `jax.lax.conv_general_dilated`."""
        floats = lambda lhs: jax.lax.conv_general_dilated(lhs, rhs, *args, **kwargs)
        numbers = kwargs.get("dimension_numbers", args[4] if len(args) > 4 else None)
        numbers = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers)
        contracted = [axis for axis in range(rhs.ndim) if axis != numbers.rhs_spec[0]]
        multiplied = lambda lhs, rhs: qwix.conv_general_dilated(lhs, rhs, *args, **kwargs)
        return self._product(lhs, rhs, [numbers.lhs_spec[0]], contracted, floats, multiplied)

    def _product(self, lhs, rhs, rows, contracted, floats: Callable, multiplied: Callable):
        """A product, by integers if the scheme says so.

        Args:
          lhs, rhs: the factors.
          rows: the dimensions of lhs with a scale for each index.
          contracted: the dimensions of rhs that are summed over.
          floats: lhs -> the product as the model computes it.
          multiplied: (QArray, QArray) -> the product.
        """
        kernel = self._kernel_of(rhs)
        if kernel is None:
            return floats(lhs)
        require(
            channels_of(kernel.path, rhs.ndim) not in contracted,
            f"{WHERE}.paths: {kernel.path} has a scale for each index that its product sums over: "
            "it cannot be quantized",
        )
        self.multiplied.add(kernel.path)
        if not self.scheme.activations or kernel.module.is_initializing():
            return floats(lhs)
        if not self.scheme.after:
            return floats(rounded(lhs, self.scheme.activations, *rows))
        stored = kernel.module.get_variable(COLLECTION, kernel.name)
        right = qwix.QArray(stored["value"], stored["scale"])
        dtype = jax.eval_shape(floats, lhs).dtype

        def product(lhs):
            left = integers(lhs, self.scheme.activations, *rows)
            return multiplied(left, right).astype(dtype)

        # For those who ask how inputs matter, the gradient of the same product of floats.
        straight = jax.custom_vjp(product)
        backward = lambda lhs, g: jax.vjp(floats, lhs)[1](g)
        straight.defvjp(lambda lhs: (product(lhs), lhs), backward)
        return straight(lhs)

    def _kernel_of(self, rhs) -> _Kernel | None:
        """The named kernel of which `rhs` is made; None if it is made of no such one."""
        module = nn.module._context.module_stack[-1]
        if module is None or module.scope is None:
            return None
        # A jitted function in the module, such as `jnp.matmul`, would keep what it traced here.
        if tracers.current_trace() != module.scope.trace_level:
            return None
        for name, value in module.variables.get("params", {}).items():
            path = "/".join((*module.path, name))
            if getattr(value, "shape", None) == rhs.shape and named(self.scheme, path):
                return _Kernel(module, name, path)
        return None


@functools.cache
def check_backend(weights: str, activations: str) -> None:
    """Raises `BadInput` if the backend cannot round to these integers, or multiply them."""

    def product(lhs, rhs):
        q = integers(rhs, weights, 1)
        q = qwix.QArray(q.qvalue.astype(jnp.int8), q.scale)
        if activations:
            lhs = integers(lhs, activations, 0)
        return qwix.dot_general(lhs, q, (((1,), (0,)), ((), ())))

    shape = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    try:
        jax.jit(product).lower(shape, shape).compile()
    except Exception as error:  # of the compiler, which has its own for each backend
        kinds = " and ".join(dict.fromkeys(filter(None, (weights, activations))))
        raise BadInput(
            f"{WHERE}: this backend ({jax.default_backend()}) has no products of {kinds}: "
            f"{str(error).splitlines()[0][:200]}"
        ) from error
