"""A scan over time whose steps apply layers: the gradients of these are computed for all steps at
once, as one product over the sequence, rather than added up step by step.

Letters: B batch, L positions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from common.nn.layers import Dense, by_rows, gathered, identity, product


@jax.custom_jvp
def _tapped(x, tap):
    """x; its derivative with respect to `tap`, an array of zeros, is that with respect to x."""
    del tap
    return x


_tapped.defjvp(lambda primals, tangents: (primals[0], tangents[0] + tangents[1]))


class RowFunction(NamedTuple):
    """A function with parameters that treats each row for itself.

    Attributes:
      apply: (parameters, [B, ..., inputs]) -> [B, ..., outputs].
      closed: parameters -> the same function of [B, inputs] alone, for the steps of a loop: what
        does not change from step to step is computed before it.
    """

    apply: Callable
    closed: Callable


def scan(
    step: Callable,
    functions: dict[str, RowFunction],
    params: dict[str, Any],
    fixed: Any,
    carry: Any,
    xs: Any,
    reverse: bool = False,
):
    """`jax.lax.scan` over time whose steps apply functions with parameters: the gradients of these
    are computed for all steps at once, after the scan, rather than added up within it.

    Args:
      step: (apply, fixed, carry, x) -> (carry, y); `apply(name, rows)` applies a function, once a
        step.
      functions: {name: function}.
      params: {name: parameters}.
      fixed: arrays that every step reads.
      carry, xs, reverse: as in `jax.lax.scan`; leaves of xs are [L, B, ...].

    Returns:
      (carry, ys), as `jax.lax.scan`.
    """

    def run(params, fixed, carry, xs):
        closed = {name: function.closed(params[name]) for name, function in functions.items()}
        apply = lambda name, rows: closed[name](rows)
        return jax.lax.scan(partial(step, apply, fixed), carry, xs, reverse=reverse)

    def forward(params, fixed, carry, xs):
        length = len(jax.tree.leaves(xs)[0])
        closed = {name: function.closed(params[name]) for name, function in functions.items()}

        def outputs_of_a_step(fixed, carry, x):
            outputs = {}

            def apply(name, rows):
                outputs[name] = closed[name](rows)
                return outputs[name]

            step(apply, fixed, carry, x)
            return outputs

        def tapping(fixed, carry, xs, taps):
            def body(carry, x):
                inputs = {}

                def apply(name, rows):
                    inputs[name] = rows
                    return _tapped(closed[name](rows), x[1][name])

                carry, y = step(apply, fixed, carry, x[0])
                return carry, (y, inputs)

            carry, (ys, inputs) = jax.lax.scan(body, carry, (xs, taps), reverse=reverse)
            return (carry, ys), inputs

        first = jax.tree.map(lambda leaf: leaf[0], xs)
        shapes = jax.eval_shape(outputs_of_a_step, fixed, carry, first)
        taps = {k: _zeros((length, *x.shape), x.dtype, carry) for k, x in shapes.items()}
        result, pull, inputs = jax.vjp(tapping, fixed, carry, xs, taps, has_aux=True)
        return result, (pull, inputs, params)

    def backward(residuals, cotangents):
        pull, inputs, params = residuals
        fixed, carry, xs, outputs = pull(cotangents)

        def of(name):
            # Rows first, as they may be split over devices.
            rows, gradient = (x[name].swapaxes(0, 1) for x in (inputs, outputs))
            apply = lambda own: functions[name].apply(own, rows)
            return jax.vjp(apply, params[name])[1](gradient)[0]

        return {name: of(name) for name in functions}, fixed, carry, xs

    run = jax.custom_vjp(run)
    run.defvjp(forward, backward)
    return run(params, fixed, carry, xs)


def _zeros(shape: tuple[int, ...], dtype, carry):
    """Zeros [L, B, ...] whose rows are split over explicit axes as those of the carry."""
    rows = by_rows(jax.tree.leaves(carry)[0], len(shape) - 1)
    sharding = None
    if rows is not None:
        sharding = NamedSharding(rows.mesh, P(None, *rows.spec))
    return jnp.broadcast_to(jnp.zeros((), dtype), shape, out_sharding=sharding)


# --------------------------------------------------------------------------------------- the layers


def row_functions(layers: dict[str, Dense]) -> tuple[dict[str, RowFunction], dict[str, dict]]:
    """Bound dense layers for the steps of a `scan`: ({name: function}, {name: parameters, gathered
    and in the dtype of the computation})."""
    functions, params = {}, {}
    for name, layer in layers.items():
        others = dict(layer.variables)
        own = dict(others.pop("params"))
        kernel = own["kernel"].astype(layer.dtype or own["kernel"].dtype)
        params[name] = own | {"kernel": gathered(layer.constrain, kernel, layer.names)}
        plain = layer.clone(parent=None, name=None, constrain=identity)
        apply = partial(_applied, plain, others)
        bare = not others and own.keys() <= {"kernel", "bias"}
        functions[name] = RowFunction(apply, _closed if bare else lambda p, f=apply: partial(f, p))
    return functions, params


def _applied(layer: Dense, others: dict, params: dict, rows):
    return layer.apply({"params": params, **others}, rows)


def _closed(params: dict) -> Callable:
    """A dense layer of rows [B, inputs]. Gradients are multiplied by the kernel's transpose, which
    a loop then makes once: products by a transposed factor are slower on CPU."""
    kernel = params["kernel"]
    transposed, bias = kernel.T, params.get("bias", 0)
    return lambda rows: (_product(rows, kernel, transposed) + bias).astype(kernel.dtype)


@jax.custom_vjp
def _product(rows, kernel, transposed):
    del transposed
    return product(rows, kernel)


_product.defvjp(
    lambda rows, kernel, transposed: (product(rows, kernel), transposed),
    lambda transposed, gradient: (product(gradient, transposed), None, None),
)
