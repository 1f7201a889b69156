"""Exported models as folders: how they are written and verified, and how they predict.

    artifact = serving.artifact.load("exported")            # a `common.predict.Loaded`
    artifact.predict(["a text"])

| in the folder | |
|---|---|
| manifest.json | format, task, functions with inputs and outputs, versions, digests |
| NAME.stablehlo | a function of the model, {path: array}, {name: array} -> {name: array} |
| weights.safetensors | the arrays of its first argument |
| read.py | `common.serving.read`, which calls the functions |
| kept/ | what a workdir keeps for predictions: config, facts, tokenizer |
"""

import functools
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from importlib import metadata
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from common import predict, tree
from common.config import to_json
from common.devices import mesh, runtime
from common.errors import BadInput, require
from common.nn.layers import identity
from common.runs import facts
from common.serving import read
from common.task import Predictor
from common.training import saved
from common.training.program import task_module

WEIGHTS, MANIFEST, KEPT = "weights.safetensors", "manifest.json", "kept"
SECONDS = 3600  # that a fresh process may take


# ----------------------------------------------------------------------------------------- weights


def flat(params, extra) -> dict[str, np.ndarray]:
    """{path: array} of parameters and, with the names of their collections, of statistics. Integers
    of less than a byte, which safetensors lacks, become int8."""
    weights, more = tree.flatten(params), tree.flatten(extra)
    both = sorted(weights.keys() & more.keys())
    require(not both, f"{both[:1]} is a parameter, and a statistic too")
    return {path: _whole_bytes(np.asarray(x)) for path, x in (weights | more).items()}


def _whole_bytes(x: np.ndarray) -> np.ndarray:
    return x.astype(np.int8) if str(x.dtype) in ("int4", "uint4", "int2", "uint2") else x


def unflat(weights: dict[str, Any], like: tuple) -> tuple:
    """(params, extra): the inverse of `flat`, of any kind of pytree.

    Args:
      weights: {path: array}.
      like: (params, extra) of the same structure and dtypes.
    """

    def restored(part):
        leaves = [weights[path].astype(x.dtype) for path, x in tree.flatten(part).items()]
        return jax.tree.unflatten(jax.tree.structure(part), leaves)

    params, extra = like
    return restored(params), restored(extra)


# ----------------------------------------------------------------------------------------- writing


def write(folder: pathlib.Path, functions: dict[str, bytes], weights: dict[str, Any]) -> None:
    """Writes functions, weights and the reader into a folder."""
    for name, code in functions.items():
        (folder / f"{name}.stablehlo").write_bytes(code)
    arrays = {path: np.ascontiguousarray(x) for path, x in weights.items()}
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save(arrays))
    (folder / "read.py").write_bytes(pathlib.Path(read.__file__).read_bytes())


def write_kept(folder: pathlib.Path, config: dict, task) -> None:
    """Writes what `load` needs of a run, as its workdir has it."""
    (folder / KEPT).mkdir()
    for name, text in ({"config.json": to_json(config)} | facts.contents(task)).items():
        (folder / KEPT / name).write_text(text, encoding="utf-8")


def write_manifest(folder: pathlib.Path, described: dict) -> None:
    """Writes manifest.json: `described`, with the digests of all other files, and its own."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    digests = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
    manifest = {"format": read.FORMAT, **described, "files": digests}
    whole = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    text = json.dumps(manifest | {"sha256": whole}, indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that an export depends on."""
    return {"python": sys.version.split()[0]} | {x: metadata.version(x) for x in runtime.PACKAGES}


# --------------------------------------------------------------------------------------- verifying


def outputs_in_a_fresh_process(folder: pathlib.Path, calls: list[tuple[str, dict]]) -> list[dict]:
    """The outputs {name: array} of functions of an artifact, called by its own read.py in a process
    that knows nothing of this code.

    Args:
      folder: the artifact.
      calls: (function, {name: array}) of each call.

    Raises:
      BadInput: if it cannot be read, or a function fails.
    """
    hidden = ("PYTHONPATH", "PYTHONHOME", "XLA_FLAGS")
    environment = {k: v for k, v in os.environ.items() if k not in hidden and k[:4] != "JAX_"}
    environment |= {"JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as scratch:
        words = []
        for i, (name, inputs) in enumerate(calls):
            source, to = (
                os.path.join(scratch, f"{kind}_{i}.npz") for kind in ("inputs", "outputs")
            )
            np.savez(source, **inputs)
            words += [name, source, to]
        done = subprocess.run(
            [sys.executable, str(folder / "read.py"), *words],
            cwd=scratch,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        require(done.returncode == 0, f"the export does not run: {lines[-1]}")
        outputs = []
        for to in words[2::3]:
            with np.load(to) as arrays:
                outputs.append(dict(arrays))
        return outputs


def difference(outputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference of outputs from those expected: of numbers, divided by the largest of
    them if that exceeds 1; of integers, the share that differ. Infinite if names or shapes do."""
    if outputs.keys() != expected.keys():
        return np.inf
    return max((_distance(outputs[name], x) for name, x in expected.items()), default=0.0)


def _distance(a, b) -> float:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return np.inf
    if not np.issubdtype(b.dtype, np.inexact) and b.dtype.kind != "V":
        return float(np.mean(a != b)) if a.size else 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    apart = np.where(same, 0, np.abs(a - b))
    size = np.abs(b[np.isfinite(b)]).max(initial=1.0)
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0) / size)


# ----------------------------------------------------------------------------------------- reading


def manifest_of(folder) -> dict:
    """The manifest of an artifact, all of whose files are as they were exported.

    Raises:
      BadInput: if there is none, or a file is damaged, missing or of another version.
    """
    try:
        return read.verified(folder)[0]
    except read.Unusable as error:
        raise BadInput(str(error)) from error


def load(folder, layout: mesh.Layout | None = None) -> predict.Loaded:
    """A model that predicts by the exported functions, from raw inputs.

    Args:
      folder: the artifact.
      layout: the devices; None is all, along the batch.

    Raises:
      BadInput: as `manifest_of`.
    """
    try:
        manifest, contents = read.verified(folder)
    except read.Unusable as error:
        raise BadInput(str(error)) from error
    weights = read.tensors(contents[WEIGHTS])
    exported = read.exported("predict", manifest, contents, weights)
    names = manifest["functions"]["predict"]["inputs"]
    made, defaults = predictor(folder, manifest)
    checked = made.options
    fixed = dict(predict.divided(defaults)[1])

    def apply(params, extra, batch, options):
        for name, value in fixed.items():
            same = options[name] == value
            require(same, f"{name}: the export has it fixed at {value}, not {options[name]}")
        arrays = batch | {k: raw(x) for k, x in options.items() if k not in fixed}
        return exported(params, {name: arrays[name] for name in names})

    @functools.wraps(checked)
    def options(**values):
        return checked(**(manifest["options"] | values))

    made = filled(made._replace(apply=apply, options=options), names)
    layout = mesh.make_layout() if layout is None else layout
    return predict.loaded(made, layout, mesh.put_replicated(layout, weights), {})


def predictor(folder, manifest: dict) -> tuple[Predictor, dict]:
    """(the task's predictor, the options with which it was exported) of an artifact, by what it
    keeps: to read inputs and to make results of outputs."""
    kept = pathlib.Path(folder) / KEPT
    config = saved.read_config(kept)
    module = task_module(config["task"])
    sources = module.kept(config, saved.files.absolute(kept))
    made = module.predictor(config, sources, identity)
    return made, predict.options_of(made, manifest["options"])


def filled(predictor: Predictor, entries: dict[str, dict]) -> Predictor:
    """A predictor whose rows are of the lengths that an export has fixed.

    Args:
      predictor: of the task.
      entries: {name: {"shape": [...]}} of the function's inputs, as in the manifest; lengths of
        any size are letters.
    """
    shapes = {name: entries[name]["shape"] for name in predictor.pads if name in entries}
    lengths = {k: shape[1] for k, shape in shapes.items() if isinstance(shape[1], int)}

    def fill(name, array):
        array, length = np.asarray(array), lengths.get(name)
        if length is None:
            return array
        text = f"{len(array)} positions, and the export has {length}"
        require(len(array) <= length, f"{name}: {text}")
        return predict.lengthened(array, length, predictor.pads[name])

    def read(item, options):
        rows = predictor.read(item, options)
        return [{name: fill(name, array) for name, array in row.items()} for row in rows]

    pads = {name: value for name, value in predictor.pads.items() if name not in lengths}
    return predictor._replace(read=read, pads=pads) if lengths else predictor


def raw(x):
    """An array of numbers: of a random key its data."""
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x
