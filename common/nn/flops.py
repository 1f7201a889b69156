"""FLOPs of a traced program: the total of its matrix products and convolutions.

XLA's `cost_analysis` counts a loop body once, and after partitioning; a jaxpr shows the whole
computation. The analytic count lives with each model (`Task.flops`); tests compare all three.
"""

import math

from jax.extend.core import jaxprs_in_params


def traced(jaxpr) -> int:
    """FLOPs of the matrix multiplications and convolutions in a jaxpr, two per multiply-add.

    Recomputation in the backward pass counts; the body of a `while` loop counts once, and of the
    branches of a `cond` only the largest.
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
        inner_flops = [traced(inner) for inner in jaxprs_in_params(params)]
        if name == "cond":  # only one branch runs
            inner_flops = [max(inner_flops)]
        elif name == "shard_map":  # the inner jaxpr is that of one device
            inner_flops = [params["mesh"].size * n for n in inner_flops]
        elif name == "pallas_call":
            inner_flops = [math.prod(params["grid_mapping"].grid) * n for n in inner_flops]
        total += sum(inner_flops) * params.get("length", 1)  # the length of a scan
    return total
