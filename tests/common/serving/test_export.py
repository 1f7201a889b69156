"""Exports: what a fresh process computes with jax and numpy alone is what the run computes."""

import json
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

import exports
import flax.linen as nn
import jax
import models
import numpy as np
import pytest
from helpers import ROOT, exit_code, load

from common import predict
from common.errors import BadInput
from common.nn import attention, rope
from common.nn.transformer import SequenceTransformer
from common.serving import artifact, export, lower, onnx, read
from common.task import Function, Predictor
from common.training import saved
from lm import clm, gpt, predict_continued
from vision import classify


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """(a run, its export, the manifest)."""
    folder = tmp_path_factory.mktemp("digits")
    run = exports.begun("mlp", folder)
    words = ("--workdir", run, "--to", str(folder / "to"), "--top", "3")
    assert exit_code("export", *words) == 0
    return run, folder / "to", json.loads((folder / "to/manifest.json").read_text())


def test_another_process_computes_the_same_of_any_number_of_rows(digits):
    run, folder, manifest = digits
    entry = manifest["functions"]["predict"]
    assert entry["inputs"] == {"image": {"shape": ["b", 8, 8, 1], "dtype": "uint8"}}
    assert entry["outputs"] == {"logits": {"shape": ["b", 10], "dtype": "float32"}}
    assert entry["difference"] <= entry["tolerance"] == 1e-5
    images = np.random.default_rng(0).integers(0, 256, (13, 8, 8, 1), np.uint8)
    loaded = predict.load(run)
    apply = lambda x: loaded.predictor.apply(
        loaded.variables["params"], {}, {"image": x}, {"top": 3, "views": "none"}
    )
    expected = jax.device_get(apply(images))
    again = artifact.load(folder)
    results = again.predict(list(images))
    for mine, theirs in zip(results, loaded.predict(list(images), top=3), strict=True):
        assert mine["class"] == theirs["class"]
        assert mine["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-6)
    function = read.load(folder)["predict"]
    assert artifact.difference(jax.device_get(function({"image": images})), expected) < 1e-6
    with pytest.raises(BadInput, match="top: the export has it fixed at 3, not 2"):
        again.predict(list(images), top=2)


def test_an_export_that_is_damaged_is_one_line(digits, tmp_path):
    _, folder, _ = digits

    def error(change) -> str:
        shutil.rmtree(tmp_path / "to", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "to")
        change(tmp_path / "to")
        with pytest.raises(read.Unusable) as raised:
            read.verified(tmp_path / "to")
        with pytest.raises(BadInput, match="to: "):
            artifact.manifest_of(tmp_path / "to")
        return str(raised.value)

    def flipped(name):
        def change(path):
            data = bytearray((path / name).read_bytes())
            data[len(data) // 2] ^= 1
            (path / name).write_bytes(data)

        return change

    for name in ("weights.safetensors", "predict.stablehlo", "kept/config.json", "read.py"):
        assert f"{name} is not as it was exported" in error(flipped(name))
        assert f"{name}: No such file" in error(lambda path, name=name: (path / name).unlink())
    assert "manifest.json: No such file" in error(lambda path: (path / "manifest.json").unlink())
    assert "manifest.json " in error(flipped("manifest.json"))

    def other(path):
        text = (path / "manifest.json").read_text().replace('"format": 1', '"format": 2')
        (path / "manifest.json").write_text(text)

    assert "of format 2, and this reads 1" in error(other)
    for text in ("[]", "3", "null", "{}", "[" * 100_000):
        write = lambda path, text=text: (path / "manifest.json").write_text(text)
        assert "manifest.json is damaged; export again" in error(write)


def test_read_py_says_in_a_line_what_is_wrong(digits, tmp_path):
    _, folder, _ = digits
    shutil.copytree(folder, tmp_path / "to")
    (tmp_path / "to/weights.safetensors").unlink()
    words = [sys.executable, str(tmp_path / "to/read.py"), "predict", "in.npz", "out.npz"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "error: " in done.stderr
    assert "weights.safetensors: No such file" in done.stderr
    functions = read.load(folder)
    with pytest.raises(read.Unusable, match="predict: inputs are image, not picture"):
        functions["predict"]({"picture": 0})
    image = np.arange(128).reshape(2, 8, 8, 1)
    for wrong, message in (
        (image / 255, "image is float64, of values that uint8 does not have"),
        (image - 1, "image is int64, of values that uint8"),
        (image + 0.0 * np.inf, "image is float64, of values that uint8"),
        (image.astype(str), "image is <U21, and the function takes uint8"),
        (image[..., 0], r"image has the shape \[2, 8, 8\], and the function takes \[b, 8, 8, 1\]"),
        (image[:, :4], r"image has the shape \[2, 4, 8, 1\]"),
    ):
        with np.errstate(invalid="ignore"), pytest.raises(read.Unusable, match=message):
            functions["predict"]({"image": wrong})
    logits = [
        np.asarray(functions["predict"]({"image": x})["logits"])
        for x in (image, image.astype(np.uint8))
    ]
    np.testing.assert_array_equal(*logits)


def test_what_cannot_be_exported_leaves_nothing(digits, tmp_path, capsys):
    run, folder, _ = digits
    for words, message in (
        (["--to", str(folder)], "exists; name a new folder"),
        (["--to", str(tmp_path / "to"), "--top", "0"], "top: 0 is"),
        (
            ["--to", str(tmp_path / "to"), "--inputs", str(tmp_path / "no.png")],
            "no such file",
        ),
    ):
        assert exit_code("export", "--workdir", run, *words) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(BadInput, match="MLP has no layout there; these have: .*vit.*bert"):
        exports.exported(run, tmp_path / "to", ["huggingface"])
    config = json.loads((pathlib.Path(run) / "config.json").read_text())
    config["data"]["name"], gone = "images:/nowhere", tmp_path / "gone"
    shutil.copytree(run, gone)
    (gone / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="there is nothing to verify the export on: .*/nowhere"):
        exports.exported(str(gone), tmp_path / "to")
    shutil.rmtree(gone)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_differ_are_refused(digits, tmp_path, monkeypatch):
    run, _, _ = digits
    zeros = lambda folder, calls: [{"logits": np.zeros((len(x["image"]), 10))} for _, x in calls]
    monkeypatch.setattr(artifact, "outputs_in_a_fresh_process", zeros)
    with pytest.raises(
        BadInput, match="predict: its outputs differ from the run's by .*, and 1e-05 is allowed"
    ):
        exports.exported(run, tmp_path / "to")
    assert list(tmp_path.iterdir()) == []


def lowered(apply, inputs: dict, lengths=None, **options):
    """An export of a function of `inputs` and the parameter `w`."""
    function = Function(apply, lambda params, extra, rows: rows, lengths or {})
    predictor = Predictor(None, apply, None, None, None, pads={"x": 0}, longest=8)
    rows = [inputs, {k: x[:1] for k, x in inputs.items()}]
    state = {"w": np.float32([1, 2])}, {}
    return lower.lower("f", (function, function), predictor, state, rows, options)


def test_weights_are_any_pytree_and_integers_of_four_bits_are_bytes():
    class Quantized(NamedTuple):
        values: jax.Array
        scale: jax.Array

    kernel = Quantized(jax.numpy.arange(-4, 4).astype("int4"), np.float32(0.5))
    state = {"dense": {"kernel": kernel}}, {"batch_stats": {"mean": np.float32([1])}}
    weights = artifact.flat(*state)
    assert {path: str(x.dtype) for path, x in weights.items()} == {
        "dense/kernel/values": "int8",
        "dense/kernel/scale": "float32",
        "batch_stats/mean": "float32",
    }
    again = artifact.unflat(weights, state)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for mine, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, np.asarray(theirs))


def test_custom_calls_are_refused_by_name():
    inverse = lambda params, extra, batch, options: {"y": jax.numpy.linalg.inv(batch["x"])}
    with pytest.raises(
        BadInput, match="f cannot be exported: it calls .*lapack_sgetrf_ffi, .*no StableHLO"
    ):
        lowered(inverse, {"x": np.eye(2, dtype=np.float32)[None]})


def test_counts_along_a_length_that_is_symbolic_are_those_of_one_that_is_known():
    shape = jax.export.symbolic_shape("b, l")
    segments = np.int32([[1, 1, 2, 2, 2, 0, 0], [3, 3, 3, 3, 4, 5, 5]])
    of_segments = lambda x: rope.segment_lengths(attention.places(x))
    for function in (attention.places, of_segments):
        exported = jax.export.export(jax.jit(function))(jax.ShapeDtypeStruct(shape, np.int32))
        assert "dynamic_reduce_window" not in exported.mlir_module()
        np.testing.assert_array_equal(exported.call(segments), function(segments))
    np.testing.assert_array_equal(of_segments(segments)[0], [2, 2, 3, 3, 3, 2, 2])


def test_operations_that_onnx_lacks_are_written_as_others():
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    n = np.int32([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])

    @jax.jit
    def function(x, n):
        del n
        pooled = nn.max_pool(x, (3, 2), (2, 1), ((1, 1), (0, 1)))
        return pooled.mean(axis=3), nn.max_pool(x, (2, 2), (2, 2))

    largest = lambda n: (jax.lax.cummax(n, axis=1),)
    for f, arrays, lacking in ((function, (x, n), "reduce_window"), (largest, (n,), "cummax")):
        closed = jax.make_jaxpr(f)(*arrays)
        flat = jax.make_jaxpr(lambda *a, c=closed: onnx._evaluated(c.jaxpr, c.consts, a))(*arrays)
        assert lacking in str(closed)
        assert lacking not in str(flat)
        found = onnx._evaluated(closed.jaxpr, closed.consts, arrays)
        for mine, theirs in zip(found, f(*arrays), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_attention_is_plain_where_the_model_has_a_choice(digits):
    run, _, _ = digits
    text = load(f"{ROOT}/configs/lm/gpt_sotu.py", **{"model.implementation": "splash"})
    assert export.plainly(text, clm)["model"] == text["model"] | {"implementation": "plain"}
    images = saved.read_config(run)
    assert export.plainly(images, classify) is images


@pytest.mark.slow
def test_fewer_bits_have_a_tolerance_of_their_own_and_caches_are_float32():
    small = lambda p, e, b, o: {"y": b["x"].astype(jax.numpy.bfloat16) @ p["w"].astype("bfloat16")}
    assert lowered(small, {"x": np.ones((3, 2), np.float32)}).entry["tolerance"] == 2e-2
    sizes = {"vocab_size": 9, "width": 8, "layers": 1, "heads": 2, "hidden": 8, "max_length": 8}
    model = gpt.GPT(**sizes, dtype="bfloat16")
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    step = predict_continued._step(model, lambda params, extra, rows: rows)
    inputs = step.inputs(params, {}, {"tokens": np.ones((2, 3), np.int32)})
    outputs = jax.eval_shape(lambda: step.apply(params, {}, inputs, {}))
    kinds = {k: str(x.dtype) for each in (inputs, outputs) for k, x in each.items()}
    rest = {"token": "int32", "length": "int32", "logits": "float32"}
    assert kinds == rest | {"keys_0": "float32", "values_0": "float32"}


def test_raw_inputs_are_read_in_two_lengths_within_the_models():
    read_ = lambda text, options: [
        {"x": np.int32([ord(c) for c in text]), "n": np.int32(len(text))}
    ]
    made = Predictor(read_, None, None, None, None, pads={"x": 7}, longest=12)
    first, second = export._read(made, {}, ["abc", "abcdefghi"])
    assert (first["x"].shape, second["x"].shape) == ((5, 12), (2, 12))
    assert (first["n"].tolist(), second["n"].tolist()) == ([3, 9, 3, 9, 3], [3, 9])
    assert first["x"][0].tolist() == [97, 98, 99, *[7] * 9]
    assert [x["x"].shape[1] for x in export._read(made._replace(longest=99), {}, ["abc"])] == [
        8,
        16,
    ]
    with pytest.raises(BadInput, match="torn"):
        export._read(made, {}, ["abc", BadInput("torn")])


def test_lengths_are_fixed_where_the_model_needs_it(caplog):
    inputs = {"x": np.ones((3, 4), np.float32)}
    total = lambda params, extra, batch, options: {"y": batch["x"].reshape(-1, 2) @ params["w"]}
    halves = lambda params, extra, batch, options: {
        "y": sum(batch["x"][:, i] for i in range(batch["x"].shape[1])) + options["times"]
    }
    free = lowered(lambda p, e, b, o: {"y": b["x"] * p["w"][0]}, inputs, {"x": "l"})
    assert free.entry["inputs"] == {"x": {"shape": ["b", "l"], "dtype": "float32"}}
    assert free.entry["constraints"] == ["l <= 8"]
    fixed = lowered(halves, inputs, {"x": "l"}, times=2.0)
    assert fixed.entry["inputs"]["x"]["shape"] == ["b", 4]
    assert fixed.entry["inputs"]["times"]["default"] == 2.0
    assert fixed.entry["unused"] == ["w"]
    assert "f: its lengths are fixed" in caplog.text
    assert lowered(total, inputs).entry["outputs"]["y"]["shape"] == ["2*b"]


def test_rows_are_filled_to_lengths_that_are_fixed():
    read_ = lambda text, options: [{"x": np.arange(len(text)), "y": np.ones(len(text)), "n": 3}]
    made = Predictor(read_, None, None, None, None, pads={"x": 7, "y": 0})
    shapes = {"x": {"shape": ["b", 5]}, "y": {"shape": ["b", "l"]}, "n": {"shape": ["b"]}}
    again = artifact.filled(made, shapes)
    (row,) = again.read("abc", {})
    assert row["x"].tolist() == [0, 1, 2, 7, 7]
    assert (len(row["y"]), again.pads) == (3, {"y": 0})
    with pytest.raises(BadInput, match="x: 6 positions, and the export has 5"):
        again.read("abcdef", {})
    assert artifact.filled(made, shapes | {"x": {"shape": ["b", "l"]}}) is made


def test_differences_are_relative_to_large_numbers_and_exact_for_integers():
    a = {"x": np.float32([1, 1000]), "i": np.int32([1, 2])}
    assert artifact.difference(a, a) == 0
    assert artifact.difference(a | {"x": np.float32([1, 1001])}, a) == pytest.approx(1e-3)
    assert artifact.difference(a | {"i": np.int32([1, 3])}, a) == 0.5
    nan, other = {"x": np.float32([np.nan, 1])}, {"x": np.float32([0, 1])}
    assert (artifact.difference(nan, nan), artifact.difference(nan, other)) == (0, np.inf)
    assert artifact.difference({"x": a["x"]}, a) == np.inf
    assert artifact.difference(a | {"x": a["x"][:1]}, a) == np.inf


# ------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("gpt", marks=pytest.mark.slow),
        *(
            pytest.param(name, marks=pytest.mark.measure("models"))
            for name in ("cnn", "resnet18", "vit", "bert", "mlm")
        ),
    ],
)
def test_models_go_out_and_come_back(name, tmp_path, compiled_in_haste):
    run = exports.begun(name, tmp_path)
    options = {"tokens": 4, "temperature": 2.0} if name == "gpt" else {}
    forms = ["huggingface"] if name != "cnn" else []
    manifest = exports.exported(run, tmp_path / "to", forms, **options)
    names = {"gpt": ["predict", "logits", "step"], "mlm": ["predict", "logits"]}
    assert list(manifest["functions"]) == names.get(name, ["predict"])
    for entry in (*manifest["functions"].values(), *(manifest[form] for form in forms)):
        assert entry["difference"] <= entry["tolerance"] == 1e-5
    for entry in manifest["functions"].values():
        assert all(each["shape"][:1] in (["b"], [], [2]) for each in entry["inputs"].values())
    assert not forms or exports.beside_transformers(name, tmp_path / "to") < 1e-5
    if name == "gpt":
        texts, options = ["one two", "six", "nine ten one two"], {"temperature": 0.5, "seed": 3}
        again = artifact.load(tmp_path / "to")
        assert again.predict(texts, **options) == predict.load(run).predict(
            texts, tokens=4, **options
        )
        _decodes_as_it_generates(run, tmp_path / "to")


@pytest.mark.slow
def test_low_rank_updates_are_merged(digits, tmp_path):
    run = exports.begun("mlp", tmp_path, **{"compress.lora.rank": 2})
    exports.exported(run, tmp_path / "to")
    files = [folder / "weights.safetensors" for folder in (digits[1], tmp_path / "to")]
    plain, merged = (read.tensors(file.read_bytes()) for file in files)
    assert {k: x.shape for k, x in merged.items()} == {k: x.shape for k, x in plain.items()}
    images = list(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8))
    pairs = zip(
        artifact.load(tmp_path / "to").predict(images),
        predict.load(run).predict(images),
        strict=True,
    )
    for mine, theirs in pairs:
        assert mine["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-6)


# One of each that is written in its own way; the others are a measure.
LOWERED = "llama", "vit", "efficientnet_lite"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name in LOWERED else pytest.mark.measure("models")
        )
        for name in models.MODELS
    ],
)
def test_a_model_is_lowered_with_symbolic_sizes(name, caplog):
    """Of the batch, and of lengths that inputs share."""
    model, inputs = models.MODELS[name]
    texts = isinstance(model, SequenceTransformer)
    keys = ("tokens", "segments", "types", "picked")[: len(inputs)] if texts else ("image",)
    lengths = {key: "p" if key == "picked" else "l" for key in keys if texts}

    def apply(params, extra, batch, options):
        outputs = model.apply({"params": params, **extra}, *(batch[key] for key in keys))
        return {str(i): x for i, x in enumerate(jax.tree.leaves(outputs))}

    variables = jax.tree.map(np.asarray, models.variables(model, inputs))
    function = Function(apply, lambda params, extra, rows: rows, lengths)
    predictor = Predictor(None, apply, None, None, None, pads=lengths, longest=8)
    rows = dict(zip(keys, inputs, strict=True))
    state = variables.pop("params"), variables
    found = lower.lower(name, (function, function), predictor, state, [rows, rows], {})
    assert all(each["shape"][0] == "b" for each in found.entry["outputs"].values())
    assert "fixed" not in caplog.text


def _decodes_as_it_generates(run: str, folder) -> None:
    """Greedy text, token by token, is the run's."""
    functions = read.load(folder)
    loaded = predict.load(run)
    text = "one two three"
    (row,) = loaded.predictor.read(text, predict.options_of(loaded.predictor, {"tokens": 4}))
    tokens, written = row["tokens"][None], []
    shapes = json.loads((folder / "manifest.json").read_text())["functions"]["step"]["inputs"]
    cache = {
        key: np.zeros([1, 16, *each["shape"][2:]], np.float32)
        for key, each in shapes.items()
        if key not in ("token", "length")
    } | {"length": np.zeros(1, np.int32)}
    for token in tokens[0]:
        cache = functions["step"]({"token": np.int32([[token]]), **cache})
        logits = cache.pop("logits")
    alone = functions["logits"]({"tokens": tokens})["logits"][:, -1]
    np.testing.assert_allclose(logits, alone, atol=1e-5)
    for _ in range(4):
        best = int(np.argmax(logits))
        written.append(best)
        tokens = np.append(tokens, [[best]], axis=1).astype(np.int32)
        cache = functions["step"]({"token": tokens[:, -1:], **cache})
        logits = cache.pop("logits")
    result = loaded.predictor.result
    outputs = [{"tokens": np.int32(written), "length": np.int32(4)}]
    expected = result(text, [row], outputs, {})
    assert loaded.predict([text], tokens=4, greedy=True) == [expected]
