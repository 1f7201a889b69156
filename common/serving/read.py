"""Calls the functions of an exported model, by arrays. Needs jax and numpy alone.

    python read.py predict inputs.npz outputs.npz       # other functions: see manifest.json

    functions = read.load(folder)
    outputs = functions["predict"]({"tokens": tokens, …})     # {name: array} -> {name: array}

Letters are dimensions of any size, the same for all inputs; an input with a default may be absent.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

FORMAT = 1
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TYPES |= {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"}
TYPES |= {"U64": "uint64", "U32": "uint32", "U16": "uint16", "BOOL": "bool"}


class Unusable(ValueError):
    """The artifact, or an input, cannot be used; the message is one line."""


def tensors(data: bytes) -> dict:
    """{name: array} of a safetensors file: the header's size as u64, the header, the values."""
    start = 8 + int.from_bytes(data[:8], "little")
    header, arrays = json.loads(data[8:start]), {}
    header.pop("__metadata__", None)
    for name, each in header.items():
        place = jnp.dtype(TYPES[each["dtype"]]), math.prod(each["shape"])
        array = np.frombuffer(data, *place, offset=start + each["data_offsets"][0])
        arrays[name] = array.reshape(each["shape"])
    return arrays


def verified(folder) -> tuple[dict, dict]:
    """(the manifest, {name: contents}) of an artifact whose files are as they were exported."""
    folder = pathlib.Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        digest = manifest.pop("sha256")
        whole = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    except OSError as error:
        raise Unusable(f"{folder}: no artifact: manifest.json: {error.strerror}") from error
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise Unusable(f"{folder}: manifest.json is damaged; export again") from error
    version = manifest.get("format")
    if version != FORMAT:
        raise Unusable(f"{folder}: of format {version}, and this reads {FORMAT}: use its read.py")
    if digest != whole:
        raise Unusable(f"{folder}: manifest.json was changed; export again")
    contents = {}
    for name, expected in manifest["files"].items():
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise Unusable(f"{folder}: {name}: {error.strerror}; export again") from error
        if hashlib.sha256(contents[name]).hexdigest() != expected:
            raise Unusable(f"{folder}: {name} is not as it was exported; export again")
    return manifest, contents


def load(folder) -> dict:
    """{name: function of {name: array}, which returns {name: array}} of an artifact."""
    manifest, contents = verified(folder)
    weights = jax.device_put(tensors(contents["weights.safetensors"]))
    return {name: called(name, manifest, contents, weights) for name in manifest["functions"]}


def called(name: str, manifest: dict, contents: dict, weights: dict):
    """A function of an artifact, of {name: array}."""
    inputs = manifest["functions"][name]["inputs"]
    defaults = {key: each["default"] for key, each in inputs.items() if "default" in each}
    compute = jax.jit(exported(name, manifest, contents, weights))

    def call(given: dict) -> dict:
        given = defaults | given
        if given.keys() != inputs.keys():
            raise Unusable(f"{name}: inputs are {', '.join(inputs)}, not {', '.join(given)}")
        fitted = {k: _fitted(f"{name}: {k}", x, inputs[k]) for k, x in given.items()}
        return compute(weights, fitted)

    return call


def _fitted(what: str, x, entry: dict) -> np.ndarray:
    """An input in the dtype of its entry in the manifest, which must hold its values: floats are
    rounded, and whole numbers may come in any dtype."""
    x, dtype, shape = np.asarray(x), jnp.dtype(entry["dtype"]), entry["shape"]
    same = len(x.shape) == len(shape) and all(
        isinstance(wanted, str) or wanted == size
        for wanted, size in zip(shape, x.shape, strict=True)
    )
    if not same:
        wanted = f"[{', '.join(map(str, shape))}]"
        raise Unusable(f"{what} has the shape {list(x.shape)}, and the function takes {wanted}")
    if x.dtype.kind not in "biufV":  # V: bfloat16
        raise Unusable(f"{what} is {x.dtype}, and the function takes {dtype}")
    with np.errstate(invalid="ignore"):
        made = x.astype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating) and not np.array_equal(made, x):
        raise Unusable(f"{what} is {x.dtype}, of values that {dtype} does not have")
    return made


def exported(name: str, manifest: dict, contents: dict, weights: dict):
    """A function of an artifact, of ({path: array}, {name: array}), which jax can compile."""
    entry = manifest["functions"][name]
    scope = jax.export.SymbolicScope(entry["constraints"])

    def spec(each: dict) -> jax.ShapeDtypeStruct:
        shape = jax.export.symbolic_shape(f"({','.join(map(str, each['shape']))})", scope=scope)
        return jax.ShapeDtypeStruct(shape, jnp.dtype(each["dtype"]))

    def blank(weights, inputs):
        return {key: jnp.zeros(x.shape, x.dtype) for key, x in outputs.items()}

    used = lambda weights: {path: x for path, x in weights.items() if path not in entry["unused"]}
    inputs = {key: spec(each) for key, each in entry["inputs"].items()}
    outputs = {key: spec(each) for key, each in entry["outputs"].items()}
    # A function of the same types, whose code is then replaced.
    blank = jax.export.export(jax.jit(blank, keep_unused=True), platforms=manifest["platforms"])
    same = blank(jax.eval_shape(used, weights), inputs)
    if same.calling_convention_version != entry["calling_convention"]:
        raise Unusable(f"{name}: exported by jax {manifest['versions']['jax']}; this jax differs")
    code = contents[f"{name}.stablehlo"]
    call = dataclasses.replace(same, mlir_module_serialized=code).call
    return lambda weights, inputs: call(used(weights), inputs)


def main(words: list[str]) -> None:
    """Runs the command line: FUNCTION INPUTS OUTPUTS, any number of times."""
    if not words or len(words) % 3:
        raise Unusable("give a function, a file of its inputs and one for its outputs (.npz)")
    functions = load(pathlib.Path(__file__).parent)
    for name, source, to in zip(words[::3], words[1::3], words[2::3], strict=True):
        if name not in functions:
            raise Unusable(f"{name}: no such function; there are {', '.join(functions)}")
        with np.load(source) as inputs:
            outputs = functions[name](dict(inputs))
        wide = lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x
        np.savez(to, **{key: np.asarray(wide(x)) for key, x in outputs.items()})


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        sys.exit(f"error: {lines[0]}")
