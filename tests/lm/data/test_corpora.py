"""Corpora: what is in them, in which order, and which documents are held out."""

import collections
import json
import os
import random

import corpus
import numpy as np
import pytest

from common.data import fetch
from common.errors import BadInput
from lm.data import corpora


def test_the_addresses_are_all_there_and_clean():
    found = list(corpora.documents("sotu"))
    assert len(found) == 233 == len({d.name for d in found})
    assert found[0].name == "1790 George Washington"
    assert found[-1].name == "2021 Joseph R Biden"
    assert sum(len(d.text.split()) for d in found) == pytest.approx(1.79e6, rel=0.01)
    assert not any("\x02" in d.text or d.text != d.text.strip() for d in found)
    assert all(d.part == corpora.part(d.name) for d in found)
    held = collections.Counter(d.part for d in found)
    assert held["valid"] >= 8
    assert held["test"] >= 8


def test_no_address_is_on_two_sides():
    sides = collections.defaultdict(set)
    for document in corpora.documents("sotu"):
        sides[document.text].add(document.part)
    assert {len(parts) for parts in sides.values()} == {1}


def test_a_twentieth_is_held_out_and_nothing_moves():
    """Also a golden: documents that moved would be trained on and tested on."""
    counts = collections.Counter(corpora.part(f"document {i}") for i in range(20000))
    for part in ("valid", "test"):
        assert counts[part] == pytest.approx(1000, abs=4 * np.sqrt(1000))
    names = ["1790 George Washington", "1804 Thomas Jefferson", "1860 James Buchanan", "a", ""]
    assert list(map(corpora.part, names)) == ["train", "valid", "test", "train", "train"]


def test_a_folder_is_its_texts_in_order(tmp_path):
    name = corpus.write(tmp_path / "mine", 20)
    (tmp_path / "mine" / "notes.rst").write_text("not a text")
    (tmp_path / "mine" / ".hidden.txt").write_text("not a text")
    (tmp_path / "mine" / "alone.txt").write_text("\ufeffAlone.", encoding="utf-8")
    with (tmp_path / "mine" / "speeches.jsonl").open("a") as file:
        file.write('\n{"text": "Unnamed."}\n')
    found = list(corpora.documents(name))
    sources = [d.source for d in found]
    assert collections.Counter(sources) == {"letters": 10, "mine": 1, "speeches": 11}
    assert sources == sorted(sources)
    assert found[0].name == "letters/000.txt"
    assert found[10] == corpora.Document("alone.txt", "mine", "Alone.")
    assert [d.name for d in found[-2:]] == ["speech 9", "speeches.jsonl:12"]
    assert list(corpora.documents(name)) == found
    assert corpora.size(name) > sum(len(d.text) for d in found)


def test_a_change_is_noticed_without_reading(tmp_path):
    name = corpus.write(tmp_path / "mine", 10)
    before = corpora.stamp(name)
    assert corpora.stamp(name) == before
    path = tmp_path / "mine" / "letters" / "000.txt"
    path.write_text(path.read_text().swapcase())
    changed = corpora.stamp(name)
    assert {k for k in before if before[k] != changed[k]} == {"letters/000.txt"}
    times = path.stat().st_mtime_ns
    path.write_text(path.read_text().swapcase())
    os.utime(path, ns=(times, times))
    assert corpora.stamp(name) != changed, "of the same size and time of change"


def test_what_is_not_there_says_so(tmp_path):
    for name, said in {
        "sotus": "unknown corpus 'sotus'; did you mean 'sotu'",
        "folder:": "unknown corpus",
        "sotu:1": "unknown corpus",
        f"folder:{tmp_path}/none": "no such folder",
        f"folder:{tmp_path}": r"holds no text \(\.txt",
        "prose": r"run: python scripts/prepare\.py prose --folder",
        "tfds:lm1b": "run: tfds build lm1b --file_format=array_record",
    }.items():
        with pytest.raises(BadInput, match=rf"^config\.data\.name: .*{said}"):
            list(corpora.documents(name, str(tmp_path)))


def test_a_data_folder_that_is_none_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match=r"^config\.data\.folder: .*pipe is a FIFO"):
        fetch.data_dir(str(tmp_path / "pipe"))


# -------------------------------------------------------------------------------------- small ones


@pytest.mark.parametrize("count", [3, 4, 10, 38, 100])
def test_a_small_corpus_has_no_empty_part(tmp_path, count):
    names = [f"play{i}.txt" for i in range(count)]
    for i, name in enumerate(names):
        (tmp_path / name).write_text(f"Act {i}.")
    notes = collections.Counter()
    found = corpus.read(tmp_path, notes)
    assert sorted(d.name for d in found) == sorted(names)
    by_hash = collections.Counter(map(corpora.part, names))
    moved = [d for d in found if d.part != corpora.part(d.name)]
    assert min(corpus.sizes(found)[part] for part in corpora.PARTS) > 0
    assert len(moved) == notes.total() == 3 - len(by_hash)
    assert count != 38 or {d.part for d in moved} == {"valid"}, "no play is 'valid' by its hash"
    assert count != 3 or set(corpus.sizes(found).values()) == {1}


def test_blank_texts_fill_no_part_and_names_stay_together(tmp_path):
    rows = [{"name": f"play {i // 2}", "text": "Act."} for i in range(6)]
    rows += [{"name": f"blank {i}", "text": " \n"} for i in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = collections.defaultdict(set)
    for document in corpus.read(tmp_path):
        if document.text.strip():
            parts[document.name].add(document.part)
    assert sorted(parts.values(), key=min) == [{"test"}, {"train"}, {"valid"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows[:4])))
    corpus.refused(
        tmp_path, r"has 4 documents, but no more than 2 names: documents of one name are held"
    )


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("unit", ["paragraphs", "lines"])
def test_one_text_is_divided_at_its_paragraphs(tmp_path, unit, newline):
    gap = newline * (2 if unit == "paragraphs" else 1)
    rng = random.Random(0)
    text = gap.join(corpus.text(rng, 3) for _ in range(100))
    if unit == "paragraphs":
        text = text.replace(". ", f".{newline}")
    (tmp_path / "book.txt").write_bytes(text.encode())
    notes = collections.Counter()
    found = corpus.read(tmp_path, notes)
    assert [d.name for d in found] == ["book.txt#train", "book.txt#valid", "book.txt#test"]
    assert [d.part for d in found] == list(corpora.PARTS)
    assert "".join(d.text for d in found) == text
    for document in found[:2]:
        assert document.text.endswith(gap)
    for document, share in zip(found, (0.9, 0.05, 0.05), strict=True):
        assert len(document.text) / len(text) == pytest.approx(share, abs=0.02)
    (note,) = notes
    lengths = ", ".join(f"{len(d.text):,} {d.part}" for d in found)
    assert note == f"document divided at its {unit} into characters of {lengths}"


def test_two_texts_are_divided_and_what_cannot_be_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("1\n\n2\n\n3")
    (tmp_path / "b.txt").write_text("one line")
    assert [(d.name, d.part, d.text.strip()) for d in corpus.read(tmp_path)] == [
        ("a.txt#train", "train", "1"),
        ("a.txt#valid", "valid", "2"),
        ("a.txt#test", "test", "3"),
        ("b.txt", "train", "one line"),
    ]
    (tmp_path / "a.txt").write_text("\n\none\n \ntwo\n\n")
    said = r"has two documents \(13 characters and 8 characters\) of fewer than three lines: .*add"
    corpus.refused(tmp_path, said)
    (tmp_path / "b.txt").unlink()
    corpus.refused(tmp_path, r"has one document \(13 characters\)")


def test_paragraphs_that_are_too_coarse_give_way_to_lines():
    lines = [f"line {i}\n" for i in range(100)]
    text = "Title\n\n" + "".join(lines) + "\nThe end.\n"
    unit, pieces = corpora.divide(text)
    assert unit == "lines"
    assert len(pieces["train"]) / len(text) == pytest.approx(0.9, abs=0.01)
    assert "".join(pieces.values()) == text


def test_a_prepared_set_is_its_texts(tmp_path):
    texts = {"train": [corpus.text(random.Random(i), 2) for i in range(9)], "test": ["Last – one."]}
    rows = {split: [{"text": text} for text in some] for split, some in texts.items()}
    corpus.prepare(tmp_path, "tales", {"text": "text"}, rows)
    found = list(corpora.documents("tfds:tales", str(tmp_path)))
    assert [d.text for d in found if d.source == "test"] == texts["test"]
    assert sorted(d.text for d in found if d.source == "train") == sorted(texts["train"])
    assert min(corpus.sizes(found)[part] for part in corpora.PARTS) > 0
    assert len({d.name for d in found}) == 10
    assert corpora.stamp("tfds:tales", str(tmp_path)) == corpora.stamp("tfds:tales", str(tmp_path))
    corpus.prepare(tmp_path, "numbers", {"label": "label"}, {"train": [{"label": 1}]})
    with pytest.raises(BadInput, match="has no 'text', but label"):
        list(corpora.documents("tfds:numbers", str(tmp_path)))
