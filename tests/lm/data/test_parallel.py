"""Pairs of texts: what is read of which files, what is refused, and which pairs are held out."""

import bz2
import gzip
import json
import lzma

import corpus
import pyarrow
import pyarrow.parquet
import pytest

from common.errors import BadInput
from lm.data import parallel

WORDS = [f"word{i}" for i in range(200)]
PAIRS = [(word, f"wort {i}") for i, word in enumerate(WORDS)]


def read(name: str, source: str = "source", target: str = "target", folder: str = ""):
    """(all pairs, the Corpus)."""
    made = parallel.read(name, folder, source, target)
    return [pair for split in made.sizes for pair in made.take(split)], made


def refused(says: str, name: str, **sides) -> None:
    """A set must be refused in one line that matches `says`."""
    with pytest.raises(BadInput, match=says) as error:
        read(name, **sides)
    assert "\n" not in str(error.value)


def write(path, pairs=PAIRS, source="source", target="target"):
    """The pairs as a table of the kind that the path tells."""
    if path.suffix == ".jsonl":
        rows = (json.dumps({source: a, target: b}) for a, b in pairs)
        path.write_text("\n".join(rows))
    elif path.suffix == ".parquet":
        columns = zip(*pairs, strict=True)
        table = pyarrow.table(dict(zip((source, target), map(list, columns), strict=True)))
        pyarrow.parquet.write_table(table, path)
    else:
        sign = "," if path.suffix == ".csv" else "\t"
        path.write_text("\n".join(sign.join(pair) for pair in [(source, target), *pairs]))
    return f"pairs:{path}"


@pytest.mark.slow
def test_cmudict_is_the_published_one():
    pairs, made = read("cmudict")
    assert len(pairs) == 125_855
    words = {split: {word for word, _ in made.take(split)} for split in made.sizes}
    assert sum(map(len, words.values())) == 117_493  # no word in two splits
    assert len({phoneme for _, sounds in pairs for phoneme in sounds.split()}) == 69
    shares = {split: len(of) / 117_493 for split, of in words.items()}
    assert shares == pytest.approx({"train": 0.9, "valid": 0.05, "test": 0.05}, abs=0.002)
    tomato = [sounds for word, sounds in pairs if word == "tomato"]
    assert tomato == ["T AH0 M EY1 T OW2", "T AH0 M AA1 T OW2"]
    back, _ = read("cmudict", "target", "source")
    assert sorted(back) == sorted(pair[::-1] for pair in pairs)


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet"])
def test_tables_are_read_by_their_columns(tmp_path, kind, caplog):
    pairs, made = read(write(tmp_path / f"a.{kind}"))
    assert sorted(pairs) == sorted(PAIRS)
    assert set(made.sizes) == {"train", "valid", "test"}
    name = write(tmp_path / f"b.{kind}", source="en", target="de")
    assert read(name, "en", "de")[0] == pairs
    assert caplog.messages == []
    if kind == "tsv":  # it may be one without a header, whose first line is a pair
        assert ("en", "de") in read(name)[0]
        assert "first line of" in caplog.messages[-1]
        refused("has no 'fr': its columns are 'en', 'de'", name, source="en", target="fr")
    else:
        says = f"b.{kind}, (line|row) [12], has no 'source': .*'en', 'de'.* by config.data.source"
        refused(says, name)


def test_a_record_may_hold_a_translation(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"translation": {"en": a, "de": b}}) for a, b in PAIRS))
    assert sorted(read(f"pairs:{path}", "en", "de")[0]) == sorted(PAIRS)


def test_a_tsv_may_lack_a_header(tmp_path, caplog):
    path = tmp_path / "a.tsv"
    rows = [(a, f'say "{b}') for a, b in PAIRS]  # a quote is a quote
    path.write_text("\n".join("\t".join(row) for row in rows))
    pairs, _ = read(f"pairs:{path}")
    assert sorted(pairs) == sorted(rows)
    assert "a.tsv read as a pair, as it does not name the columns (once)" in caplog.messages[0]
    path.write_text("a\tb\nc\td\ne\n")
    refused("a.tsv, line 3, has 1 field, and the first line has 2", f"pairs:{path}")
    path.write_text("Source\tTarget\nc\td\n")
    refused("rename 'Source' to 'source'", f"pairs:{path}")
    path.write_text("id\tsrc\ttgt\n1\ta\tb\n")
    refused("has no 'source'.*; a .tsv without a header has two columns", f"pairs:{path}")


def test_two_files_of_lines_are_one_set(tmp_path, caplog):
    one, other = tmp_path / "a.en.gz", tmp_path / "a.de.xz"
    sides = list(zip(*PAIRS, strict=True))
    one.write_bytes(gzip.compress("\n".join(sides[0]).encode()))
    other.write_bytes(lzma.compress(("\n".join(sides[1]) + "\n\n").encode()))
    pairs, made = read(f"pairs:{one},{other}")
    assert sorted(pairs) == sorted(PAIRS)
    assert "blank line after the end of the other file (once)" in caplog.messages[0]
    swapped = [(b, a) for a, b in pairs]
    assert read(f"pairs:{one},{other}", "de", "en")[0] == read(f"pairs:{other},{one}")[0]
    assert sorted(read(f"pairs:{one},{other}", "de", "en")[0]) == sorted(swapped)
    refused("'en' and 'fr' are not the suffixes", f"pairs:{one},{other}", source="en", target="fr")
    train = made.take("train")
    assert train == [pair for pair in PAIRS if pair in set(train)]  # in their order


def test_lines_are_paired_whatever_they_hold(tmp_path, caplog):
    one, other = tmp_path / "a.en", tmp_path / "b.de.bz2"
    one.write_bytes(b"\xef\xbb\xbfa\rb\nc\n\ne\nf\ng\ng\n")
    other.write_bytes(bz2.compress(b"A\r\n  C \nD\nE\n\nG\nG\n"))
    pairs, _ = read(f"pairs:{one},{other}")
    assert sorted(pairs) == [("a\rb", "A"), ("c", "C"), ("e", "E"), ("g", "G"), ("g", "G")]
    said = caplog.messages[0]
    for what in ("byte order mark removed (once)", "an empty side left out (2 times)"):
        assert what in said
    assert "duplicate pair kept (once)" in said


def test_unequal_files_are_refused(tmp_path):
    one, other = tmp_path / "a.en", tmp_path / "b.de"
    one.write_text("a\nb\nc\n")
    other.write_text("A\nB\n")
    refused(
        r"a\.en has 3 lines, and .*b\.de has 2: line 3 has no counterpart", f"pairs:{one},{other}"
    )
    other.write_text("")
    refused(r"b\.de is an empty file", f"pairs:{one},{other}")
    refused("no such file: .*nowhere", f"pairs:{one},{tmp_path}/nowhere")
    other.write_bytes(b"A\nB\nC\xff\n")
    refused(r"b\.de, line 3, is not UTF-8", f"pairs:{one},{other}")


def test_a_folder_tells_parts_by_the_names_of_its_files(tmp_path):
    parts = {"train": PAIRS[:9], "dev": PAIRS[9:12], "test": PAIRS[12:14]}
    for name, pairs in parts.items():
        for side, suffix in enumerate(("en", "de")):
            lines = "\n".join(pair[side] for pair in pairs)
            (tmp_path / f"{name}.{suffix}").write_text(lines)
    name = f"pairs:{tmp_path}"
    _, made = read(name, "en", "de")
    assert made.sizes == {"test": 2, "train": 9, "valid": 3}
    assert made.take("valid") == parts["dev"]
    assert read(name, "de", "en")[1].take("valid") == [(b, a) for a, b in parts["dev"]]
    refused(r"dev.de is neither a table .* nor of the sides '.source' and '.target'", name)
    (tmp_path / "dev.de").unlink()
    refused("'dev' has no file of its side 'de'", name, source="en", target="de")
    (tmp_path / "dev.en").unlink()
    write(tmp_path / "dev.tsv", PAIRS[:4], "en", "de")
    assert read(name, "en", "de")[1].sizes["valid"] == 4


def test_suffixes_may_have_capitals(tmp_path):
    for name, lines in (("train.EN", "a\nb"), ("train.pt_BR", "A\nB")):
        (tmp_path / name).write_text(lines)
    pairs, _ = read(f"pairs:{tmp_path}", "en", "pt_BR")
    assert pairs == [("a", "A"), ("b", "B")]


def test_a_column_tells_splits(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"source": a, "target": b, "split": f"part{i % 2}"} for i, (a, b) in enumerate(PAIRS)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read(f"pairs:{path}")[1].sizes == {"part0": 100, "part1": 100}
    del rows[1]["split"]
    path.write_text("\n".join(map(json.dumps, rows)))
    refused("line 1 has a split, and line 2 has none", f"pairs:{path}")


def test_no_source_is_in_two_parts(tmp_path):
    many = [(a, f"{b} {i}") for i in range(3) for a, b in PAIRS]
    _, made = read(write(tmp_path / "a.tsv", many))
    sources = [{source for source, _ in made.take(split)} for split in made.sizes]
    assert sum(map(len, sources)) == len(PAIRS)
    _, few = read(write(tmp_path / "b.tsv", many[:3]))
    assert few.sizes == {"train": 1, "valid": 1, "test": 1}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"source": "a"}, "line 2, has no 'target'"),
        ({"source": "a", "target": 3}, "line 2: 'target' is a whole number, not a string"),
        ({"translation": {"source": "a"}}, "line 2, has no 'target': its columns are 'source'"),
        (["a", "b"], "line 2, is not a JSON object, but a list"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_line(tmp_path, record, says):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"source": "a", "target": "b"}) + "\n" + json.dumps(record))
    refused(says, f"pairs:{path}")


def test_odd_names_are_refused(tmp_path):
    for name in ("cmudic", "pairs:", "folder:x", "tfds"):
        refused("unknown .*; choose 'cmudict', 'bible', 'help', 'pairs:PATH'", name)
    with pytest.raises(BadInput, match="run: python scripts/prepare.py bible --folder"):
        read("bible", folder=str(tmp_path))
    refused("both are 'en'", "cmudict", source="en", target="en")
    refused("'cmudict' has 'source' and 'target'", "cmudict", source="letters", target="sounds")
    refused("no such file", f"pairs:{tmp_path}/a,b,c")
    (tmp_path / "a.tsv").write_text("source\ttarget\na\t \n")
    refused("has no pairs: pair with an empty side left out", f"pairs:{tmp_path}/a.tsv")


@pytest.mark.slow
def test_a_prepared_set_has_a_feature_for_each_side(tmp_path):
    rows = {
        "train": [{"en": a, "de": b} for a, b in PAIRS],
        "test": [{"en": "a", "de": "b"}, {"en": "c", "de": " "}],
    }
    corpus.prepare(tmp_path, "made_pairs", {"en": "text", "de": "text"}, rows)
    pairs, made = read("tfds:made_pairs", "en", "de", str(tmp_path))
    assert made.sizes == {"train": 200, "test": 2}
    assert sorted(pairs) == sorted([*PAIRS, ("a", "b"), ("c", "")])
    with pytest.raises(BadInput, match="config.data.target: 'made_pairs' has no 'target', but"):
        read("tfds:made_pairs", "en", "target", str(tmp_path))
