"""FLOPs of a traced program: what its matrix products and convolutions come to.

XLA's `cost_analysis` counts the body of a loop once, and after partitioning; a jaxpr shows all of
it. What a model itself says is beside the model (`Task.flops`); the tests compare the three.
"""

import math

from jax.extend.core import jaxprs_in_params


def traced(jaxpr) -> int:
    """FLOPs of the matrix multiplications and convolutions of a jaxpr, two a multiply-add.

    What a backward pass computes again is counted again; a `while` loop counts once, and of the
    branches of a `cond` the largest.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        shapes = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * math.prod(shapes[-1]) * math.prod(shapes[0][i] for i in contracted)
        elif name == "conv_general_dilated":
            features = shapes[1][params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(shapes[-1]) * math.prod(shapes[1]) // features
        inside = [traced(inner) for inner in jaxprs_in_params(params)]
        if name == "cond":  # one of them runs
            inside = [max(inside)]
        elif name == "shard_map":  # what one device does
            inside = [params["mesh"].size * n for n in inside]
        elif name == "pallas_call":
            inside = [math.prod(params["grid_mapping"].grid) * n for n in inside]
        total += sum(inside) * params.get("length", 1)  # of a scan
    return total
