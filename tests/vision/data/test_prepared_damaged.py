"""Prepared TFDS sets that are half there, damaged or named wrongly: one line with the way on."""

import json
import os
import pathlib
import shutil

import pytest
import tfds_sets
from tfds_sets import load

from common.errors import BadInput


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    for kind in tfds_sets.PIXELS:
        if kind.name in ("u8", "video"):
            tfds_sets.prepare(path, kind)
    return str(path)


def _edited(**changes):
    def edit(version: pathlib.Path) -> None:
        path = version / "dataset_info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def _interrupted(version: pathlib.Path) -> None:
    version.rename(version.parent / "incomplete.AB12CD_1.0.0")


def _other_features(version: pathlib.Path) -> None:
    path = version / "features.json"
    path.write_text(path.read_text().replace("tensor_feature.Tensor", "tensor_feature.Tensorial"))


def _torn(version: pathlib.Path) -> None:
    os.truncate(version / "features.json", 100)


def _without(pattern: str):
    def remove(version: pathlib.Path) -> None:
        for path in version.glob(pattern):
            path.unlink()

    return remove


def _names(text: str):
    def write(version: pathlib.Path) -> None:
        (version / "label.labels.txt").write_text(text)

    return write


HALF = {
    "a mark": (_names("\ufeffred\ngreen\nblue\n"), r"labels\.txt begins with a byte order mark"),
    "fewer names": (_names("red\n"), r"1 different names, and there are 3 classes\); remove"),
    "interrupted": (_interrupted, r"not prepared .* interrupted, and left .*incomplete\.AB12CD"),
    "no features": (
        _without("features.json"),
        r"1\.0\.0 has no features\.json; remove that folder",
    ),
    "no info": (_without("dataset_info.json"), r"damaged .*dataset_info\.json\); remove"),
    "no shard": (_without("*train*"), r"no such file: .*train.*; remove .* prepare the set again"),
    "torn": (_torn, r"features\.json: not JSON .*; remove .* prepare the set again"),
    "no splits": (_edited(splits=[]), r"damaged .*no split.*; remove .* prepare the set again"),
    "no example": (
        _edited(splits=[{"name": "train", "shardLengths": ["0"], "numBytes": "0"}]),
        r"it holds no example\); remove .* prepare the set again",
    ),
    "tfrecord": (
        _edited(fileFormat="tfrecord"),
        r"is prepared as \['tfrecord'\], not array_record",
    ),
    "unknown format": (_edited(fileFormat="brand_new"), r"damaged .*; remove .* prepare the set"),
    "other version": (_other_features, r"damaged .*; remove .* prepare the set again"),
    "duplicate names": (
        _names("red\nred\nblue\n"),
        r"2 different names, and .* 3 classes\); remove",
    ),
}


def _copied(folder, tmp_path, name: str) -> pathlib.Path:
    """The folder of the version of a sound set of this name."""
    version = tmp_path / name / "1.0.0"
    shutil.copytree(pathlib.Path(folder) / "u8" / "1.0.0", version)
    for path in version.glob("u8-*"):
        path.rename(version / path.name.replace("u8-", f"{name}-", 1))
    _edited(name=name)(version)
    return version


@pytest.mark.parametrize(("harm", "says"), HALF.values(), ids=HALF)
def test_what_is_half_prepared_is_refused_with_the_way_on(harm, says, folder, tmp_path):
    version = _copied(folder, tmp_path, "mnist")
    assert load("mnist", tmp_path, True)["train"].size == 6  # and there is a cache of it
    harm(version)
    how = f"run: tfds build mnist --file_format=array_record --data_dir={tmp_path}"
    for resident in (True, False):
        with pytest.raises(BadInput, match=f"{says}.*{how}"):
            load("mnist", tmp_path, resident)


@pytest.mark.parametrize("harm", [_interrupted, _torn, _without("*train*")])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("mine", r"; run its own builder \(TFDS has none .*\), with file_format='array_record'"),
        (
            "images_pets_0123456789abcdef",
            r"; remove {folder}/images_pets_0123456789abcdef and start again: its pictures are "
            "prepared anew$|, and left .* which can be removed; ",
        ),
        ("fashion_mnist", r"; run: python scripts/prepare\.py fashion_mnist --folder {folder}$"),
        ("mnist", r"; run: tfds build mnist --file_format=array_record --data_dir={folder} "),
    ],
)
def test_the_way_on_is_that_of_the_set(harm, name, how, folder, tmp_path):
    harm(_copied(folder, tmp_path, name))
    with pytest.raises(BadInput, match=how.format(folder=tmp_path)):
        load(name, tmp_path, True)


def test_features_that_need_tensorflow_are_told_in_one_line(folder, tmp_path, capsys):
    shutil.copytree(pathlib.Path(folder) / "video", tmp_path / "video")
    path = tmp_path / "video" / "1.0.0" / "features.json"
    feature = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"shape": {"dimensions": ["2", "4", "5", "3"]}, "dtype": "uint8"},
    }
    content = json.loads(path.read_text())
    content["featuresDict"]["features"]["image"] = feature
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"'video' has features that are read by TensorFlow only"):
        load("video", tmp_path, True)
    content["featuresDict"]["features"]["image"] = {
        "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
        "tensor": {"shape": {"dimensions": ["0", "4", "1"]}, "dtype": "u7", "encoding": "none"},
    }
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"features\.json names a type that there is not"):
        load("video", tmp_path, True)
    path.write_text(json.dumps(content).replace("u7", "uint8"))
    with pytest.raises(BadInput, match=r"has shape \[0, 4, 1\]: its images have no pixels"):
        load("video", tmp_path, True)
    assert capsys.readouterr() == ("", "")


def test_a_set_beside_an_interrupted_one_is_read(folder, tmp_path):
    root = tmp_path / "u8"
    shutil.copytree(pathlib.Path(folder) / "u8", root)
    (root / "incomplete.AB12CD_1.0.1").mkdir()
    (root / "incomplete.AB12CD_1.0.1" / "features.json").write_text("{")
    assert load("u8", tmp_path, True)["train"].size == 6
    with pytest.raises(BadInput, match=r"'u8:3\.0\.0' is not prepared in .*, but u8/1\.0\.0; run"):
        load("u8:3.0.0", folder, True)


def test_a_store_whose_package_is_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    says = r"config\.data\.folder: gs://b/x cannot be read: .*: pip install -e '\.\[gcs\]'$"
    with pytest.raises(BadInput, match=says):
        load("mnist", "gs://b/x", True)


def test_a_version_is_behind_a_colon(folder):
    with pytest.raises(BadInput, match=r"'u8/1\.0\.0': .*; for this version, write u8:1\.0\.0$"):
        load("u8/1.0.0", folder, True)
    assert load("u8:1.0.0", folder, True)["train"].size == 6


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../u8", "/etc", "u8/..", "u8/../u8", "*", "u8:", "u 8", "u8\n", "é"]
)
def test_what_is_no_name_is_told_so(name, folder):
    with pytest.raises(BadInput, match=r"config\.data\.name: .* is not the name of a TFDS set"):
        load(name, folder, True)
