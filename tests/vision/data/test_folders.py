"""Pictures of one's own: parts, what is broken, and that a set which was written out as files is
that set."""

import json
import logging
import os
import pathlib
import shutil

import numpy as np
import pytest
from helpers import exit_code
from pets import SPLITS, load, noise, pets, rows, warned, write
from PIL import Image

from common.errors import BadInput, CannotWrite
from common.runs import workdir
from vision.data import (
    datasets,
    decoding,
    fashion_mnist,
    packed,
    photographs,
    sets,
)

KEYS = {"image_size": None, "broken": "refuse", "columns": ("path", "label"), "resident": None}
KEYS |= {"mean": (), "std": (), "label_separator": ""}


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
