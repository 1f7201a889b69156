"""Folders of texts: kinds of files, what is mended, passed over or refused, and parts by names."""

import collections
import gzip
import json
import lzma
import os

import corpus
import pyarrow as pa
import pyarrow.parquet
import pytest

from common.data import parts
from lm.data import corpora


def filled(folder, count=60):
    """A folder with enough documents in filler.jsonl that none is moved."""
    lines = (json.dumps({"name": f"filler {i}", "text": f"word {i}"}) + "\n" for i in range(count))
    (folder / "filler.jsonl").write_text("".join(lines))
    return folder


def own(folder) -> list[tuple[str, str]]:
    return [(d.name, d.text) for d in corpus.read(folder) if d.source != "filler"]


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
    found = [(d.name, d.text) for d in corpus.read(tmp_path, notes) if d.source != "filler"]
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
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}', mtime=0)[:-9], r"a\.jsonl\.gz .*cut off"),
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
    corpus.refused(tmp_path, says)


@pytest.mark.parametrize("name", ["a.txt", "a.JSONL", "a.md.gz", "a.parquet", "a"])
def test_links_to_nowhere_are_named_and_other_things_passed_over(tmp_path, name):
    filled(tmp_path)
    os.mkfifo(tmp_path / "queue")
    (tmp_path / "gone.png").symlink_to("nowhere")
    assert own(tmp_path) == []
    (tmp_path / name).symlink_to("nowhere")
    corpus.refused(tmp_path, rf"{name} is a link to nowhere, which is not there")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(name)
    corpus.refused(tmp_path, "a symbolic link that leads back to itself")


def test_a_folder_without_texts_says_what_else_there_is(tmp_path):
    for name in "b.rst", "a.pdf", "c.parquet.gz":
        (tmp_path / name).write_text("a")
    corpus.refused(
        tmp_path, r"holds no text \(\.txt, .*\.parquet\); passed over: a\.pdf and 2 more"
    )
    (tmp_path / "a.csv").write_text("Text\na\n")
    says = (
        r"has no document: .*table without a column 'text' passed over: .*rename 'Text' to 'text'"
    )
    corpus.refused(tmp_path, says)


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
    found = corpus.read(tmp_path, notes)
    assert {d.text.split()[0] == d.part for d in found} == {True}
    assert corpus.sizes(found).keys() == THREE.keys()
    said = {
        f"document in '{part}' by the names of files or 'split'": n
        for part, n in corpus.sizes(found).items()
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
    found = corpus.read(tmp_path)
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
    found = [d for d in corpus.read(tmp_path, notes) if d.text.strip()]
    assert min(corpus.sizes(found)[part] for part in THREE) > 0
    (given,) = {d.part for d in found if "x" in d.text}
    assert {d.name.split(".")[0] for d in found if d.part == given} == {given}
    assert {d.name.split(".")[0] for d in found if d.part != given} == {"train"}
    assert any("moved into" in note or "held out" in note or "divided" in note for note in notes)
    assert corpus.read(tmp_path) == corpus.read(tmp_path)


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
    named = corpus.read(tmp_path, notes)
    assert (
        [note for note in notes if says in note] if says else not any("hash d" in n for n in notes)
    )
    items = ((d.name, corpora.part(d.name), corpora._rank(d.name)) for d in named)
    moved = parts.moves(items)
    assert all(d.part == moved.get(d.name, corpora.part(d.name)) for d in named)
    assert len(named) == 3
