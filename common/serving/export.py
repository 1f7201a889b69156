"""Exports a run: its functions as StableHLO for cpu, cuda and tpu in one artifact, verified.

`predict` is the predictor's `apply` with options of a prediction: the static ones are fixed, the
others are inputs with a default. Further functions are those of `Predictor.exports`. Low-rank
updates are merged into the kernels. Attention is lowered plainly, without kernels, and a custom
call that is left in the program is refused.

Letters: B batch.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from common import predict, tree
from common.compress import lora
from common.devices import terminal
from common.errors import BadInput, brief, require
from common.nn.layers import identity
from common.runs import workdir as runs
from common.sections import fits, parameters
from common.serving import artifact, huggingface, lower, onnx
from common.task import Function, Predictor
from common.training import saved
from common.training.program import task_module

ROWS, FEWER = 5, 2  # of the batches that verify an export


def export(
    workdir,
    loaded: predict.Loaded,
    to,
    options: dict,
    inputs: Iterable = (),
    forms: Iterable[str] = (),
) -> dict:
    """Writes the artifact of a run, and verifies it.

    Args:
      workdir: of the run.
      loaded: its model, from `common.predict.load`.
      to: the folder to write, which must not exist.
      options: of a prediction, checked by the predictor later.
      inputs: raw inputs on which to verify it; without any, the run's own evaluation set is read.
      forms: of "onnx", "openvino" and "huggingface", those to add.

    Returns:
      the manifest.

    Raises:
      BadInput: if `to` exists, the model cannot be exported, there is nothing to verify it on, or
        the export computes something else; nothing is left then.
    """
    to = pathlib.Path(to).expanduser().absolute()
    require(not to.exists() and not to.is_symlink(), f"--to: {to} exists; name a new folder")
    require("://" not in str(to), f"--to: {to}: exports are verified, and written, on local disks")
    if {"onnx", "openvino"} & set(forms):
        onnx.check(forms)
    run = saved.read_config(workdir)
    config = lora.without(run)
    module = task_module(config["task"])
    sources = saved.kept_sources(module, config, workdir)
    source = module.predictor(config, sources, identity)
    plain = module.predictor(plainly(config, module), sources, identity)
    fixed = source.derived is None
    require(fixed, f"{workdir}: it predicts what is nearest of a user's own, which is not exported")
    checked = predict.options_of(source, options)
    host = jax.device_get(loaded.variables)
    extra = {name: each for name, each in host.items() if name != "params"}
    params = jax.device_get(lora.merged(host["params"], run))
    rows = _rows(module, config, workdir, source, checked, inputs)
    with _beside(to) as folder:
        task = module.make(config | {"evals": {}}, sources, identity)
        artifact.write_kept(folder, config, task)
        weights, lowered, hub = artifact.flat(params, extra), {}, folder / "huggingface"
        if "huggingface" in forms:
            huggingface.write(hub, source, sources["train"], {"params": params, **extra})
        for name, function in functions_of(source).items():
            terminal.say(f"exporting {name} …")
            ways = function, functions_of(plain)[name]
            lowered[name] = lower.lower(name, ways, source, (params, extra), rows, checked)
        artifact.write(folder, {name: each.code for name, each in lowered.items()}, weights)
        manifest = {
            "task": config["task"],
            "model": config.get("model", {}).get("module"),
            "step": loaded.step,
            "options": options,
            "platforms": list(lower.PLATFORMS),
            "versions": artifact.versions(),
            "parameters": tree.count(params),
            "functions": {name: each.entry for name, each in lowered.items()},
        }
        artifact.write_manifest(folder, manifest)
        terminal.say("verifying in a fresh process …")
        expected, first = _verified(folder, lowered, weights), lowered["predict"]
        if "huggingface" in forms:
            calls = list(zip(first.calls, expected["predict"], strict=True))
            apart = huggingface.difference(hub, source, params, checked, calls)
            manifest["huggingface"] = _agreement("huggingface", apart, first.entry["tolerance"])
        if {"onnx", "openvino"} & set(forms):
            terminal.say("writing onnx …")
            for form, name, apart in onnx.write(folder, lowered, weights, expected, forms):
                entry = _agreement(f"{form}/{name}", apart, lowered[name].entry["tolerance"])
                manifest.setdefault(form, {})[name] = entry
        artifact.write_manifest(folder, manifest)
        _say_sizes(folder, manifest)
        to.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(to)
    return manifest


@contextlib.contextmanager
def _beside(to: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder on the file system of `to`, to be renamed; what is left of it is removed."""
    parent = next(path for path in to.parents if path.is_dir())
    folder = parent / f".{to.name}.{os.getpid()}"
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        raise BadInput(f"--to: {to}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _say_sizes(folder: pathlib.Path, manifest: dict) -> None:
    """A line for each function and each file, with what it takes and how well it agrees."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        terminal.say(f"{path.stat().st_size:>14,} bytes  {path.relative_to(folder)}")
    agreements = {"": manifest["functions"]}
    agreements |= {f"{form}/": manifest.get(form, {}) for form in ("onnx", "openvino")}
    if "huggingface" in manifest:
        agreements["huggingface"] = {"": manifest["huggingface"]}
    for form, entries in agreements.items():
        for name, entry in entries.items():
            apart = f"{entry['difference']:.1e} at most, of {entry['tolerance']:g} that are allowed"
            terminal.say(f"{form}{name} differs from the run by {apart}")


def functions_of(predictor: Predictor) -> dict[str, Function]:
    """The functions of a predictor that are exported, `predict` first."""
    vary = dict.fromkeys(predictor.pads, "l")
    usual = Function(predictor.apply, lambda params, extra, rows: rows, vary)
    return {"predict": usual, **predictor.exports}


def plainly(config: dict, module) -> dict:
    """The config with attention as ordinary products, if its model has a choice of kernels."""
    section = module.sections(config).get("model")
    field = None if section is None else parameters(section).get("implementation")
    if field is None or not fits("plain", field.annotation):
        return config
    return config | {"model": config["model"] | {"implementation": "plain"}}


# -------------------------------------------------------------------------------------- held out


def _rows(module, config: dict, workdir, predictor: Predictor, options, inputs) -> list[dict]:
    """Two batches {name: [B, ...]} that are not trained on: `ROWS` rows, and fewer of another
    length; of raw inputs, or of the run's first evaluation set."""
    inputs = list(inputs)
    if inputs:
        return _read(predictor, options, inputs)
    reason = f"{config['task']} makes no inputs of its evaluation sets"
    if "predict" in predictor.exports:
        try:
            return _of_sources(module, config, workdir, predictor)
        except BadInput as error:
            reason = str(error)
    raise BadInput(
        f"there is nothing to verify the export on: {reason}; name inputs, as for predict.py, with "
        "--inputs"
    )


def _of_sources(module, config: dict, workdir, predictor: Predictor) -> list[dict]:
    prepare = module.unprepared(config) if hasattr(module, "unprepared") else None
    require(prepare is None, str(prepare))
    keys = config["data"] | ({"resident": False} if "resident" in config["data"] else {})
    sources = module.sources(config | {"data": keys})
    digests = {name: source.fingerprint for name, source in sources.items()}
    runs.check_data(saved.files.absolute(workdir), digests)
    held_out = [source for name, source in sources.items() if name != "train"]
    require(bool(held_out), "the run has no evaluation set")
    count = min(ROWS, held_out[0].size)
    at = np.arange(count) * held_out[0].size // count  # evenly spaced
    rows = {k: np.asarray(x) for k, x in held_out[0].read(at.astype(np.uint32)).items()}

    def shorter(name, x):
        x = x[:FEWER]
        return x[:, : (x.shape[1] + 1) // 2] if name in predictor.pads and x.ndim > 1 else x

    return [rows, {name: shorter(name, x) for name, x in rows.items()}]


def _read(predictor: Predictor, options: dict, inputs: list) -> list[dict]:
    rows = []
    for each in inputs:
        if isinstance(each, BadInput):
            raise each
        try:
            rows += predictor.read(each, options)
        except BadInput as error:
            raise BadInput(f"{brief(each)}: {error}") from error
    rows = [predict.padded(predictor, rows[i % len(rows)]) for i in range(max(ROWS, len(rows)))]
    rows = rows[:ROWS]

    def batch(rows: list[dict], times: int) -> dict:
        made = {}
        for name in rows[0]:
            arrays = [np.asarray(row[name]) for row in rows]
            if name in predictor.pads:
                length = times * max(map(len, arrays))
                length = min(length, predictor.longest or length)
                more = lambda x, length=length: [(0, length - len(x)), *[(0, 0)] * (x.ndim - 1)]
                value = predictor.pads[name]
                arrays = [np.pad(x, more(x), constant_values=value) for x in arrays]
            made[name] = np.stack(arrays)
        return made

    return [batch(rows, 1), batch(rows[:FEWER], 2)]


# ------------------------------------------------------------------------------------- verifying


def _verified(folder: pathlib.Path, lowered: dict[str, lower.Lowered], weights: dict) -> dict:
    """Compares the functions with the run's, and notes the differences in their entries. Returns
    {name: what the run computes, a {name: array} for each call}."""
    expected = {}
    with _on_cpu():
        for name, each in lowered.items():
            made = [each.source(weights, call) for call in each.calls]
            expected[name] = jax.device_get(made)
    calls = [(name, call) for name, each in lowered.items() for call in each.calls]
    found = iter(artifact.outputs_in_a_fresh_process(folder, calls))
    for name, each in lowered.items():
        apart = max(artifact.difference(next(found), outputs) for outputs in expected[name])
        each.entry.update(_agreement(name, apart, each.entry["tolerance"]))
    return expected


def _agreement(what: str, apart: float, tolerance: float) -> dict:
    """What a manifest says of a difference. Raises `BadInput` if it is too large."""
    require(
        apart <= tolerance,
        f"{what}: its outputs differ from the run's by {apart:.1e}, and {tolerance:g} is allowed",
    )
    return {"tolerance": tolerance, "difference": apart}


def _on_cpu():
    """Where the outputs to compare with are computed, as the fresh process computes its own."""
    try:
        return jax.default_device(jax.devices("cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()
