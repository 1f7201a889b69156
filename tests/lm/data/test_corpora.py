"""Corpora: what is in them, in which order, and which documents are held out."""

import collections
import json
import random

import corpus
import numpy as np
import pytest

from common.errors import BadInput
from lm.data import corpora


def test_the_addresses_are_all_there_and_clean():
    found = list(corpora.documents("sotu"))
    assert len(found) == 233 == len({d.name for d in found})
    assert found[0].name == "1790 George Washington"
    assert found[-1].name == "2021 Joseph R Biden"
    assert sum(len(d.text.split()) for d in found) == pytest.approx(1.79e6, rel=0.01)
    assert not any("\x02" in d.text or d.text != d.text.strip() for d in found)
    held = collections.Counter(corpora.part(d.name) for d in found)
    assert held["valid"] >= 8
    assert held["test"] >= 8


def test_a_twentieth_is_held_out_and_nothing_moves():
    """Also a golden: documents that moved would be trained on and tested on."""
    counts = collections.Counter(corpora.part(f"document {i}") for i in range(20000))
    for part in ("valid", "test"):
        assert counts[part] == pytest.approx(1000, abs=4 * np.sqrt(1000))
    names = ["1790 George Washington", "1804 Thomas Jefferson", "1860 James Buchanan", "a", ""]
    assert list(map(corpora.part, names)) == ["train", "valid", "test", "train", "train"]


def test_a_folder_is_its_texts_in_order(tmp_path):
    name = corpus.write(tmp_path / "mine", 20)
    (tmp_path / "mine" / "notes.md").write_text("not a text")
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


def test_what_is_not_there_says_so(tmp_path):
    for name, said in {
        "sotus": "unknown corpus 'sotus'; did you mean 'sotu'",
        "folder:": "unknown corpus",
        "sotu:1": "unknown corpus",
        f"folder:{tmp_path}/none": "no such folder",
        f"folder:{tmp_path}": r"holds no \.txt",
        "prose": r"run: python scripts/prepare\.py prose --folder",
        "tfds:lm1b": "run: tfds build lm1b --file_format=array_record",
    }.items():
        with pytest.raises(BadInput, match=rf"^config\.data\.name: .*{said}"):
            list(corpora.documents(name, str(tmp_path)))


@pytest.mark.parametrize(
    "line", ["{", '{"txt": "a"}', '{"text": 3}', '"text"', '{"text": "a", "name": 1}']
)
def test_lines_that_are_no_documents_are_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f"{json.dumps({'text': 'fine'})}\n{line}\n")
    with pytest.raises(BadInput, match=r"a\.jsonl, line 2, is not JSON like"):
        list(corpora.documents(f"folder:{tmp_path}"))


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BadInput, match=r"a\.txt cannot be read"):
        list(corpora.documents(f"folder:{tmp_path}"))


def test_a_prepared_set_is_its_texts(tmp_path):
    texts = {"train": [corpus.text(random.Random(i), 2) for i in range(9)], "test": ["Last – one."]}
    rows = {split: [{"text": text} for text in some] for split, some in texts.items()}
    corpus.prepare(tmp_path, "tales", {"text": "text"}, rows)
    found = list(corpora.documents("tfds:tales", str(tmp_path)))
    assert [d.text for d in found if d.source == "test"] == texts["test"]
    assert sorted(d.text for d in found if d.source == "train") == sorted(texts["train"])
    assert len({d.name for d in found}) == 10
    assert corpora.stamp("tfds:tales", str(tmp_path)) == corpora.stamp("tfds:tales", str(tmp_path))
    corpus.prepare(tmp_path, "numbers", {"label": "label"}, {"train": [{"label": 1}]})
    with pytest.raises(BadInput, match="has no 'text', but label"):
        list(corpora.documents("tfds:numbers", str(tmp_path)))
