"""Prepared TFDS sets of every kind: the right pixels and labels, or one line that says why not."""

import pickle
import shutil

import numpy as np
import pytest
import tfds_sets
from PIL import Image
from tfds_sets import COLOURS, LABELS, U8, load

from common.data.splits import MADE
from common.errors import BadInput
from vision.data import datasets, photographs, pixels, sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    for kind in tfds_sets.ALL:
        tfds_sets.prepare(path, kind)
    return str(path)


def everything(source) -> dict[str, np.ndarray]:
    return source.read(np.arange(source.size, dtype=np.uint32))


@pytest.mark.parametrize("resident", [True, False], ids=["memory", "disk"])
@pytest.mark.parametrize("kind", tfds_sets.ALL, ids=[kind.name for kind in tfds_sets.ALL])
def test_each_kind_is_right_or_refused_in_one_line(kind, resident, folder):
    if isinstance(kind.expected, str):
        with pytest.raises(BadInput, match=kind.expected) as refusal:
            everything(load(kind.name, folder, resident)["train"])
        assert f"config.data.name: {kind.name!r}" in str(refusal.value)
        return
    source = load(kind.name, folder, resident)["train"]
    batch = everything(source)
    np.testing.assert_array_equal(batch["image"], kind.expected)
    assert batch["label"].tolist() == source.labels().tolist() == kind.labels
    assert source.facts.multi_label == (kind.name == "several")
    assert source.facts.classes == kind.classes
    assert {key: (value.shape[1:], value.dtype) for key, value in batch.items()} == {
        key: (value.shape, value.dtype) for key, value in source.spec.items()
    }


def test_floats_that_tfds_packed_into_png_are_unpacked():
    """TFDS writes such sets with TensorFlow only."""
    unit = U8[0] / np.float32(255)
    data = tfds_sets.encoded(Image.fromarray(unit.view(np.uint8)))
    np.testing.assert_array_equal(pixels.picture(data, 1, np.dtype(np.float32)), unit)


def test_a_reader_can_be_sent_to_another_process(folder):
    read = pickle.loads(pickle.dumps(load("f32_unit", folder, False)["train"].read))
    np.testing.assert_array_equal(read(np.array([5, 2]))["image"], U8[[5, 2]])


def test_mnist_divided_by_255_is_the_same_set(folder):
    """The same arrays, so the same run, bit for bit."""
    prints = {load(name, folder, True)["train"].fingerprint for name in ("u8", "f32_unit", "i64")}
    assert len(prints) == 1


DEEP = U8.astype(np.uint16)


@pytest.mark.parametrize("resident", [True, False], ids=["memory", "disk"])
@pytest.mark.parametrize(
    ("train", "test", "dark", "brightest"),
    [
        (U8 // 128, U8, "train", 1),
        (DEEP * 257, DEEP, "test", 1),
        (U8 // 16, U8 // 14, "train", 15),
    ],
    ids=["train of 0 and 1", "test of 8 bits in 16", "test is bright enough"],
)
def test_a_split_that_is_nearly_black_is_told(
    train, test, dark, brightest, resident, tmp_path, caplog
):
    splits = {"train": "train", "test": "test", "again": dark}
    load("parts", two_parts(tmp_path, train, test), resident, splits=splits)
    (said,) = [text for text in caplog.messages if "black" in text]
    assert f"{dark!r}: its pixels" in said
    assert f"never exceed {brightest} of 255: all is nearly black" in said


@pytest.mark.parametrize("resident", [True, False], ids=["memory", "disk"])
def test_classes_that_nothing_teaches_are_told(resident, tmp_path, caplog):
    tfds_sets.prepare(tmp_path, tfds_sets.labels("one", tfds_sets.F.Scalar(np.int64), [1, 3] * 3))
    load("one", tmp_path, resident)
    assert "'one': 2 of 4 classes have no example in 'train', '0' first" in caplog.messages[-1]


@pytest.mark.parametrize("resident", [True, False], ids=["memory", "disk"])
def test_classes_spelled_alike_are_told(resident, tmp_path, caplog):
    names = tfds_sets.F.ClassLabel(names=["Cat", "dog", "cat"])
    tfds_sets.prepare(tmp_path, tfds_sets.labels("spelled", names, LABELS))
    load("spelled", tmp_path, resident)
    (said,) = caplog.messages
    assert said.endswith("classes of their own: 'Cat' and 'cat'")


def test_of_a_set_that_was_made_of_pictures_its_listing_tells(tmp_path, caplog):
    """Not once more, by the name of the folder that was made."""
    for i, name in enumerate(("Cat", "cat", "dog") * 2):
        path = tmp_path / "pets" / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLOURS[i]).save(path)
    splits = {"train": "train"}
    datasets.load_sources(splits, name=f"images:{tmp_path}/pets", folder=str(tmp_path / "made"))
    (made,) = (tmp_path / "made").glob("images_*")
    assert MADE.fullmatch(made.name)
    assert "images_" not in caplog.text


def test_a_set_of_a_known_name_and_other_channels_has_no_known_mean(tmp_path):
    two_parts(tmp_path, U8, U8[:1], name="cifar10")
    for resident in (True, False):
        assert load("cifar10", tmp_path, resident)["train"].facts.mean == (0.5,)


# ----------------------------------------------------------------------------- what the set decides


def two_parts(tmp_path, train: np.ndarray, test: np.ndarray, name: str = "parts", first="train"):
    """A set with the pixels of `train` and `test`, in splits of these names."""
    feature = tfds_sets.F.Tensor(shape=train.shape[1:], dtype=train.dtype)
    rows = {first: [(x, i % 3) for i, x in enumerate(train)], "test": [(x, 0) for x in test]}
    tfds_sets.prepare(tmp_path, tfds_sets.Kind(name, feature, tfds_sets.CLASSES, rows, ""))
    return str(tmp_path)


RESIDENT = pytest.mark.parametrize("resident", [True, False], ids=["memory", "disk"])


@RESIDENT
def test_a_split_is_scaled_as_the_training_split_is(resident, tmp_path):
    """Pixels of 0 and 1 alone would be white if their own split decided."""
    where = two_parts(tmp_path, U8.astype(np.float32), np.ones((2, 4, 5, 1), np.float32))
    for splits in ({"test": "test"}, {"train": "train", "test": "test"}):
        assert (
            everything(load("parts", where, resident, splits=splits)["test"])["image"] == 1
        ).all()


@RESIDENT
def test_the_largest_split_decides_where_none_is_called_train(resident, tmp_path):
    where = two_parts(tmp_path, U8.astype(np.float32), np.ones((2, 4, 5, 1), "f4"), first="full")
    sources = load("parts", where, resident, splits={"train": "full", "test": "test"}, train="full")
    np.testing.assert_array_equal(everything(sources["train"])["image"], U8)
    assert (everything(sources["test"])["image"] == 1).all()


@RESIDENT
@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        (U8 / np.float32(255), U8.astype(np.float32), "from 0 to 255, and .* floats from 0 to 1"),
        (U8.astype(np.float32), U8 / np.float32(255), "from 0 to 1, and .* whole numbers from 0 "),
        (U8.astype(np.int64), U8.astype(np.int64) - 1, "from -1 to 254, and .* whole numbers"),
    ],
)
def test_a_split_of_another_range_is_refused_with_its_row(train, test, says, resident, tmp_path):
    where = two_parts(tmp_path, train, test)
    load("parts", where, resident)
    with pytest.raises(BadInput, match=rf"row 0 of 'test': its pixels .*{says}"):
        everything(load("parts", where, resident, splits={"test": "test"})["test"])


def test_a_row_beyond_the_sample_is_refused_when_it_is_read(tmp_path):
    train = np.random.default_rng(0).random((600, 2, 2, 1), np.float32)
    train[301] = 7
    where = two_parts(tmp_path, train, train[:1])
    source = load("parts", where, False)["train"]
    source.read(np.arange(300))
    with pytest.raises(BadInput, match=r"row 301 of 'train': its pixels .* from 7 to 7"):
        source.read(np.array([5, 301]))
    with pytest.raises(BadInput, match=r"its pixels are float32, from .* to 7, which is neither"):
        load("parts", where, True)


def test_a_cache_follows_the_split_that_decides(tmp_path, caplog):
    """Of the same test files, whose scale another training split decides."""
    ones = np.ones((2, 4, 5, 1), np.float32)
    read = lambda: everything(load("parts", tmp_path, True, splits={"test": "test"})["test"])
    two_parts(tmp_path, U8.astype(np.float32), ones)
    assert (read()["image"] == 1).all()
    cache = tmp_path / "parts" / "1.0.0" / "decoded"
    cache.rename(tmp_path / "kept")
    shutil.rmtree(tmp_path / "parts")
    two_parts(tmp_path, U8 / np.float32(255), ones)
    (tmp_path / "kept").rename(cache)
    assert (read()["image"] == 255).all()
    assert "not what the prepared files decode to" in caplog.text


@RESIDENT
@pytest.mark.parametrize(
    ("feature", "train", "test", "says"),
    [
        (tfds_sets.CLASSES, LABELS, [-1] * 6, r"6 of 6 labels are -1, which means unlabelled"),
        (
            tfds_sets.F.Scalar(np.int64),
            LABELS,
            [0, 3],
            r"1 of 2 labels are none of 3 .* 3 in row 1",
        ),
        (
            tfds_sets.F.Text(),
            ["a", "b"] * 3,
            ["b", "c"],
            r"1 of 2 labels are none of 2 classes, such as 'c' in row 1",
        ),
    ],
)
def test_labels_of_another_split_are_checked_at_the_start(
    feature, train, test, says, resident, tmp_path
):
    tfds_sets.prepare(tmp_path, tfds_sets.labels("set", feature, train, test=test))
    assert load("set", tmp_path, resident)["train"].size == 6
    with pytest.raises(BadInput, match=rf"'test': {says}.*; use another split"):
        load("set", tmp_path, resident, splits={"train": "train", "test": "test"})


def test_grey_pictures_of_varying_size_become_squares(tmp_path):
    kind = tfds_sets.F.Image(shape=(None, None, 1))
    images = [np.random.default_rng(i).integers(0, 256, (9, 8 + i), np.uint8) for i in range(3)]
    made = tfds_sets.pictures("grey", kind, [Image.fromarray(x) for x in images], "")
    tfds_sets.prepare(tmp_path, made)
    with pytest.raises(BadInput, match=r"varying size; set config\.data\.image_size"):
        load("grey", tmp_path, None)
    for row, image in zip(
        everything(load("grey", tmp_path, None, image_size=6)["train"])["image"],
        images,
        strict=True,
    ):
        colour = photographs.shorter_side(np.repeat(image[..., None], 3, -1), 6)
        np.testing.assert_array_equal(row, colour[..., :1])


def test_the_features_that_supervised_keys_name_are_told_once(folder, caplog):
    load("img", folder, True)
    (record,) = [r for r in caplog.records if "supervised_keys" in r.message]
    assert "images of 'img', labels of 'labels'" in record.message
    caplog.clear()
    load("u8", folder, True)
    assert "supervised_keys" not in caplog.text


# --------------------------------------------------------------------------------------- duplicates


def test_duplicates_are_the_rows_whose_pixels_are_in_training():
    for shape in ((3, 3, 1), (8, 8, 3)):  # with bytes beside the 64-bit words, and without
        images = np.random.default_rng(0).integers(0, 256, (300, *shape), np.uint8)
        other = images[::-1][:50].copy()
        other[np.arange(50) % 7 > 0] ^= 1
        assert sets.duplicates(images, other).tolist() == list(range(0, 50, 7))
        assert sets.duplicates(images[:200], other).tolist() == []
    assert sets.duplicates(images, images[:, :4]).tolist() == []
    assert sets.duplicates(images[:0], images).tolist() == []
    alike = np.zeros((2, 4, 4, 1), np.uint8)  # their hashes agree
    alike[0, 1, 3], alike[0, 3, 3], alike[1, 0, 0] = 128, 128, 1
    assert sets.duplicates(alike[:1], np.zeros((1, 4, 4, 1), np.uint8)).tolist() == []


def test_images_of_another_split_that_are_trained_on_are_counted(tmp_path, caplog):
    test = COLOURS.copy()
    test[:2] ^= 1
    where = two_parts(tmp_path, COLOURS, test)
    told = lambda: [r.message for r in caplog.records if "trained on" in r.message]
    load("parts", where, True, splits={"train": "train", "test": "test"})
    assert told() == ["4 of 6 images of 'test' are also in 'train', which is trained on"]
    caplog.clear()
    load("parts", where, True, splits={"train": "train[:4]", "v": "train"}, train="train[:4]")
    load("parts", where, True, splits={"test": "test"})
    datasets.load_sources({"train": "train", "test": "test"}, name="digits")
    assert told() == []
