"""Pictures of one's own: parts, what is broken, tables, and that a set which
was written out as files is that set."""

import csv
import json
import logging
import os
import pathlib
import shutil

import numpy as np
import pytest
from helpers import exit_code
from PIL import Image

from common.errors import BadInput, CannotWrite
from common.runs import workdir
from vision.data import (
    datasets,
    decoding,
    fashion_mnist,
    kept,
    listed,
    packed,
    photographs,
    sets,
)

SPLITS = {"train": "train", "valid": "valid", "test": "test"}
KEYS = {"image_size": None, "broken": "refuse", "columns": ("path", "label"), "resident": None}
KEYS |= {"mean": (), "std": ()}


def noise(*shape: int, seed: int = 0, high: int = 256, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def write(root: pathlib.Path, *places: str, shape=(4, 5, 3)) -> pathlib.Path:
    """Pictures of noise, each another, at these paths below `root`."""
    for seed, place in enumerate(places):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(*shape, seed=seed)).save(root / place)
    return root


def pets(root: pathlib.Path, count: int = 40, **of) -> pathlib.Path:
    return write(root, *(f"{'ab'[i % 2]}/{i}.png" for i in range(count)), **of)


def load(root, splits=SPLITS, **arguments):
    folder = root.parent / "prepared"
    return datasets.load_sources(splits, name=f"images:{root}", folder=str(folder), **arguments)


def rows(source) -> dict:
    return source.read(np.arange(source.size, dtype=np.uint32))


def test_grey_files_make_one_channel_and_one_of_colour_makes_three(tmp_path):
    root = pets(tmp_path / "grey", shape=(4, 5))
    assert load(root)["train"].spec["image"].shape == (4, 5, 1)
    write(root, "a/colour.png")
    found = load(root)["train"]
    assert found.spec["image"].shape == (4, 5, 3)
    grey = noise(4, 5, seed=7)
    assert any((image == grey[..., None]).all() for image in rows(found)["image"])


def test_sizes_are_one_or_made_one(tmp_path):
    root = pets(tmp_path / "pets", shape=(8, 8, 3))
    big = noise(20, 30, 3, seed=99)
    Image.fromarray(big).save(root / "a" / "big.png")
    with pytest.raises(BadInput, match=r"a/0\.png has 8 x 8 .*big\.png has 20 x 30 .*image_size"):
        load(root)
    source = load(root, {"all": "all"}, image_size=6, resident=True)["all"]
    assert source.spec["image"].shape == (6, 6, 3)
    expected = photographs.shorter_side(big, 6)
    assert any((image == expected).all() for image in rows(source)["image"])


# ----------------------------------------------------------------------------------- what is broken


def torn(suffix: str):
    def damage(path):
        Image.fromarray(noise(40, 40, 3)).save(path.with_suffix(suffix))
        path = path.with_suffix(suffix)
        path.write_bytes(path.read_bytes()[:-700])

    return damage


def _bomb(path):
    """A PNG whose header says that it is 60,000 pixels wide and high."""
    import struct
    import zlib

    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    size, check = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
    idat = b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + size + chunk + check + idat)


BROKEN = {
    "torn png": (torn(".png"), "damaged|truncated|broken"),
    "torn jpeg": (torn(".jpg"), "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "git-lfs": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
    "html": (lambda path: path.write_text("<!DOCTYPE html><p>404"), "an HTML page"),
    "text": (lambda path: path.write_text("no picture"), "no picture that Pillow can read"),
    "bomb": (_bomb, "more than .* pixels"),
    "floats": (
        lambda path: Image.fromarray(noise(4, 5) / np.float32(255)).save(path.with_suffix(".tif")),
        "floats",
    ),
    "signs": (
        lambda path: Image.fromarray(noise(4, 5).astype(np.int32)).save(path.with_suffix(".tif")),
        "signs",
    ),
    "dead link": (lambda path: path.symlink_to("nowhere.png"), "is not there"),
    "circle": (lambda path: path.symlink_to(path.name), "back to itself"),
    "fifo": (os.mkfifo, "FIFO"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_or_left_out_and_counted(tmp_path, kind, caplog):
    shape = (40, 40, 3) if "torn" in kind else (4, 5, 3)
    root, (damage, reason) = pets(tmp_path / "pets", 12, shape=shape), BROKEN[kind]
    sound = load(root)
    damage(root / "b" / "broken.png")
    with pytest.raises(BadInput, match=rf"b/broken\.\w+: .*({reason}).*data\.broken=skip"):
        load(root)
    for _ in range(2):  # prepared, and as prepared before
        caplog.clear()
        found = load(root, broken="skip")
        said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert [text for text in said if "left out" in text and "b/broken" in text]
    for name, source in found.items():
        np.testing.assert_array_equal(rows(source)["image"], rows(sound[name])["image"])


def test_a_picture_that_is_left_out_decides_nothing(tmp_path):
    """Neither the channels, nor the size; but what can be read does."""
    root = pets(tmp_path / "pets", 12, shape=(8, 8))
    odd = root / "a" / "odd.png"
    Image.fromarray(noise(30, 30, 3)).save(odd)
    whole = odd.read_bytes()
    odd.write_bytes(whole[:-500])
    assert load(root, broken="skip")["train"].spec["image"].shape == (8, 8, 1)
    one = load(root, broken="skip", image_size=4, resident=True)
    assert one["train"].spec["image"].shape == (4, 4, 1)
    odd.write_bytes(whole)
    assert load(root, broken="skip", image_size=4)["train"].spec["image"].shape == (4, 4, 3)
    with pytest.raises(BadInput, match="sizes differ"):
        load(root, broken="skip")


def test_what_pillow_says_of_a_picture_it_can_read_is_not_repeated(tmp_path, monkeypatch, recwarn):
    """Of one that is large, or has notes that are damaged."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    assert load(pets(tmp_path / "pets"))["train"].size > 20  # of 20 pixels
    assert not [w for w in recwarn if issubclass(w.category, Image.DecompressionBombWarning)]


# -------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("count", [3, 4, 7, 40])
def test_no_part_is_empty_and_each_picture_is_in_one(tmp_path, count):
    root = pets(tmp_path / "pets", count)
    for i in range(3):  # copies under other names, of the other class
        shutil.copy(root / "a" / "0.png", root / "b" / f"copy {i}.png")
    found = load(root)
    held = {
        name: {image.tobytes() for image in rows(source)["image"]} for name, source in found.items()
    }
    assert sum(map(len, held.values())) == len(set().union(*held.values())) == count
    assert min(map(len, held.values())) > 0
    assert sum(source.size for source in found.values()) == count + 3


def test_a_picture_stays_in_its_part_whatever_else_there_is(tmp_path):
    small, large = pets(tmp_path / "small", 60), pets(tmp_path / "large", 300)
    keys = lambda sources, name: {image.tobytes() for image in rows(sources[name])["image"]}
    few, many = load(small), load(large)
    for name in SPLITS:
        assert keys(few, name) <= keys(many, name)
    assert 0.82 < many["train"].size / 300 < 0.96


def test_two_pictures_are_too_few(tmp_path):
    root = pets(tmp_path / "pets", 2)
    shutil.copy(root / "a" / "0.png", root / "a" / "again.png")
    with pytest.raises(BadInput, match="2 different pictures, too few.*DIR/train/CLASS"):
        load(root)


def test_parts_of_the_user_are_kept_and_what_two_of_them_have_is_told(tmp_path, caplog):
    names = [
        f"{part}/{k}/{i}.png" for part in ("train", "val", "Test") for k in "ab" for i in "123"
    ]
    root = write(tmp_path / "pets", *names)
    found = load(root)
    assert {name: source.size for name, source in found.items()} == dict.fromkeys(SPLITS, 6)
    np.testing.assert_array_equal(rows(found["train"])["label"], [0, 1] * 3)
    assert not [record for record in caplog.records if "another part" in record.getMessage()]
    shutil.copy(root / "train" / "a" / "2.png", root / "Test" / "a" / "copy.png")
    for _ in range(2):
        caplog.clear()
        assert load(root)["test"].size == 7
        (said,) = (r.getMessage() for r in caplog.records if "test" in r.getMessage())
        assert "1 picture," in said
        assert "train/a/2.png in train and Test/a/copy.png in test" in said


def warned(caplog) -> str:
    """What was warned of since the last call."""
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    caplog.clear()
    return "\n".join(said)


@pytest.mark.parametrize("resident", [True, False])
def test_copies_on_both_sides_of_a_slice_are_told_once(tmp_path, caplog, resident):
    root = pets(tmp_path / "pets", 40)
    for path in root.rglob("*.png"):
        shutil.copy(path, path.with_name(f"{100 + int(path.stem)}.png"))
    splits = {"train": "train[:50%]", "rest": "train[50%:]", "same": "train[:50%]", "test": "test"}
    found = load(root, splits, train="train[:50%]", resident=resident)
    images = lambda name: [image.tobytes() for image in rows(found[name])["image"]]
    count = len(set(images("train")) & set(images("rest")))
    text = f"{count} of {found['rest'].size} images of 'train[50%:]' are also in 'train[:50%]'"
    assert warned(caplog).count("also") == 1 == (count > 10)
    load(root, splits, train="train[:50%]", resident=resident)
    assert text in warned(caplog)
    load(root)
    assert not warned(caplog)


def test_a_picture_of_two_classes_is_told(tmp_path, caplog):
    root = pets(tmp_path / "pets")
    shutil.copy(root / "a" / "2.png", root / "b" / "copy.png")
    for _ in range(2):
        load(root)
        assert (
            "1 picture, by the pixels, has another class as well: a/2.png in a and b/copy.png in b"
            in (warned(caplog))
        )


def test_squares_that_become_alike_are_told(tmp_path, caplog):
    """Two blank pictures of other sizes are two, until they are resized."""
    root = pets(tmp_path / "pets", 6, shape=(8, 8, 3))
    for part, side in (("train", 8), ("test", 9)):
        for name in "ab":
            write(root / part / name, "own.png", shape=(8, 8, 3))
        Image.new("RGB", (side, side)).save(root / part / "a" / "blank.png")
    for name in "ab":
        shutil.rmtree(root / name)
    load(root, {"train": "train", "test": "test"}, image_size=4)
    assert "blank.png in train and" in caplog.text or "blank.png in test and" in caplog.text


# -------------------------------------------------------------------------------------- the listing


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


# ------------------------------------------------------------------------------------ as a whole


def test_prepared_twice_moved_in_memory_and_on_demand_it_is_the_same(tmp_path):
    root = pets(tmp_path / "pets")
    first = load(root)
    shutil.copytree(root, tmp_path / "other" / "moved")  # copies have other times
    for path in (tmp_path / "other" / "moved").rglob("*.png"):
        os.utime(path, (1, 1))
    second, third = load(tmp_path / "other" / "moved"), load(root, resident=False)
    for name in SPLITS:
        assert first[name].fingerprint == second[name].fingerprint
        assert first[name].facts == second[name].facts == third[name].facts
        assert first[name].spec == third[name].spec
        for key, value in rows(first[name]).items():
            np.testing.assert_array_equal(value, rows(second[name])[key])
            np.testing.assert_array_equal(value, rows(third[name])[key])
    Image.fromarray(noise(4, 5, 3, seed=999)).save(root / "a" / "0.png")
    other = load(root)
    assert other["train"].fingerprint != first["train"].fingerprint
    # A run may go on with what was moved, but not with another kind of set.
    config = {"data": {"name": f"images:{root}", "folder": "x"}, "seed": 0}
    workdir.check_same("w", config, {"data": {"name": "images:elsewhere", "folder": ""}, "seed": 0})
    with pytest.raises(BadInput, match="another run"):
        workdir.check_same("w", config, {"data": {"name": "digits", "folder": "x"}, "seed": 0})


def test_another_set_with_the_same_names_sizes_and_times_is_another(tmp_path):
    """As unzipped: two folders of one name, and a file that is replaced by one of its size."""
    roots = [pets(tmp_path / place / "pets", 6) for place in "xy"]

    def swap(root):
        image = np.asarray(Image.open(root / "a" / "0.bmp"))
        Image.fromarray(255 - image).save(root / "a" / "0.bmp")

    for root in roots:
        for path in root.rglob("*.png"):
            Image.open(path).save(path.with_suffix(".bmp"))
            path.unlink()
    swap(roots[1])
    found = []
    for change, root in ((None, roots[0]), (None, roots[1]), (swap, roots[1])):
        if change:
            change(root)
        for path in root.rglob("*.bmp"):
            os.utime(path, (315532800, 315532800))
        of = {"folder": str(tmp_path / "prepared"), "name": f"images:{root}"}
        found.append(datasets.load_sources(SPLITS, **of)["train"].fingerprint)
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(("highest", "refused"), [(4095, True), (255, True), (65535, False)])
def test_12_bits_in_files_of_16_are_refused(tmp_path, highest, refused):
    root = pets(tmp_path / "pets", 6)
    for i, path in enumerate(root.rglob("*.png")):
        deep = noise(4, 5, seed=i, high=min(highest, 4096), dtype=np.uint16)
        deep[0, 0] = highest if i == 3 else 0  # one of them tells
        Image.fromarray(deep).save(path)
    if refused:
        with pytest.raises(BadInput, match=rf"png: its 16 bits never exceed {highest:,} "):
            load(root, resident=False)
    else:
        assert load(root)["train"].size > 0


def test_mean_and_deviation_are_those_of_the_training_pixels(tmp_path):
    root = pets(tmp_path / "pets")
    found = load(root)
    pixels = rows(found["train"])["image"].reshape(-1, 3) / 255
    np.testing.assert_allclose(found["test"].facts.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["test"].facts.std, pixels.std(0), rtol=1e-12)
    own = load(root, mean=(0.5,), std=(0.25,))["train"].facts
    assert (own.mean, own.std) == ((0.5,), (0.25,))


def test_a_set_written_out_as_files_is_that_set(tmp_path):
    """With names as numbers, in folders of classes: the same rows, in the same order, and parts."""
    digits = datasets.load_sources(
        {"train": "train[:300]", "test": "test[:99]"}, train="train[:300]"
    )
    for part, source in digits.items():
        write_out(tmp_path / "digits" / part, rows(source))
    found = load(tmp_path / "digits", {"train": "train", "test": "test"})
    for part, source in digits.items():
        for key, value in rows(source).items():
            np.testing.assert_array_equal(rows(found[part])[key], value)
            assert rows(found[part])[key].dtype == value.dtype


def write_out(folder: pathlib.Path, arrays: dict) -> None:
    for label in np.unique(arrays["label"]):
        (folder / str(label)).mkdir(parents=True)
    for i, (image, label) in enumerate(zip(arrays["image"], arrays["label"], strict=True)):
        Image.fromarray(image[..., 0]).save(folder / str(label) / f"{i:05d}.png", compress_level=1)


@pytest.mark.parametrize(
    ("name", "duration"),
    [
        pytest.param("digits", "40 steps", marks=pytest.mark.slow),
        pytest.param("fashion_mnist", "1 epoch", marks=pytest.mark.measure("images")),
    ],
)
def test_a_run_on_files_has_the_digest_of_one_on_the_set(tmp_path, monkeypatch, name, duration):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    if name == "fashion_mnist":
        fashion_mnist.prepare(str(tmp_path / "tfds"))
    for part, source in datasets.load_sources(
        {"train": "train", "test": "test"}, name=name
    ).items():
        write_out(tmp_path / name / part, rows(source))
    words = ["--config", f"configs/vision/{name}.py:cnn", f"--config.train.duration={duration}"]
    mean, std = sets.NORMALISATION[name]
    of = f"--config.data.name=images:{tmp_path}/{name}", f"--config.data.folder={tmp_path}/tfds"
    of += f"--config.data.mean={mean}", f"--config.data.std={std}"
    results = []
    for name, more in (("set", ()), ("files", of)):
        assert exit_code("train", *words, *more, "--workdir", str(tmp_path / name)) == 0
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert results[0]["digest"] == results[1]["digest"]
    assert results[0]["eval"] == results[1]["eval"]


class Killed(BaseException):
    pass


def test_killed_while_preparing_it_leaves_nothing_half_made(tmp_path, monkeypatch):
    root, count = pets(tmp_path / "pets"), iter(range(100))

    def decode(*arguments):
        if next(count) == 20:
            raise Killed
        return real(*arguments)

    real = decoding.decode
    monkeypatch.setattr(decoding, "decode", decode)
    with pytest.raises(Killed):
        load(root)
    assert not [p for p in (tmp_path / "prepared").iterdir() if p.name[0] != "." or p.is_dir()]
    monkeypatch.undo()
    assert sum(source.size for source in load(root).values()) == 40


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    """As array_record tells it, which writes a file's last block when it is closed."""
    root = pets(tmp_path / "pets")

    def refuse(self):
        raise RuntimeError("UNKNOWN: fwrite failed: No space left on device")

    monkeypatch.setattr(packed._Shards, "close", refuse)
    with pytest.raises(CannotWrite, match="prepared.* cannot be written: .*No space left"):
        load(root)
    assert not [p for p in (tmp_path / "prepared").iterdir() if p.is_dir()]


def test_a_prepared_set_that_was_damaged_is_made_anew(tmp_path, caplog):
    root = pets(tmp_path / "pets")
    before = load(root)["train"].fingerprint
    (file,) = (tmp_path / "prepared").glob(f"*/{packed.NUMBER}/*-train.array_record-*")
    os.truncate(file, 1000)
    assert load(root)["train"].fingerprint == before
    assert "made anew" in caplog.text


def _edited(key, value):
    def edit(folder):
        index = json.loads((folder / kept.INDEX).read_text())
        (folder / kept.INDEX).write_text(json.dumps(index | {key: value}))

    return edit


def _blank(name):
    def blank(folder):
        (path,) = folder.glob(f"{packed.NUMBER}/{name}")
        path.write_bytes(b" " * path.stat().st_size)

    return blank


DAMAGE = {
    "classes": _edited("classes", ["b", "a"]),
    "mean": _edited("mean", [0.1] * 3),
    "sizes": _edited("sizes", {"train": 3}),
    "files": _edited("files", {}),
    "features": _blank("features.json"),
    "info": _blank("dataset_info.json"),
    "labels": _blank("label.labels.txt"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_stands_beside_the_pixels_is_not_believed_if_it_was_changed(tmp_path, caplog, kind):
    root = pets(tmp_path / "pets", 12)
    before = load(root)["train"]
    (folder,) = (tmp_path / "prepared").glob("images*")
    DAMAGE[kind](folder)
    caplog.clear()
    after = load(root)["train"]
    assert (after.facts, after.fingerprint) == (before.facts, before.fingerprint)
    assert "made anew" in warned(caplog)


def test_pixels_that_were_damaged_are_refused_with_what_to_do(tmp_path):
    root = pets(tmp_path / "pets", 12)
    load(root)
    (file,) = (tmp_path / "prepared").glob(f"*/{packed.NUMBER}/*-train.array_record-*")
    data = bytearray(file.read_bytes())
    data[64 : len(data) // 2] = bytes(len(data) // 2 - 64)
    file.write_bytes(data)
    (folder,) = (tmp_path / "prepared").glob("images*")
    with pytest.raises(
        BadInput, match=rf"is damaged .*; remove {folder} and start again"
    ) as caught:
        load(root)
    assert "builder" not in str(caught.value)


def test_places_that_cannot_hold_a_set_are_refused(tmp_path, monkeypatch):
    root = pets(tmp_path / "pets")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="not a folder"):
        datasets.load_sources(SPLITS, name=f"images:{root}", folder=str(tmp_path / "file"))
    with pytest.raises(BadInput, match=r"file/x cannot be written .*set config\.data\.folder"):
        datasets.load_sources(SPLITS, name=f"images:{root}", folder=str(tmp_path / "file" / "x"))
    with pytest.raises(BadInput, match=r"take 131,941,.* MB, and .* MB free"):
        load(root, image_size=1 << 20, resident=False)


def test_an_outline_prepares_nothing_and_has_the_shapes_of_the_set(tmp_path):
    root = pets(tmp_path / "pets")
    section = KEYS | {"name": f"images:{root}", "folder": str(tmp_path / "prepared")}
    section |= {"train": "train", "workers": 0}
    assert "40 pictures" in datasets.unprepared(section)
    outlines = datasets.outline_sources(SPLITS, section)
    assert not (tmp_path / "prepared").exists()
    real = load(root)
    for name in SPLITS:
        assert outlines[name].spec == real[name].spec
        assert outlines[name].facts.classes == real[name].facts.classes
        assert abs(outlines[name].size - real[name].size) <= 4
    assert datasets.unprepared(section) is None
    assert datasets.outline_sources(SPLITS, section)["train"].size == real["train"].size


@pytest.mark.slow
def test_a_dry_run_prepares_nothing(tmp_path, capsys):
    root = pets(tmp_path / "pets", shape=(8, 8, 1)[:2])
    words = ["--config", "configs/vision/digits.py:mlp", f"--config.data.name=images:{root}"]
    words += [f"--config.data.folder={tmp_path}/prepared", "--dry-run"]
    assert exit_code("train", *words, "--workdir", str(tmp_path / "w")) == 0
    assert f"not prepared: images:{root}: 40 pictures" in capsys.readouterr().out
    assert not (tmp_path / "prepared").exists()
