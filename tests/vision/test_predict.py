"""Predictions of pictures: those of evaluation, picture by picture, without the data; and a run
evaluated on another set, whose classes are matched by name."""

import contextlib
import json
import math
import pathlib
import shutil
import zlib

import jax
import numpy as np
import pytest
from helpers import DIGITS, exit_code, load
from PIL import Image
from tensor_files import random

from common import predict
from common.errors import BadInput
from common.runs import checkpoint, facts, workdir
from common.training import program
from common.training.saved import evaluate_run
from vision import weights
from vision.data import photographs
from vision.resnet import ResNet
from vision.weights import preprocessor

CLASSES = ("ant", "bee", "cow")


def draw(folder, classes=CLASSES, count=4, mode="RGB", size=(11, 9)):
    """Pictures of noise: {path: class}, in the order in which a set has them."""
    rng = np.random.default_rng(zlib.crc32(folder.name.encode()))
    made = {}
    for i in range(count * len(classes)):
        name = classes[i % len(classes)]
        path = folder / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
        made[str(path)] = name
    return made


def begun(folder, **overrides):
    """A run that has taken no step, whose parameters to evaluate are not those it began with."""
    config = load(f"{DIGITS}:mlp", **overrides)
    prepared = program.prepare(config, jax.devices())
    with jax.set_mesh(prepared.layout.mesh):
        state = prepared.create(prepared.hypers)
        double = lambda tree: jax.tree.map(lambda x: x * 2, tree)
        state = state._replace(average=double(state.average))
        if config["optim"]["lookahead"]:
            slow = double(state.opt_state["slow"])
            state = state._replace(opt_state=state.opt_state | {"slow": slow})
        sources = prepared.task.sources.items()
        fingerprints = {name: source.fingerprint for name, source in sources}
        keep = facts.contents(prepared.task)
        digests = {"kept": facts.digests(prepared.task)}
        workdir.claim(folder, config, fingerprints, write=True, keep=keep, facts=digests)
        run = workdir.identity(config, fingerprints)
        with contextlib.closing(checkpoint.Checkpoints(folder, prepared.saving, run=run)) as all_of:
            all_of.save(0, state)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(a run on pictures, its folder of data, its test pictures in order)."""
    root = tmp_path_factory.mktemp("pictures")
    draw(root / "data" / "train")
    test = draw(root / "data" / "test")
    keys = {
        "data.name": f"images:{root}/data",
        "data.folder": root / "tfds",
        "data.image_size": 8,
        "augment.resized_crop": 6,
        "evals.test.views": "flip",
        "train.average": 0.9,
        "evals.test.batch_size": 8,
        "train.batch_size": 8,
    }
    return begun(root / "run", **keys), root, test


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on digits, whose optimizer keeps the parameters to evaluate."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    return begun(folder, **{"optim.lookahead": "1 epoch"})


def losses(run, test, **other):
    """What evaluation says of the first pictures, each alone, and of all together."""
    rows = [*(f"test[{i}:{i + 1}]" for i in range(3)), "test"]
    told = evaluate_run(run, sets=rows, **other)["eval"]
    return [told[row]["loss"] for row in rows]


def said(results, test):
    """The same by what was predicted."""
    pairs = zip(results, test.values(), strict=True)
    each = [-math.log(result["probabilities"][name]) for result, name in pairs]
    return [*each[:3], np.mean(each)]


@pytest.mark.slow
def test_predictions_are_those_of_evaluation_and_need_no_data(pictures, tmp_path, capsys):
    run, root, test = pictures
    expected = losses(run, test)
    results = predict.load(run).predict(list(test))
    np.testing.assert_allclose(said(results, test), expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(expected) > 0.1
    for name in ("data", "tfds"):
        (root / name).rename(root / f"{name}.away")
    try:
        shutil.copytree(root / "data.away" / "test", tmp_path / "mine")
        paths = [path.replace(f"{root}/data/test", f"{tmp_path}/mine") for path in test]
        (tmp_path / "torn.png").write_bytes(b"\x89PNG")
        words = ["--workdir", run, *paths[:2], str(tmp_path / "torn.png"), *paths[2:], "--json"]
        assert exit_code("predict", *words) == 2
        out, err = capsys.readouterr()
        again = [json.loads(line) for line in out.splitlines()]
        assert [each.pop("input") for each in again] == paths
        assert again == results
        assert "torn.png: no picture that Pillow can read" in err
    finally:
        for name in ("data", "tfds"):
            (root / f"{name}.away").rename(root / name)


def test_the_optimizers_own_parameters_predict(digits):
    images = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8, 1)
    loaded = predict.load(digits)
    program_of = program.prepare(load(f"{DIGITS}:mlp", **{"optim.lookahead": "1 epoch"}))
    fresh = jax.device_get(program_of.create(program_of.hypers).params)
    slow = jax.device_get(loaded.variables["params"])
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, 2 * y), slow, fresh)
    (one, two) = loaded.predict(list(images), top=10)
    logits = loaded.model.apply(loaded.variables, (images / 255 - 0.2873) / 0.3534)
    shares = np.asarray(jax.nn.softmax(logits))
    for each, row in zip((one, two), shares, strict=True):
        told = [each["probabilities"][str(i)] for i in range(10)]
        np.testing.assert_allclose(told, row, rtol=1e-4)
    vectors = predict.load(digits, embed=True).predict(list(images))
    assert np.shape([each["vector"] for each in vectors]) == (2, 64)


def test_pictures_of_any_size_and_colour_are_read_as_those_of_the_run(digits, tmp_path):
    loaded = predict.load(digits)
    grey = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    wide = np.repeat(grey[..., None], 3, axis=-1)
    small = photographs.square(grey[..., None], 8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(wide).save(tmp_path / "wide.png")
    files = [tmp_path / "grey.png", str(tmp_path / "wide.png")]
    one, *others = loaded.predict([grey, wide, small, *files])
    assert all(other == one for other in others)
    for bad in (wide / 255, [[1], [2, 3]]):
        with pytest.raises(BadInput, match="a picture is a path or u8"):
            loaded.predict([bad])
    with pytest.raises(BadInput, match="'': it is empty, and no path"):
        loaded.predict([""])


def test_a_run_of_an_older_version_reads_its_data_once(digits):
    image = [np.full((8, 8), 99, np.uint8)]
    before, kept = predict.load(digits).predict(image), pathlib.Path(digits, facts.FILE)
    text = kept.read_text()
    kept.unlink()
    assert predict.load(digits).predict(image) == before
    assert kept.read_text() == text
    for old, new, message in (
        ("8, 8, 1", "8, 8", r"facts\.json: shape is \(8, 8\), not a tuple"),
        ('"3"', '"three"', r"facts\.json: not what this run kept: 'classes'"),
    ):
        kept.write_text(text.replace(old, new))
        with pytest.raises(BadInput, match=message):
            predict.load(digits)
    environment = kept.with_name("environment.json")
    starts = environment.read_text()
    environment.write_text(starts.replace('"kept"', '"older"'))
    kept.write_text(text.replace("0.2873", "0.2, 0.3"))
    with pytest.raises(BadInput, match="mean has 2 numbers, and images have 1 channels"):
        predict.load(digits)
    environment.write_text(starts)
    kept.write_text(text)


@pytest.mark.slow
def test_a_run_is_evaluated_on_another_set_by_the_names_of_its_classes(pictures, tmp_path):
    run, root, _ = pictures
    (root / "data").rename(root / "data.away")
    try:
        draw(tmp_path / "other" / "train", CLASSES[1:], size=(8, 8))
        test = draw(tmp_path / "other" / "test", CLASSES[1:], size=(8, 8))
        data = {"name": f"images:{tmp_path}/other", "folder": str(tmp_path / "tfds")}
        expected = said(predict.load(run).predict(list(test)), test)
        np.testing.assert_allclose(losses(run, test, data=data), expected, rtol=1e-5, atol=1e-6)
        (tmp_path / "other" / "test" / "bee").rename(tmp_path / "other" / "test" / "cat")
        (tmp_path / "other" / "train" / "bee").rename(tmp_path / "other" / "train" / "cat")
        with pytest.raises(BadInput, match="'cat'; the run has 'ant', 'bee', which the set lacks"):
            evaluate_run(run, data=data)
        draw(tmp_path / "odd" / "train", size=(4, 4))
        draw(tmp_path / "odd" / "test", size=(4, 4))
        odd = data | {"name": f"images:{tmp_path}/odd", "image_size": 4}
        with pytest.raises(BadInput, match="are 4 x 4 x 3, and those of the run 8 x 8 x 3"):
            evaluate_run(run, data=odd)
        with pytest.raises(BadInput, match=r"data\.mean: images are normalised as the run has"):
            evaluate_run(run, data=data | {"mean": (0.5,), "std": (0.5,)})
        with pytest.raises(BadInput, match=r"data\.nme: unknown key"):
            evaluate_run(run, data={"nme": "images:x"})
    finally:
        (root / "data.away").rename(root / "data")


def test_only_data_and_evaluators_may_be_anothers(digits, capsys):
    for word in ("--config.optim.lr=1", "--seed=3"):
        assert exit_code("evaluate", "--workdir", digits, word) == 2
    err = capsys.readouterr().err
    assert "--config.optim.lr: of a run, data and evals alone" in err
    assert "unknown argument '--seed=3'" in err


@pytest.mark.slow
def test_published_weights_predict_with_their_own_preprocessing(tmp_path, capsys):
    model = ResNet(3, stages=(1,), widths=(8,), block="basic", stem_width=8)
    variables = random(model)
    weights.save(tmp_path / "resnet", model, variables, classes=CLASSES)
    where = tmp_path / "resnet"
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "one.png")
    assert exit_code("predict", "--weights", str(where), str(tmp_path / "one.png")) == 2
    assert "no preprocessor_config.json says how" in capsys.readouterr().err
    settings = {"image_processor_type": "ViTImageProcessor", "size": 32, "resample": 2}
    (where / preprocessor.FILE).write_text(json.dumps(settings))
    loaded = predict.load(where)
    (told,) = loaded.predict([tmp_path / "one.png"])
    image = preprocessor.prepare(preprocessor.read(where), picture)
    shares = jax.nn.softmax(model.apply(variables, image[None]))[0]
    np.testing.assert_allclose(
        [told["probabilities"][name] for name in CLASSES], shares, rtol=1e-4, atol=1e-9
    )
    assert told["class"] == CLASSES[int(np.argmax(shares))]
    assert exit_code("predict", "--weights", str(where), str(tmp_path / "one.png"), "--csv") == 0
    assert f",{told['class']}," in capsys.readouterr().out
