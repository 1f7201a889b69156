"""Functions of a model as StableHLO with symbolic sizes, for cpu, cuda and tpu at once.

Letters: B batch.
"""

import logging
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from common import predict
from common.errors import BadInput, require
from common.imports import described
from common.serving import artifact
from common.task import Function, Predictor

PLATFORMS = ("cpu", "cuda", "tpu")
# What JAX adds to check symbolic dimensions, and takes away once they are known.
CHECKS = {"shape_assertion"}
TOLERANCE = 1e-5  # of float32; relative to the largest number, if that exceeds 1
COARSE = 2e-2  # of programs that compute in fewer bits
FEW_BITS = re.compile(r"x(bf16|f16|f8\w*|i4|i8)>")  # an image's pixels are ui8


class Lowered(NamedTuple):
    """A function, lowered.

    Attributes:
      entry: of the manifest.
      code: the StableHLO.
      calls: example inputs, {name: array} each, the second with another size of the batch and, if
        they may vary, of lengths.
      source: ({path: array}, inputs) -> outputs, as the run computes them, compiled.
      program: the same with plain attention, to be traced.
      specs: {name: ShapeDtypeStruct} of the inputs.
    """

    entry: dict
    code: bytes
    calls: list[dict]
    source: Callable
    program: Callable
    specs: dict


def lower(
    name: str, ways: tuple[Function, Function], predictor: Predictor, state, rows, options: dict
) -> Lowered:
    """Lowers a function; sizes are symbolic, or those of lengths fixed if the model needs that.

    Args:
      name: of the function.
      ways: the function, as the run computes it, and with plain attention.
      predictor: whose function it is.
      state: (params, extra).
      rows: two batches for `Function.inputs`.
      options: of the prediction, checked.

    Raises:
      BadInput: if it cannot be lowered, or a custom call is left in it.
    """
    function, plain = ways
    traced, static = predict.divided(options)
    defaults = {key: np.asarray(artifact.raw(x)) for key, x in traced.items()}
    weights = artifact.flat(*state)
    examples = [_numbered(function.inputs(*state, batch)) for batch in rows]
    both = sorted(examples[0].keys() & defaults.keys())
    require(not both, f"{name}: {both[:1]} is an input, and an option too")

    def program(function: Function, weights, inputs) -> dict:
        values = {key: _as(x, inputs[key]) for key, x in traced.items() if key in inputs}
        batch = {key: x for key, x in inputs.items() if key not in traced}
        params, extra = artifact.unflat(weights, state)
        return dict(function.apply(params, extra, batch, values | dict(static)))

    def lowered(lengths: dict):
        specs, constraints = _specs(examples[0], lengths, predictor)
        specs |= {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in defaults.items()}
        shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in weights.items()}
        make = lambda weights, inputs: program(plain, weights, inputs)
        used = _used(make, shapes, specs)
        specs = {key: spec for key, spec in specs.items() if key in used}
        blank = {path: x for path, x in shapes.items() if path not in used}

        def whole(weights, inputs):
            zeros = {path: jnp.zeros(x.shape, x.dtype) for path, x in blank.items()}
            return make(weights | zeros, inputs)

        exported = jax.export.export(jax.jit(whole, keep_unused=True), platforms=PLATFORMS)
        shapes = {path: x for path, x in shapes.items() if path in used}
        return exported(shapes, specs), shapes, specs, constraints

    try:
        made, shapes, specs, constraints = lowered(dict(function.lengths))
    except BadInput:
        raise
    except Exception as error:
        reason = _reason(error)
        require(bool(function.lengths), f"{name} cannot be exported: {reason}")
        logging.warning("%s: its lengths are fixed: %s", name, reason)
        count = len(examples[1]["index"])
        examples[1] = {key: x[:count] for key, x in examples[0].items()}
        try:
            made, shapes, specs, constraints = lowered({})
        except Exception as error:
            raise BadInput(f"{name} cannot be exported: {_reason(error)}") from error
    text = made.mlir_module()
    left = sorted(set(re.findall(r"custom_call @([\w.$]+)", text)) - CHECKS)
    require(
        not left, f"{name} cannot be exported: it calls {', '.join(left)}, which is no StableHLO"
    )
    spelled = lambda x: {
        "shape": [size if isinstance(size, int) else str(size) for size in x.shape],
        "dtype": str(x.dtype),
    }
    entry = {
        "inputs": {
            key: spelled(x) | ({"default": defaults[key].tolist()} if key in defaults else {})
            for key, x in specs.items()
        },
        "outputs": {
            key: spelled(x) for key, x in jax.tree.unflatten(made.out_tree, made.out_avals).items()
        },
        "constraints": constraints,
        "unused": sorted(weights.keys() - shapes.keys()),
        "calling_convention": made.calling_convention_version,
        "tolerance": COARSE if FEW_BITS.search(text) else TOLERANCE,
    }
    return Lowered(
        entry=entry,
        code=made.mlir_module_serialized,
        calls=[{key: (each | defaults)[key] for key in specs} for each in examples],
        source=jax.jit(lambda weights, inputs: program(function, weights, inputs)),
        program=lambda weights, inputs: program(plain, weights, inputs),
        specs=specs,
    )


def _numbered(inputs: dict) -> dict:
    """Inputs with the `index` of each row."""
    count = len(next(iter(inputs.values())))
    return {**inputs, "index": np.arange(count, dtype=np.uint32)}


def _specs(example: dict, lengths: dict[str, str], predictor: Predictor) -> tuple[dict, list[str]]:
    """({name: ShapeDtypeStruct}, constraints on the letters) of inputs like an example's."""
    letters = sorted({"b", *lengths.values()})
    bounded = predictor.longest is not None
    most = {letter for key, letter in lengths.items() if bounded and key in predictor.pads}
    constraints = [f"{letter} <= {predictor.longest}" for letter in sorted(most)]
    symbols = jax.export.symbolic_shape(",".join(letters), constraints=constraints)
    sizes = dict(zip(letters, symbols, strict=True))

    def spec(key, x):
        after = (sizes[lengths[key]],) if key in lengths else x.shape[1:2]
        return jax.ShapeDtypeStruct((sizes["b"], *after, *x.shape[2:]), x.dtype)

    return {key: spec(key, x) for key, x in example.items()}, constraints


def _used(function: Callable, *arguments: dict) -> set[str]:
    """The names of arguments, each a dict, on which the results depend."""
    closed = jax.make_jaxpr(function)(*arguments)
    needed = set(map(id, closed.jaxpr.outvars))
    for equation in reversed(closed.jaxpr.eqns):
        if any(id(x) in needed for x in equation.outvars):
            needed |= set(map(id, equation.invars))
    names = [name for argument in arguments for name in sorted(argument)]
    variables = zip(names, closed.jaxpr.invars, strict=True)
    return {name for name, variable in variables if id(variable) in needed}


def _as(like, x):
    """An input as the option that it stands for: data of a random key as the key."""
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like))
    return x


def _reason(error: Exception) -> str:
    return described(error).splitlines()[0]
