"""Pictures that a user names: folders, parts, and tables."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from pets import SPLITS, load, noise, pets, rows, warned, write

from common.errors import BadInput
from vision.data import listed


def test_rows_are_in_the_order_of_their_numbers_and_classes_in_that_of_their_names(tmp_path):
    names = [
        f"train/{k}/{i}.png" for i, k in ((10, "b"), (9, "a"), (100, "10"), (2, "a"), (1, "b"))
    ]
    root = write(tmp_path / "pets", *names, "train/a/deep/er/11.png", "train/a/2.jpg.png")
    (root / "train" / "linked").symlink_to(root / "train" / "b")
    found = listed.listing(f"images:{root}", ("path", "label"))
    assert found.classes == ("10", "a", "b", "linked")
    kept = [p.path.removeprefix("train/") for p in found.pictures if "linked" not in p.path]
    assert kept == [
        *("b/1.png", "a/2.jpg.png", "a/2.png", "a/9.png", "b/10.png", "a/deep/er/11.png"),
        "10/100.png",
    ]
    assert [p.label for p in found.pictures if "10/" in p.path] == [0]


def _in_a_circle(root):
    (root / "a" / "up").symlink_to(root)


def _not_utf8(root):
    shutil.copy(root / "a" / "0.png", os.fsencode(root) + b"/a/\xff.png")


MISSHAPEN = {
    "no pictures": (lambda r: [p.unlink() for p in r.rglob("*.png")], "holds no pictures"),
    "loose": (lambda r: write(r, "loose.png"), r"loose\.png is in no folder of a class"),
    "an empty class": (lambda r: (r / "c").mkdir(), "c, the folder of a class, holds no pictures"),
    "one class": (lambda r: shutil.rmtree(r / "b"), "but one class, 'a'"),
    "a part lacks one": (lambda r: parts(r, "test/b/x.png"), "train has a class 'a' that test"),
    "only test": (lambda r: parts(r, "test/a/x.png", "test/b/x.png", "test/c/x.png"), "that train"),
    "beside train": (lambda r: parts(r, "c/x.png"), "c stands beside train"),
    "no train": (lambda r: parts(r, "test/a/x.png", train="exam"), "no train beside it"),
    "valid twice": (
        lambda r: parts(r, "val/a/x.png", "val/b/x.png", "valid/a/x.png", "valid/b/x.png"),
        "would both be valid",
    ),
    "unlabelled": (lambda r: parts(r, "test/x.png"), r"test/x\.png is in no folder of a class"),
    "stray": (
        lambda r: parts(r, "test/a/x.png", "test/b/x.png", "train/stray.png"),
        r"train/stray\.png is in no folder of a class",
    ),
    "circle": (_in_a_circle, "a link to a folder that holds it"),
    "not utf-8": (_not_utf8, "not UTF-8"),
    "gone": (shutil.rmtree, "no such folder"),
    "parts without their names": (
        lambda r: [parts(r, "2/a/x.png", "2/b/x.png", train="1")],
        "1 and those beside it hold folders of the same names",
    ),
    "another format": (
        lambda r: [p.rename(p.with_suffix(".heic")) for p in (r / "b").iterdir()],
        r"b, the folder of a class, holds no pictures; passed over: 3 \.heic",
    ),
}


def parts(root, *places, train="train"):
    (root / train).mkdir()
    for name in "ab":
        (root / name).rename(root / train / name)
    write(root, *places)


@pytest.mark.parametrize("kind", MISSHAPEN)
def test_folders_that_cannot_be_meant_are_refused(tmp_path, kind):
    root, (change, reason) = pets(tmp_path / "pets", 6), MISSHAPEN[kind]
    change(root)
    with pytest.raises(BadInput, match=reason) as caught:
        load(root)
    assert "config.data.name" in str(caught.value)


def test_a_set_to_evaluate_on_may_have_one_class(tmp_path):
    root = write(tmp_path / "pets", *(f"a/{i}.png" for i in range(3)))
    assert load(root, {"test": "all"})["test"].facts.classes == ("a",)


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("training_set", "test_set"), ("seg_train", "seg_test")]
)
def test_parts_may_have_longer_names(tmp_path, names):
    root = write(
        tmp_path / "pets", *(f"{top}/{k}/{i}.png" for top in names for k in "ab" for i in "12")
    )
    found = load(root, {"train": "train", "test": "test"})
    assert (found["train"].size, found["test"].size) == (4, 4)
    assert found["train"].facts.classes == ("a", "b")


def test_a_listing_of_another_place_has_another_stamp(tmp_path):
    """Also where a file system keeps no times."""
    found = listed.listing(f"images:{pets(tmp_path / 'pets', 4)}", ("path", "label"))
    other = found._replace(root=tmp_path / "elsewhere")
    assert listed.stamp(found, 1) == listed.stamp(found, 1) != listed.stamp(other, 1)
    assert listed.stamp(found, 1) != listed.stamp(found, 2)


def test_classes_that_are_spelled_alike_are_told(tmp_path, caplog):
    write(tmp_path / "own", *(f"{name}/{i}.png" for name in ("CAT", "cat") for i in "123"))
    listed.listing(f"images:{tmp_path}/own", ("path", "label"))
    assert "'CAT' (3) and 'cat' (3)" in warned(caplog)


def test_folders_below_classes_are_told(tmp_path, caplog):
    names = "pets/cat", "pets/dog", "cars/bus", "cars/van"
    load(write(tmp_path / "own", *(f"{top}/{i}.png" for top in names for i in "12")))
    assert "not classes: 8 pictures in them, such as cars/bus/1.png, of the class cars" in (
        warned(caplog)
    )


def test_a_part_that_nobody_made_is_refused_with_what_there_is(tmp_path):
    root = write(tmp_path / "pets", *(f"train/{k}/{i}.png" for k in "ab" for i in "12"))
    with pytest.raises(
        BadInput, match=r"evals\.test\.split: .*no part 'test', but train.*\[90%:\]"
    ):
        load(root, {"train": "train", "test": "test"})
    assert load(root, {"train": "train[:50%]"}, train="train[:50%]")["train"].size == 2


def test_a_class_may_be_called_train(tmp_path):
    root = write(tmp_path / "coco", *(f"{k}/{i}.png" for k in ("train", "boat") for i in range(5)))
    assert load(root)["train"].facts.classes == ("boat", "train")


def test_what_is_no_picture_is_passed_over_and_counted(tmp_path, caplog):
    root = pets(tmp_path / "pets")
    (root / "a" / ".DS_Store").write_bytes(b"x")
    (root / "a" / "Thumbs.db").write_bytes(b"x")
    (root / "__MACOSX").mkdir()
    (root / "b" / "._0.png").write_bytes(b"x")
    (root / "labels.TXT").write_text("x")
    assert sum(source.size for source in load(root).values()) == 40
    assert "passed over: 3 hidden, 1 .db, 1 .txt" in caplog.text


# ------------------------------------------------------------------------------------------- tables


def _csv(path, records):
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, records[0])
        table.writeheader()
        table.writerows(records)


def _parquet(path, records):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)


TABLES = {
    ".csv": _csv,
    ".jsonl": lambda path, records: path.write_text("".join(f"{json.dumps(r)}\n" for r in records)),
    ".parquet": _parquet,
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("split", [True, False])
def test_a_table_of_each_kind(tmp_path, kind, split):
    pets(tmp_path / "files", 30)
    records = [{"file": f"files/{'ab'[i % 2]}/{i}.png", "what": "yx"[i % 3 > 0]} for i in range(30)]
    records.reverse()
    for i, record in enumerate(records if split else ()):
        record["split"] = ("train", "val", "test")[max(0, i - 27)] if i % 3 else "train"
    TABLES[kind](tmp_path / f"pets{kind}", records)
    found = load(tmp_path / f"pets{kind}", columns=("file", "what"))
    assert found["train"].facts.classes == ("x", "y")
    assert {s.size for s in found.values()} == {28, 1} or not split
    together = [rows(found[name]) for name in SPLITS]
    at = {image.tobytes(): i for i, image in enumerate(noise(4, 5, 3, seed=k) for k in range(30))}
    numbers = [[at[image.tobytes()] for image in part["image"]] for part in together]
    assert sorted(i for part in numbers for i in part) == list(range(30))
    for part, own in zip(together, numbers, strict=True):
        assert own == sorted(own, reverse=True)  # the order of the table
        np.testing.assert_array_equal(part["label"], [i % 3 == 0 for i in own])


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_several_classes_a_picture(tmp_path, kind, resident):
    pets(tmp_path / "files", 30)
    own = lambda i: ["cat"] * (i % 2 == 0) + ["dog"] * (i % 3 == 0) + ["red"] * (i % 5 == 0)
    spell = ";".join if kind == ".csv" else list
    at = lambda i: f"files/{'ab'[i % 2]}/{i}.png"
    records = [{"path": at(i), "label": spell(own(i))} for i in range(30)]
    TABLES[kind](tmp_path / f"t{kind}", records)
    separator = {"label_separator": ";"} if kind == ".csv" else {}
    splits = {"train": "train", "rest": "test+valid", "few": "train[3:9]"}
    found = load(tmp_path / f"t{kind}", splits, resident=resident, **separator)
    assert found["train"].facts.classes == ("cat", "dog", "red")
    assert found["train"].facts.multi_label
    numbers = {noise(4, 5, 3, seed=i).tobytes(): i for i in range(30)}
    for source in found.values():
        batch = rows(source)
        own_rows = [numbers[image.tobytes()] for image in batch["image"]]
        expected = [[i % k == 0 for k in (2, 3, 5)] for i in own_rows]
        np.testing.assert_array_equal(batch["label"], expected)
        np.testing.assert_array_equal(source.labels(), expected)
        spec = source.spec["label"]
        assert (batch["label"].dtype, batch["label"].shape[1:]) == (spec.dtype, spec.shape)
    assert sum(found[name].size for name in ("train", "rest")) == 30


def test_a_set_on_disk_tells_its_labels_without_its_pixels(tmp_path):
    source = load(pets(tmp_path / "pets", 30), resident=False)["train"]
    blind = source._replace(read=None).labels()
    np.testing.assert_array_equal(blind, rows(source)["label"])
    assert blind.dtype == np.int32


def test_faults_of_a_table_are_told_by_line(tmp_path):
    pets(tmp_path / "files", 6)
    good = [{"path": f"files/{'ab'[i % 2]}/{i}.png", "label": "ab"[i % 2]} for i in range(6)]
    for change, reason in (
        ({"path": "files/a/gone.png"}, "line 4: no such file: .*gone.png"),
        ({"path": ""}, "line 4: path is '', not the path"),
        ({"label": ""}, "line 4: the label is empty"),
        ({"split": "train"}, "line 4: split is 'train', and '' in the rows above"),
    ):
        records = [record | {"split": ""} for record in good]
        records[2] |= change
        _csv(tmp_path / "t.csv", records)
        with pytest.raises(BadInput, match=reason):
            load(tmp_path / "t.csv")
    _csv(tmp_path / "t.csv", [record | {"split": "exam"} for record in good])
    with pytest.raises(BadInput, match="line 2: split is 'exam'; use 'train'"):
        load(tmp_path / "t.csv")
    _csv(tmp_path / "t.csv", [record | {"Split": "test"} for record in good])
    with pytest.raises(BadInput, match="no row has the split 'train'"):
        load(tmp_path / "t.csv")
    _csv(tmp_path / "t.csv", [record | {"Split": "test", "split": "train"} for record in good])
    with pytest.raises(BadInput, match="'Split', 'split'.* both name the part"):
        load(tmp_path / "t.csv")
    for spelled in ("files\\a\\0.png", " files/a/0.png ", "files/%61/0.png"):
        _csv(tmp_path / "t.csv", [good[1], good[2] | {"path": spelled}])
        with pytest.raises(BadInput, match="line 3: no such file: .*; files/a/0.png is there"):
            load(tmp_path / "t.csv")
    with pytest.raises(BadInput, match="line 2: no column 'file'; .*config.data.columns"):
        load(tmp_path / "t.csv", columns=("file", "label"))
    _csv(tmp_path / "t.csv", [record | {"split": "test"} for record in good])
    with pytest.raises(BadInput, match="no row has the split 'train'"):
        load(tmp_path / "t.csv")


def test_a_row_without_its_file_is_left_out_if_asked(tmp_path, caplog):
    pets(tmp_path / "files", 12)
    good = [{"path": f"files/{'ab'[i % 2]}/{i}.png", "label": "ab"[i % 2]} for i in range(12)]
    _csv(tmp_path / "t.csv", [*good, {"path": "files/a/gone.png", "label": "a"}])
    found = load(tmp_path / "t.csv", broken="skip")
    assert sum(source.size for source in found.values()) == 12
    assert "left out because broken: files/a/gone.png (no such file)" in warned(caplog)
