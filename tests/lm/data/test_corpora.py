"""Corpora: what is in them, in which order, and which documents are held out."""

import collections
import gzip
import json
import lzma
import os
import random

import corpus
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from common.data import fetch
from common.errors import BadInput
from lm.data import corpora


def read(folder, notes=None) -> list[corpora.Document]:
    return list(corpora.documents(f"folder:{folder}", notes=notes))


def filled(folder, count=60):
    """A folder with enough documents in filler.jsonl that none is moved."""
    lines = (json.dumps({"name": f"filler {i}", "text": f"word {i}"}) + "\n" for i in range(count))
    (folder / "filler.jsonl").write_text("".join(lines))
    return folder


def own(folder) -> list[tuple[str, str]]:
    return [(d.name, d.text) for d in read(folder) if d.source != "filler"]


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


# --------------------------------------------------------------------------------- kinds of files


def test_each_kind_of_file_holds_the_same_documents(tmp_path):
    """Whatever the case of its suffix, and compressed."""
    filled(tmp_path)
    one, two = "One – two.", "Three\nfour."
    lines = f'{{"text": "{one}", "name": "a"}}\n{{"text": "Three\\nfour.", "name": null}}\n'
    csv = f'name,other,text\na,1,{one}\n,2,"{two}"\n'
    files = {"a.JSONL": lines, "b.csv": csv, "c.Tsv": csv.replace(",", "\t"), "d.ndjson": lines}
    for name, contents in files.items():
        (tmp_path / name).write_text(contents, encoding="utf-8")
        packed = gzip.compress(contents.encode())
        (tmp_path / f"x{name}.gz").write_bytes(packed)
    table = pa.table({"text": [one, two], "name": ["a", None]})
    pyarrow.parquet.write_table(table, tmp_path / "e.PARQUET")
    second = {"a": 2, "b": 3, "c": 3, "d": 2, "e": 2}
    files["e.PARQUET"] = ""
    expected = [("a", one), *((f"{name}:{second[name[0]]}", two) for name in files)]
    expected += [(f"x{name}.gz:{second[name[0]]}", two) for name in files if name[0] != "e"]
    assert set(own(tmp_path)) == set(expected)
    assert len(own(tmp_path)) == 18
    for name in "f.txt", "g.MD", "h.Txt":
        (tmp_path / name).write_bytes(two.encode())
    (tmp_path / "i.txt.XZ").write_bytes(lzma.compress(two.encode()))
    assert set(own(tmp_path)) - set(expected) == {
        (name, two) for name in ("f.txt", "g.MD", "h.Txt", "i.txt.XZ")
    }


def test_what_is_mended_left_out_or_passed_over_is_counted(tmp_path):
    filled(tmp_path)
    (tmp_path / "a.txt").write_text("\ufeffa", encoding="utf-8")
    (tmp_path / "b.txt").write_text("bé", encoding="utf-16")
    (tmp_path / "c.jsonl").write_text(
        '{"text": "c \\ud83d"}\n\n{"text": ""}\n{"text": "", "name": "\\udc00"}\n'
    )
    (tmp_path / "d.csv").write_text("title;year\nx;1\ny;2\n")
    for name in "e.jsonl", "f.md":
        (tmp_path / name).write_text("")
    (tmp_path / "g.csv").write_text("name,text\n")
    (tmp_path / "h.jsonl").write_text("\n\n")
    (tmp_path / "i.jsonl.gz").write_bytes(gzip.compress(b""))
    pyarrow.parquet.write_table(pa.table({"text": pa.array([], "string")}), tmp_path / "j.parquet")
    for name in "k.html", "l.HTML", "m", "n.json", "o.json":
        (tmp_path / name).write_text('{"a": 1}\n' if name == "n.json" else "{\n")
    (tmp_path / "p.json").write_text('{"text": "p"}\n')
    notes = collections.Counter()
    found = [(d.name, d.text) for d in read(tmp_path, notes) if d.source != "filler"]
    assert sorted(found) == [
        ("a.txt", "a"), ("b.txt", "bé"), ("c.jsonl:1", "c \ufffd"), ("p.json:1", "p"),
    ]  # fmt: skip
    assert notes == {
        "byte order mark removed": 1,
        "UTF-16 decoded": 1,
        "lone surrogate replaced by U+FFFD": 2,
        "empty text left out": 3,
        "empty file left out": 1,
        "table without records left out": 4,
        "file .html passed over": 2,
        "file .json passed over": 2,
        "file without a suffix passed over": 1,
        f"table without a column 'text' passed over: {tmp_path}/d.csv: its columns are "
        "'title;year'; the columns of a .csv are separated by ',', but its header (the first line) "
        "has ';'": 1,
    }


def refused(tmp_path, says: str) -> None:
    with pytest.raises(BadInput, match=rf"^config\.data\.name: .*{says}") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("a.jsonl", b'{"text": "a"}\n{', r"a\.jsonl, line 2, is not JSON"),
        ("a.jsonl", b'\n{"txt": "a"}', r"a\.jsonl, line 2, has no 'text': its columns are 'txt'"),
        ("a.jsonl", b'{"text": 3}', r"a\.jsonl, line 1: 'text' is a whole number, not a string"),
        ("a.jsonl", b'{"text": null}', r"a\.jsonl, line 1: 'text' is null"),
        ("a.jsonl", b'"text"', r"a\.jsonl, line 1, is not a JSON object, but a string"),
        ("a.jsonl", b'{"text": "a", "name": 1}', r"line 1: 'name' is a whole number"),
        ("a.csv", b"text,b\na,b\nc\n", r"a\.csv, line 3, has 1 field"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}')[:-9], r"a\.jsonl\.gz .*cut off"),
        ("a.txt.gz", b"a text", r"a\.txt\.gz cannot be read: damaged"),
        ("a.txt", b"a\n\ncaf\xe9", r"a\.txt cannot be read: line 3 is not UTF-8"),
        ("a.txt", b"a\r\r\ncaf\xe9", r"a\.txt cannot be read: line 3 is not UTF-8"),
        ("a.text", b"a\rb\0", r"a\.text, line 2, has a NUL character"),
        ("a.markdown.xz", lzma.compress(b"a") + b"b", r"a\.markdown\.xz cannot be read: damaged"),
        ("a.csv", b"text\na\n\0\n", r"a\.csv, line 3, has a NUL character"),
        (
            "a.jsonl",
            b'\n{"text": "a", "text": "b"}',
            r"line 2, .*'text' stands twice, with \"a\" and",
        ),
        ("a.MD", b"version https://git-lfs.github.com/spec/v1\noid", r"a\.MD is a git-lfs pointer"),
        ("a.parquet", b"PAR1", r"a\.parquet cannot be read as"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(tmp_path, name, raw, says):
    (filled(tmp_path) / name).write_bytes(raw)
    refused(tmp_path, says)


@pytest.mark.parametrize("name", ["a.txt", "a.JSONL", "a.md.gz", "a.parquet", "a"])
def test_links_to_nowhere_are_named_and_other_things_passed_over(tmp_path, name):
    filled(tmp_path)
    os.mkfifo(tmp_path / "queue")
    (tmp_path / "gone.png").symlink_to("nowhere")
    assert own(tmp_path) == []
    (tmp_path / name).symlink_to("nowhere")
    refused(tmp_path, rf"{name} is a link to nowhere, which is not there")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(name)
    refused(tmp_path, "a symbolic link that leads back to itself")


def test_a_folder_without_texts_says_what_else_there_is(tmp_path):
    for name in "b.rst", "a.pdf", "c.parquet.gz":
        (tmp_path / name).write_text("a")
    refused(tmp_path, r"holds no text \(\.txt, .*\.parquet\); passed over: a\.pdf and 2 more")
    (tmp_path / "a.csv").write_text("Text\na\n")
    says = (
        r"has no document: .*table without a column 'text' passed over: .*rename 'Text' to 'text'"
    )
    refused(tmp_path, says)


def test_a_data_folder_that_is_none_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match=r"^config\.data\.folder: .*pipe is a FIFO"):
        fetch.data_dir(str(tmp_path / "pipe"))


# ------------------------------------------------------------------------------------ parts by name


def lines(*texts, **more) -> str:
    return "".join(json.dumps({"text": text} | more) + "\n" for text in texts)


THREE = {"train": "train", "valid": "valid", "test": "test"}
NAMED = {
    "ptb": {f"ptb.{part}.txt": part for part in THREE},
    "folders": {f"wiki/{part.upper()}/test-{i}.md": part for part in THREE for i in range(9)},
    "words": {"Training.txt": "train", "my_dev.txt": "valid", "a-testing 1.txt": "test"},
    "tables": {f"{part}-00000-of-1.jsonl": part for part in THREE},
    "beside": {"train.txt": "train", "val.txt": "valid", "test.txt": "test", "README.md": ""},
}


@pytest.mark.parametrize("case", NAMED)
def test_parts_that_names_tell_are_kept(tmp_path, case):
    for i, (path, part) in enumerate(NAMED[case].items()):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        body = f"{part} {i}"
        (tmp_path / path).write_text(lines(body, body) if case == "tables" else body)
    notes = collections.Counter()
    found = read(tmp_path, notes)
    assert {d.text.split()[0] == d.part for d in found} == {True}
    assert sizes(found).keys() == THREE.keys()
    said = {
        f"document in '{part}' by the names of files or 'split'": n
        for part, n in sizes(found).items()
    }
    left = {"file beside the parts left out: README.md": 1} if case == "beside" else {}
    assert notes == said | left


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_parts_that_a_column_tells_are_kept(tmp_path, kind):
    rows = [
        {"text": f"{part} {i}", " Split": f"{part.title()} "} for part in THREE for i in range(9)
    ]
    path = tmp_path / f"train{kind}"
    if kind == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif kind == ".csv":
        path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(tmp_path)
    assert len(found) == 27
    assert {d.text.split()[0] == d.part for d in found} == {True}


@pytest.mark.parametrize(
    "contents",
    [
        {"train.txt": "a\n\nb\n\nc\n", "test.txt": "x"},
        {"train.txt": "a\n\nb\n\nc\n", "valid.txt": "x", "test.txt": " \n"},
        {"train.jsonl": lines("a", "b", "c"), "test.jsonl": lines("x", "x")},
        {"train.jsonl": lines(*(f"a {i}" for i in range(99))), "valid.txt": "x"},
    ],
)
def test_a_part_that_is_not_there_is_taken_from_train(tmp_path, contents):
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    notes = collections.Counter()
    found = [d for d in read(tmp_path, notes) if d.text.strip()]
    assert min(sizes(found)[part] for part in THREE) > 0
    (given,) = {d.part for d in found if "x" in d.text}
    assert {d.name.split(".")[0] for d in found if d.part == given} == {given}
    assert {d.name.split(".")[0] for d in found if d.part != given} == {"train"}
    assert any("moved into" in note or "held out" in note or "divided" in note for note in notes)
    assert read(tmp_path) == read(tmp_path)


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (
            {"train.txt": "a", "test.txt": "b", "c.txt": "c"},
            "by test.txt, train.txt: c.txt tells n",
        ),
        ({"dev.txt": "a", "test.txt": "b", "my_test.txt": "c"}, "none is 'train'"),
        ({"attest.txt": "a", "trains.txt": "b", "train_test.txt": "c"}, ""),
        ({"a.jsonl": lines("a", "b", "c", split="east")}, "'split' of a.jsonl not followed"),
        (
            {"a.jsonl": lines("a", split="train") + lines("b", "c", split="no")},
            "'split' of a.jsonl",
        ),
        (
            {"a.jsonl": lines("a", "b", split="train") + lines("c")},
            "'split' of a.jsonl not followed",
        ),
    ],
)
def test_names_that_tell_not_all_parts_are_said_and_a_hash_decides(tmp_path, contents, says):
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    notes = collections.Counter()
    named = read(tmp_path, notes)
    assert (
        [note for note in notes if says in note] if says else not any("hash d" in n for n in notes)
    )
    items = ((d.name, corpora.part(d.name), corpora._rank(d.name)) for d in named)
    moved = corpora.parts.moves(items)
    assert all(d.part == moved.get(d.name, corpora.part(d.name)) for d in named)
    assert len(named) == 3


# -------------------------------------------------------------------------------------- small ones


def sizes(found) -> dict[str, int]:
    return collections.Counter(d.part for d in found)


@pytest.mark.parametrize("count", [3, 4, 10, 38, 100])
def test_a_small_corpus_has_no_empty_part(tmp_path, count):
    names = [f"play{i}.txt" for i in range(count)]
    for i, name in enumerate(names):
        (tmp_path / name).write_text(f"Act {i}.")
    notes = collections.Counter()
    found = read(tmp_path, notes)
    assert sorted(d.name for d in found) == sorted(names)
    by_hash = collections.Counter(map(corpora.part, names))
    moved = [d for d in found if d.part != corpora.part(d.name)]
    assert min(sizes(found)[part] for part in corpora.PARTS) > 0
    assert len(moved) == notes.total() == 3 - len(by_hash)
    assert count != 38 or {d.part for d in moved} == {"valid"}, "no play is 'valid' by its hash"
    assert count != 3 or set(sizes(found).values()) == {1}


def test_blank_texts_fill_no_part_and_names_stay_together(tmp_path):
    rows = [{"name": f"play {i // 2}", "text": "Act."} for i in range(6)]
    rows += [{"name": f"blank {i}", "text": " \n"} for i in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = collections.defaultdict(set)
    for document in read(tmp_path):
        if document.text.strip():
            parts[document.name].add(document.part)
    assert sorted(parts.values(), key=min) == [{"test"}, {"train"}, {"valid"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows[:4])))
    refused(tmp_path, r"has 4 documents, but no more than 2 names: documents of one name are held")


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
    found = read(tmp_path, notes)
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
    assert [(d.name, d.part, d.text.strip()) for d in read(tmp_path)] == [
        ("a.txt#train", "train", "1"),
        ("a.txt#valid", "valid", "2"),
        ("a.txt#test", "test", "3"),
        ("b.txt", "train", "one line"),
    ]
    (tmp_path / "a.txt").write_text("\n\none\n \ntwo\n\n")
    said = r"has two documents \(13 characters and 8 characters\) of fewer than three lines: .*add"
    refused(tmp_path, said)
    (tmp_path / "b.txt").unlink()
    refused(tmp_path, r"has one document \(13 characters\)")


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
    assert min(sizes(found)[part] for part in corpora.PARTS) > 0
    assert len({d.name for d in found}) == 10
    assert corpora.stamp("tfds:tales", str(tmp_path)) == corpora.stamp("tfds:tales", str(tmp_path))
    corpus.prepare(tmp_path, "numbers", {"label": "label"}, {"train": [{"label": 1}]})
    with pytest.raises(BadInput, match="has no 'text', but label"):
        list(corpora.documents("tfds:numbers", str(tmp_path)))
