"""Sets of images: splits, what is refused, and that memory, disk and workers hold the same rows."""

import gzip
import json
import os
import pathlib

import fabricated
import numpy as np
import pytest

from common.data import splits
from common.errors import BadInput
from vision import weights
from vision.data import datasets, photographs
from vision.data.sets import NORMALISATION
from vision.weights import preprocessor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    fabricated.prepare(path, "cifar10", (6, 6, 3), {"train": 50, "test": 20})
    fabricated.prepare(path, "ragged", (None, None, 3), {"train": 5})
    return str(path)


def test_digits_are_the_digits():
    sets = datasets.load_sources({"train": "train", "test": "test"}, name="digits")
    assert (sets["train"].size, sets["test"].size) == (1437, 360)
    batch = sets["train"].read(np.arange(1437))
    assert batch["image"].dtype == np.uint8
    assert batch["image"].shape == (1437, 8, 8, 1)
    assert np.bincount(batch["label"]).min() > 130
    mean, std = NORMALISATION["digits"]
    assert batch["image"].mean() / 255 == pytest.approx(mean[0], abs=1e-3)
    assert batch["image"].std() / 255 == pytest.approx(std[0], abs=1e-3)
    assert batch["label"][:10].tolist() == list(range(10))


def test_splits_are_tfds_splits():
    splits = {"train": "train[:90%]", "valid": "train[90%:]", "both": "test+train[:10]"}
    sets = datasets.load_sources(splits, name="digits", train="train[:90%]")
    whole = datasets.load_sources({"train": "train"}, name="digits")["train"].resident["image"]
    np.testing.assert_array_equal(
        np.concatenate([sets["train"].resident["image"], sets["valid"].resident["image"]]), whole
    )
    assert sets["both"].size == 370


def test_images_of_varying_size_become_squares_of_one(folder):
    arguments = {"name": "tfds:ragged", "folder": folder}
    with pytest.raises(BadInput, match=r"varying size; set config\.data\.image_size"):
        datasets.load_sources({"train": "train"}, **arguments)
    with pytest.raises(BadInput, match="read on demand"):
        datasets.load_sources({"train": "train"}, image_size=16, resident=True, **arguments)
    found = datasets.load_sources({"train": "train"}, image_size=16, **arguments)["train"]
    assert found.spec["image"].shape == (16, 16, 3)
    assert found.resident is None
    whole = splits.open_prepared("ragged", folder).as_data_source(split="train")
    assert len({example["image"].shape for example in whole}) > 1
    for row, image in enumerate(found.read(np.arange(5))["image"]):
        expected = photographs.shorter_side(whole[row]["image"], 16)
        np.testing.assert_array_equal(image, expected)


def test_another_normalisation_is_that_of_the_config(folder):
    splits = {"train": "train", "test": "test"}
    for source in datasets.load_sources(splits, mean=(0.1,), std=(0.2,)).values():
        assert (source.facts.mean, source.facts.std) == ((0.1,), (0.2,))
    with pytest.raises(BadInput, match=r"mean \(0\.1,\) and std \(\): set both, or neither"):
        datasets.load_sources(splits, mean=(0.1,))
    with pytest.raises(BadInput, match="are 2 numbers, and the images have 1 channels"):
        datasets.load_sources(splits, mean=(0.1, 0.1), std=(0.2, 0.2))


@pytest.mark.parametrize(
    ("mean", "std", "key"),
    [
        ((127.5,), (0.5,), "mean"),
        ((0.5,), (58.0,), "std"),
        ((-0.1,), (0.5,), "mean"),
        ((float("nan"),), (0.5,), "mean"),
        ((0.5,), (float("inf"),), "std"),
        ((0.5,), (float("nan"),), "std"),
        ((0.5,), (0.0,), "std"),
        ((0.5,), (1e-45,), "std"),
    ],
)
def test_a_normalisation_of_other_pixels_is_refused(mean, std, key):
    says = rf"^config\.data\.{key}: \(.*,\): of pixels divided by 255, it must be "
    with pytest.raises(BadInput, match=says):
        datasets.load_sources({"train": "train"}, mean=mean, std=std)


@pytest.mark.parametrize(
    "setup",
    [
        {"image_mean": [0.48145466] * 3, "image_std": [0.26862954] * 3},
        {"image_mean": [127.0] * 3, "image_std": [128.0] * 3, "rescale_factor": 1},
        {"do_rescale": False, "image_mean": [103.53] * 3, "image_std": [1.0] * 3},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 0.00392, "do_normalize": False},
        {"rescale_factor": 1 / 256, "image_mean": [0.0] * 3, "image_std": [1.0] * 3},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        {"rescale_factor": 1 / 256, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.2] * 3},
    ],
)
def test_the_normalisation_of_published_weights_is_taken(setup, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor"} | setup)
    )
    given = weights.normalisation(preprocessor.read(tmp_path))
    grey = {key: values[:1] for key, values in given.items()}
    facts = datasets.load_sources({"train": "train"}, **grey)["train"].facts
    assert (facts.mean, facts.std) == (grey["mean"], grey["std"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"image_size": 16}, r"image_size: the images of digits have one size"),
        ({"image_size": -1, "name": "tfds:ragged"}, r"image_size: -1: must be positive$"),
        ({"image_size": 0, "name": "images:{0}"}, r"image_size: 0: must be positive$"),
        ({"broken": "skip"}, r"broken: skip: only files of images:DIR"),
        ({"columns": ("a", "b")}, r"columns: \('a', 'b'\): digits is no table"),
        ({"label_separator": ";"}, "label_separator: .* and digits is none"),
        ({"columns": ("a", "b"), "name": "images:{0}"}, r"columns: .* is no table"),
    ],
)
def test_settings_that_a_set_does_not_use_are_refused(arguments, says, tmp_path):
    arguments = {"name": "digits"} | arguments
    arguments["name"] = arguments["name"].format(tmp_path)
    section = {"mean": (), "std": (), "train": "train", "resident": None, "image_size": None}
    section |= {"broken": "refuse", "columns": ("path", "label"), "folder": str(tmp_path)}
    section |= {"label_separator": ""} | arguments
    with pytest.raises(BadInput, match=rf"^config\.data\.{says}"):
        datasets.load_sources({"train": "train"}, **arguments)
    with pytest.raises(BadInput, match=rf"^config\.data\.{says}"):
        datasets.outline_sources({"train": "train"}, section | arguments)


def test_an_outline_has_the_shapes_and_sizes_of_the_set(folder):
    splits = {"train": "train[:90%]", "test": "test"}
    section = {"name": "digits", "train": "train[:90%]", "image_size": None, "resident": None}
    section |= {"mean": (), "std": (), "broken": "refuse", "columns": ("path", "label")}
    section |= {"label_separator": ""}
    sets = datasets.load_sources(splits, name="digits", train="train[:90%]")
    for name, outline in datasets.outline_sources(splits, section).items():
        real = sets[name]
        assert (outline.size, outline.spec) == (real.size, real.spec)
        assert outline.facts == real.facts
        shapes = lambda source: {k: (v.shape, v.dtype) for k, v in source.read([3, 5]).items()}
        assert shapes(outline) == shapes(real)
        assert outline.resident.keys() == real.resident.keys()
    large = section | {"name": "tfds:imagenet2012", "image_size": 256}
    found = datasets.outline_sources({"train": "train[:99%]"}, large)["train"]
    assert found.spec["image"].shape == (256, 256, 3)
    assert (found.size, len(found.facts.classes)) == (1_268_355, 1000)
    with pytest.raises(BadInput, match="set it to 256"):
        datasets.outline_sources({"train": "train"}, large | {"image_size": None})


@pytest.mark.parametrize("split", ["trian", "train[:9x%]", "train[50%:50%]", ""])
def test_bad_splits_are_named(split):
    with pytest.raises(BadInput, match=r"config\.evals\.valid\.split"):
        datasets.load_sources({"valid": split}, name="digits")


def test_a_prepared_set_in_memory_and_on_disk_is_the_same(folder):
    arguments = {"name": "tfds:cifar10", "train": "train[10:]", "folder": folder}
    splits = {"train": "train[10:]", "both": "test+train[:3]"}
    memory = datasets.load_sources(splits, **arguments)
    disk = datasets.load_sources(splits, resident=False, **arguments)
    for name, size in (("train", 40), ("both", 23)):
        assert memory[name].size == disk[name].size == size
        assert memory[name].spec == disk[name].spec
        rows = np.array([3, 0, 22, 3], np.uint32)
        for key, value in memory[name].read(rows).items():
            np.testing.assert_array_equal(value, disk[name].read(rows)[key])
            assert value.dtype == disk[name].read(rows)[key].dtype
    assert memory["train"].facts.mean == NORMALISATION["cifar10"][0]
    assert len(memory["train"].facts.classes) == 10
    assert disk["train"].resident is None


def _other_pixels(cache):
    x = np.load(cache / "train.image.npy")
    x[7, 3, 3] ^= 1
    np.save(cache / "train.image.npy", x)


def _other_labels(cache):
    np.save(cache / "train.label.npy", np.load(cache / "train.label.npy")[::-1])


def _swapped(cache):
    (cache / "train.label.npy").write_bytes((cache / "train.image.npy").read_bytes())


CACHE_DAMAGE = {
    "torn": lambda cache: os.truncate(cache / "train.image.npy", 200),
    "empty": lambda cache: os.truncate(cache / "train.image.npy", 0),
    "one bit": _other_pixels,
    "labels": _other_labels,
    "another array": _swapped,
    "of floats": lambda cache: np.save(cache / "train.image.npy", np.zeros((50, 6, 6, 3))),
    "objects": lambda cache: np.save(cache / "train.label.npy", np.array([{}] * 50)),
    "a zip": lambda cache: (cache / "train.label.npy").write_bytes(b"PK\3\4" + bytes(99)),
    "a header": lambda cache: (cache / "train.label.npy").write_bytes(b"\x93NUMPY\1\0\4\0{,}\n"),
    "without a record": lambda cache: (cache / "train.sha256").unlink(),
    "a damaged record": lambda cache: (cache / "train.sha256").write_bytes(b"\xff\xfe"),
    "without labels": lambda cache: (cache / "train.label.npy").unlink(),
}


@pytest.mark.parametrize("damage", CACHE_DAMAGE.values(), ids=CACHE_DAMAGE)
def test_a_cache_that_is_not_the_set_is_decoded_again(folder, damage, caplog):
    arguments = {"name": "tfds:cifar10", "folder": folder}
    load = lambda: datasets.load_sources({"train": "train"}, **arguments)["train"]
    first = load()
    (cached,) = pathlib.Path(folder).rglob("train.image.npy")
    caplog.clear()
    damage(cached.parent)
    assert load().fingerprint == first.fingerprint
    assert [record.message for record in caplog.records if "decoded again" in record.message]
    caplog.clear()
    assert load().fingerprint == first.fingerprint
    assert not caplog.records


def test_a_cache_of_other_prepared_files_is_decoded_again(tmp_path, caplog):
    load = lambda: datasets.load_sources(
        {"train": "train"}, name="tfds:cifar10", folder=str(tmp_path)
    )["train"]
    fabricated.prepare(tmp_path, "cifar10", (6, 6, 3), {"train": 20})
    first = load()
    (cache,) = tmp_path.rglob("decoded")
    cache.rename(tmp_path / "kept")
    for path in (tmp_path / "cifar10").rglob("*.array_record*"):
        path.unlink()
    (version,) = (tmp_path / "cifar10").iterdir()
    for path in version.iterdir():
        path.unlink()
    version.rmdir()
    fabricated.prepare(tmp_path, "cifar10", (6, 6, 3), {"train": 20}, classes=2)
    (tmp_path / "kept").rename(version / "decoded")
    assert load().resident["label"].max() == 1 < first.resident["label"].max()
    assert "not what the prepared files decode to" in caplog.text


def test_what_is_not_there_says_how_to_get_it(folder, tmp_path):
    with pytest.raises(BadInput, match=r"run: python scripts/prepare\.py fashion_mnist"):
        datasets.load_sources({"train": "train"}, name="fashion_mnist", folder=str(tmp_path))
    with pytest.raises(BadInput, match="run: tfds build svhn_cropped --file_format=array_record"):
        datasets.load_sources({"train": "train"}, name="tfds:svhn_cropped", folder=str(tmp_path))
    with pytest.raises(BadInput, match="unknown 'cifar10'"):
        datasets.load_sources({"train": "train"}, name="cifar10")
    with pytest.raises(BadInput, match="varying size"):
        datasets.load_sources({"train": "train"}, name="tfds:ragged", folder=folder)


def test_damaged_originals_are_refused(tmp_path):
    from vision.data import fashion_mnist

    name, sha256 = next(iter(fashion_mnist.FILES.items()))
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x02ab"))
    with pytest.raises(BadInput, match="its contents have sha256"):
        fashion_mnist.read_idx(path, sha256)
    path.write_bytes(b"not gzip")
    with pytest.raises(BadInput, match="cannot be read"):
        fashion_mnist.read_idx(path, sha256)
    with pytest.raises(BadInput, match="not all of"):
        fashion_mnist.prepare(str(tmp_path / "out"), str(tmp_path))


@pytest.mark.slow
def test_fashion_mnist_is_prepared_from_its_archives(tmp_path):
    from helpers import exit_code

    from vision.data import fashion_mnist

    if not pathlib.Path(fashion_mnist.DEBIAN).exists():
        pytest.skip(f"no {fashion_mnist.DEBIAN}: install Debian's dataset-fashion-mnist")
    assert exit_code("prepare", "fashion_mnist", "--folder", str(tmp_path)) == 0
    sets = datasets.load_sources(
        {"train": "train", "test": "test"}, name="fashion_mnist", folder=str(tmp_path)
    )
    train = sets["train"].resident
    assert train["image"].shape == (60000, 28, 28, 1)
    assert np.bincount(train["label"]).tolist() == [6000] * 10
    assert np.bincount(sets["test"].resident["label"]).tolist() == [1000] * 10
    mean, std = NORMALISATION["fashion_mnist"]
    assert train["image"].mean() / 255 == pytest.approx(mean[0], abs=1e-4)
    assert train["image"].std() / 255 == pytest.approx(std[0], abs=1e-4)
    assert sets["train"].facts.classes[9] == "Ankle boot"
