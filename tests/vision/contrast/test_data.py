"""Pictures with texts: folders and tables, parts, rows of texts, and what is refused."""

import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from common.errors import BadInput
from lm.data import tokenizer
from vision.contrast import captions, data

SETTINGS = {"image_size": 8, "length": 12, "vocab_size": 120}


def picture(path, colour=(255, 0, 0), size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def trained(folder):
    """The file of a tokenizer."""
    path = folder / "tokenizer.json"
    tokenizer.train("wordpiece", 100, [f"number {i}" for i in range(5)]).save(str(path))
    return path


def table(folder, rows, name="set.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"captions:{path}"


def test_folders_of_pictures_with_texts_beside_them(tmp_path, caplog):
    for part, count in (("train", 3), ("val", 1)):
        for i in range(count):
            picture(tmp_path / part / f"{i}.png", (i, 0, 0))
            (tmp_path / part / f"{i}.txt").write_text(f"\nnumber {i} of {part}\nde=…\n")
    picture(tmp_path / "train/alone.png")
    sources = data.load_sources(
        {"train": "train", "v": "valid"}, name=f"captions:{tmp_path}", **SETTINGS
    )
    assert {name: source.size for name, source in sources.items()} == {"train": 3, "v": 1}
    assert "1 pictures, first train/alone.png" in caplog.text
    batch, facts = sources["train"].read(np.arange(3)), sources["train"].facts
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2]
    ids = batch["tokens"][1][batch["segments"][1] > 0]
    assert facts.text.tokenizer.decode(ids.tolist()) == "number 1 of train"
    assert (ids[0], ids[-1]) == (facts.text.begin[0], facts.text.end[-1])


def test_tables_are_read_alike_from_memory_and_from_files(tmp_path):
    rows = []
    for i in range(6):
        picture(tmp_path / f"{i}.png", (0, i, 0))
        row = {"path": f"{i}.png", "text": f"a picture {i}" * (2 + i), "label": "ab"[i % 2]}
        rows.append(row | {"split": "train" if i < 4 else "odd"})
    name = table(tmp_path, rows)
    read = lambda **way: data.load_sources(
        {"train": "train", "o": "odd"}, name=name, **SETTINGS, **way
    )
    memory, files = read(resident=True), read(resident=False)
    for key, source in memory.items():
        at = np.arange(source.size)
        for column, array in source.read(at).items():
            assert np.array_equal(array, files[key].read(at)[column])
            assert array.dtype == files[key].spec[column].dtype
    assert memory["o"].read(np.arange(2))["label"].tolist() == [0, 1]
    assert files["train"].facts.image.classes == ("a", "b")
    assert memory["train"].read(np.arange(4))["segments"].sum(axis=1).max() == SETTINGS["length"]


def test_held_out_texts_are_not_in_the_tokenizer(tmp_path):
    picture(tmp_path / "a.png")
    words = ["apple"] * 9 + ["zebra"]
    rows = [{"path": "a.png", "text": text, "split": "train"} for text in words]
    name = table(tmp_path, rows)
    made = lambda train: data.load_sources({"train": train}, train=train, name=name, **SETTINGS)
    letters = lambda train: made(train)["train"].facts.text.tokenizer.get_vocab().keys() & {*"zl"}
    assert letters("train") == {"z"} | letters("train[:90%]")
    assert "z" not in letters("train[:90%]")


def test_a_wide_picture_is_cropped_or_squashed(tmp_path):
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, :4], pixels[:, 4:8] = (255, 0, 0), (0, 255, 0)  # a third red, a third green
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    name = table(tmp_path, [{"path": "wide.png", "text": "wide", "split": "train"}])
    for resident in (True, False):
        for resize, (red, green) in {"centre": (0, 4), "squash": (2, 2)}.items():
            options = SETTINGS | {"image_size": 6, "resize": resize, "resident": resident}
            source = data.load_sources({"train": "train"}, name=name, **options)["train"]
            row = source.read(np.arange(1))["image"][0, 0]
            assert (row[:, 0] > 220).sum() == red
            assert (row[:, 1] > 220).sum() >= green


def test_another_class_makes_another_set(tmp_path):
    picture(tmp_path / "a.png")
    rows = [{"path": "a.png", "text": str(i), "split": "train", "label": "ab"[i]} for i in (0, 1)]
    stamp = lambda rows: captions.listing(table(tmp_path, rows), "").stamp
    other = [rows[0] | {"label": "b"}, rows[1] | {"label": "a"}]
    assert stamp(rows) == stamp(rows) != stamp(other)


def test_a_text_and_a_picture_are_on_one_side(tmp_path):
    """20 texts of three rows each, and 30 pictures of two, in ten groups that share neither."""
    for i in range(30):
        picture(tmp_path / f"{i}.png", (i, 0, 0))
    texts = ["abcde"[i % 5] + "abcd"[i % 4] for i in range(60)]
    paths = [f"{'./' * (i > 29)}{i % 30}.png" for i in range(60)]
    rows = [{"path": path, "text": text} for path, text in zip(paths, texts, strict=True)]
    name = table(tmp_path, rows)
    splits = {"train": "train", "valid": "valid", "test": "test"}
    sources = data.load_sources(splits, name=name, **SETTINGS)
    assert sum(source.size for source in sources.values()) == 60
    batches = [source.read(np.arange(source.size)) for source in sources.values()]
    for column, count in (("tokens", 20), ("image", 30)):
        sides = [{row.tobytes() for row in batch[column]} for batch in batches]
        assert sum(map(len, sides)) == count


def test_a_picture_in_two_parts_of_a_users_own_is_counted(tmp_path, caplog):
    for i in range(3):
        picture(tmp_path / f"{i}.png")
    rows = [{"path": f"{i // 2}.png", "text": f"text {i}", "split": "abb"[i]} for i in range(3)]
    own = SETTINGS | {"tokenizer": str(trained(tmp_path)), "name": table(tmp_path, rows)}
    data.load_sources({"train": "a", "v": "b"}, train="a", **own)
    assert "1 of the 2 examples of config.evals.v.split that are not" in caplog.text
    assert "have the picture of one that is, first 0.png" in caplog.text.replace("'", "")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"path": "a.png"}], "line 1: there is no column 'text'"),
        ([{"path": "a.png", "text": " "}], "line 1: 'text' is empty"),
        ([{"path": "b.png", "text": "b"}], "b.png"),
        ([{"path": "broken.png", "text": "b"}] * 3, "broken.png: no picture"),
        (
            [{"path": "a.png", "text": "a", "split": "train"}, {"path": "a.png", "text": "b"}],
            "line 2",
        ),
    ],
)
def test_what_is_refused(tmp_path, rows, said):
    picture(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    full = [row | {"split": "train"} if row["path"] == "broken.png" else row for row in rows]
    name = table(tmp_path, full)
    with pytest.raises(BadInput, match="config.data") as error:
        data.load_sources({"train": "train"}, name=name, **SETTINGS)
    assert said in str(error.value)


def test_a_prepared_tfds_set(tmp_path):
    texts = [f"number {i}" for i in range(5)]
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)

    class Pairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Pictures with several texts each."""

        name = "pairs"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
            captions = tfds.features.Sequence(tfds.features.Text())
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"image": image, "captions": captions}),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, text in enumerate(texts):
                encoded = io.BytesIO()
                Image.fromarray(pixels[i]).save(encoded, "PNG")
                encoded.seek(0)
                yield i, {"image": encoded, "captions": [text, "another"]}

    Pairs(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    own = SETTINGS | {"tokenizer": str(trained(tmp_path))}
    read = lambda **more: data.load_sources(
        {"train": "train[1:]"},
        train="train[1:]",
        name="tfds:pairs",
        folder=str(tmp_path),
        **own | more,
    )
    source = read()["train"]
    encoder = source.facts.text.tokenizer
    batch = source.read(np.array([2, 0], np.uint32))
    order = [
        texts.index(encoder.decode(row[there > 0].tolist()))
        for row, there in zip(batch["tokens"], batch["segments"], strict=True)
    ]
    assert source.size == 4
    assert len(set(order)) == 2
    assert np.array_equal(batch["image"], pixels[order])
    assert {k: (v.shape[1:], v.dtype) for k, v in batch.items()} == {
        k: (s.shape, s.dtype) for k, s in source.spec.items()
    }
    with pytest.raises(BadInput, match="config.data.resident: tfds:pairs is read on demand"):
        read(resident=True)
    with pytest.raises(BadInput, match="none is trained on sets that are read on demand"):
        read(tokenizer="wordpiece")
