"""ONNX, and OpenVINO of it, of exported functions, with their weights inside.

`jax2onnx` (the extra `onnx`) converts operations one by one. A function is traced first, so that it
sees these alone, and those that it lacks, or has for images alone, are written as others.
"""

import contextlib
import functools
import importlib.util
import io
import logging
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from common.errors import require
from common.serving import artifact
from common.serving.lower import Lowered

NESTED = (
    "pjit",
    "jit",
    "custom_jvp_call",
    "custom_vjp_call",
    "closed_call",
    "remat2",
    "checkpoint",
)
INSTALL = "pip install -e '.[onnx]'"


def check(forms: Iterable[str]) -> None:
    """Raises `BadInput` if a package is missing."""
    packages = ("jax2onnx", "onnxruntime", *(["openvino"] if "openvino" in forms else []))
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    require(not missing, f"--onnx: {', '.join(missing)} is missing: {INSTALL}")


def write(
    folder: pathlib.Path,
    lowered: dict[str, Lowered],
    weights: dict,
    expected: dict[str, list[dict]],
    forms: Iterable[str],
) -> Iterator[tuple[str, str, float]]:
    """Writes onnx/NAME.onnx, and openvino/NAME.xml and .bin, of the functions that can be
    converted; a warning names the others.

    Args:
      folder: of the artifact.
      lowered: its functions.
      weights: {path: array}.
      expected: the run's outputs for each of `Lowered.calls`.
      forms: with "openvino", that is written, too.

    Yields:
      (form, function, the largest difference of its outputs).

    Raises:
      BadInput: if no function can be converted.
    """
    import jax2onnx
    import onnxruntime

    (folder / "onnx").mkdir()
    left_out = {}
    for name, each in lowered.items():
        path = folder / "onnx" / f"{name}.onnx"
        try:
            path.write_bytes(_converted(jax2onnx.to_onnx, name, each, weights))
            session = _session(onnxruntime, path)
        except Exception as error:
            path.unlink(missing_ok=True)
            left_out[name] = (str(error).splitlines() or [type(error).__name__])[0]
            continue
        outputs = [o.name for o in session.get_outputs()]
        run = lambda call, session=session, outputs=outputs: dict(
            zip(outputs, session.run(outputs, call), strict=True)
        )
        yield "onnx", name, _apart(run, each.calls, expected[name])
        if "openvino" in forms:
            run = _openvino(folder, name, outputs)
            yield "openvino", name, _apart(run, each.calls, expected[name])
    reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
    require(len(left_out) < len(lowered), f"--onnx: nothing can be converted: {reasons}")
    if left_out:
        logging.warning("onnx: left out, as jax2onnx cannot convert them: %s", reasons)


def _apart(run: Callable, calls: list[dict], expected: list[dict]) -> float:
    pairs = zip(calls, expected, strict=True)
    return max(artifact.difference(run(call), outputs) for call, outputs in pairs)


def _session(onnxruntime, path: pathlib.Path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _openvino(folder: pathlib.Path, name: str, outputs: list[str]) -> Callable:
    """Writes a function as OpenVINO; returns inputs -> outputs, computed in float32."""
    sys.modules.setdefault("openvino_telemetry", None)  # which reports to its makers otherwise
    import openvino

    engine = openvino.Core()
    model = engine.read_model(folder / "onnx" / f"{name}.onnx")
    path = folder / "openvino" / f"{name}.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = engine.compile_model(str(path), "CPU", settings)

    return lambda call: dict(zip(outputs, compiled(call).to_tuple(), strict=True))


def _converted(to_onnx: Callable, name: str, each: Lowered, weights: dict) -> bytes:
    """The ONNX of a function."""
    keys = list(each.specs)
    function = lambda *arrays: each.program(weights, dict(zip(keys, arrays, strict=True)))
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*each.specs.values())
    flat = lambda *arrays: _evaluated(closed.jaxpr, closed.consts, arrays)
    # What jax2onnx does not know by its own names of layers it patches while it traces.
    closed = jax.make_jaxpr(flat)(*each.specs.values())
    quiet = io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            model = to_onnx(
                core.jaxpr_as_fun(closed),
                list(each.specs.values()),
                model_name=name,
                input_names=keys,
                output_names=sorted(shapes),
            )
    finally:
        logging.disable(logging.NOTSET)
    return model.SerializeToString()


# -------------------------------------------------------------------------------- other operations


def _evaluated(jaxpr: core.Jaxpr, consts, arguments) -> list:
    """Evaluates a jaxpr with the operations of `RULES` written as others, without calls, and
    without what no result needs."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
    read = lambda x: x.val if isinstance(x, core.Literal) else values[x]
    needed = {x for x in jaxpr.outvars if not isinstance(x, core.Literal)}
    live = []
    for equation in reversed(jaxpr.eqns):
        if needed & set(equation.outvars):
            needed |= {x for x in equation.invars if not isinstance(x, core.Literal)}
            live.append(equation)
    for equation in reversed(live):
        name, params = equation.primitive.name, equation.params
        inputs = list(map(read, equation.invars))
        inner = params.get("jaxpr", params.get("call_jaxpr")) if name in NESTED else None
        if inner is not None:
            closed = hasattr(inner, "consts")
            outputs = _evaluated(
                inner.jaxpr if closed else inner, inner.consts if closed else (), inputs
            )
        elif name in RULES:
            outputs = [RULES[name](*inputs, equation.outvars[0].aval.shape, **params)]
        else:
            params = equation.primitive.get_bind_params(params)
            outputs = equation.primitive.bind(*inputs, **params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values |= zip(equation.outvars, outputs, strict=True)
    return list(map(read, jaxpr.outvars))


def _window_max(
    x, shape, *, window_dimensions, window_strides, padding, base_dilation, window_dilation
):
    """The maximum over windows, dimension by dimension: of the rows at each place in a window. For
    one in the padding the nearest row is taken, which is in the same window."""
    if {*base_dilation, *window_dilation} != {1}:
        raise NotImplementedError("a maximum over dilated windows")
    for axis, (window, stride) in enumerate(zip(window_dimensions, window_strides, strict=True)):
        if window > 1 or stride > 1:
            first = np.arange(shape[axis]) * stride - padding[axis][0]
            places = (np.clip(first + i, 0, x.shape[axis] - 1) for i in range(window))
            x = functools.reduce(jnp.maximum, (jnp.take(x, at, axis) for at in places))
    return x


def _cumulative_max(x, shape, *, axis, reverse):
    """The cumulative maximum of integers along the last axis: of what is masked."""
    if axis != x.ndim - 1 or reverse or not jnp.issubdtype(x.dtype, jnp.integer):
        raise NotImplementedError("a cumulative maximum of numbers that are no integers")
    at = jnp.arange(shape[axis])
    least = jnp.iinfo(x.dtype).min
    return jnp.where(at[:, None] >= at, x[..., None, :], least).max(axis=-1)


# {operation: (inputs, the shape of the result, parameters) -> the result}
RULES = {"reduce_window_max": _window_max, "cummax": _cumulative_max}
