"""Tables of one's own: the same records from each kind of file, numbers of lines, accidents."""

import bz2
import codecs
import collections
import gzip
import json
import logging
import lzma
import os
import re

import pyarrow as pa
import pyarrow.parquet
import pytest

from common.data import tables
from common.errors import BadInput

RECORDS = [{"text": "one, “two”"}, {"text": 'a "b"\nc\td'}, {"text": ""}]
JSON = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
CSV = 'text,label\n\n"one, “two”",1\n"a ""b""\nc\td",2\n"",3\n'.encode()


def parquet(columns: dict, path) -> None:
    pyarrow.parquet.write_table(pa.table(columns), path)


def zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def read(path, mended=None) -> list[tuple[int, dict]]:
    return list(tables.rows("key", path, collections.Counter() if mended is None else mended))


@pytest.mark.parametrize("packing", ["", *PACKERS])
@pytest.mark.parametrize("kind", [".jsonl", ".NDJSON", ".csv", ".Tsv"])
def test_each_kind_gives_the_records_and_the_lines_where_they_begin(tmp_path, kind, packing):
    delimited = kind.lower() in tables.DELIMITERS
    tabs = CSV.replace(b"text,label", b"text\tlabel").replace(b",1\n", b"\t1\n")
    tabs = tabs.replace(b",2\n", b"\t2\n").replace(b",3\n", b"\t3\n")
    raw = {".jsonl": JSON, ".NDJSON": JSON, ".csv": CSV, ".Tsv": tabs}[kind]
    path = tmp_path / f"a.b{kind}{packing.upper()}"
    path.write_bytes(PACKERS.get(packing, bytes)(raw))
    numbers, records = zip(*read(path), strict=True)
    assert numbers == ((3, 4, 6) if delimited else (1, 2, 3))
    assert [{"text": record["text"]} for record in records] == RECORDS
    assert not delimited or [record["label"] for record in records] == ["1", "2", "3"]


def test_parquet_has_types_and_rows_and_streams(tmp_path):
    count = 3 * tables.BATCH + 1
    columns = {"text": [f"é{i}" if i % 7 else None for i in range(count)], "n": range(count)}
    parquet(columns | {"n": list(range(count))}, tmp_path / "a.PARQUET")
    found = read(tmp_path / "a.PARQUET")
    assert [number for number, _ in found] == list(range(1, count + 1))
    assert [r["text"] for _, r in found] == columns["text"]
    assert [r["n"] for _, r in found] == list(range(count))
    assert tables.place("b.parquet", 3) == "b.parquet, row 3"


@pytest.mark.parametrize(
    ("raw", "counts"),
    [
        (JSON, {}),
        (codecs.BOM_UTF8 + JSON, {"byte order mark removed": 1}),
        (JSON.replace(b"\n", b"\n" + codecs.BOM_UTF8, 2), {"byte order mark removed": 2}),
        (JSON.decode().encode("utf-16"), {"UTF-16 decoded": 1}),
        (codecs.BOM_UTF16_BE + JSON.decode().encode("utf-16-be"), {"UTF-16 decoded": 1}),
        (JSON.replace(b"\n", b"\r\n"), {}),
        (b"\n \n" + JSON, {}),
    ],
)
def test_what_is_mended_is_read_and_counted(tmp_path, raw, counts):
    (tmp_path / "a.jsonl").write_bytes(raw)
    mended = collections.Counter()
    assert [record for _, record in read(tmp_path / "a.jsonl", mended)] == RECORDS
    assert mended == counts


@pytest.mark.parametrize(
    ("raw", "counts"),
    [
        (CSV + CSV, {"header repeated within a table left out": 1}),
        (CSV + codecs.BOM_UTF8 + CSV.replace(b"text", b'"text"', 1), {
            "byte order mark removed": 1, "header repeated within a table left out": 1,
        }),
        (codecs.BOM_UTF8 * 2 + CSV + CSV[12:], {"byte order mark removed": 2}),
    ],
)  # fmt: skip
def test_tables_that_were_joined_are_read_as_one(tmp_path, raw, counts):
    (tmp_path / "a.csv").write_bytes(raw)
    mended = collections.Counter()
    found = [record for _, record in read(tmp_path / "a.csv", mended)]
    alone = [{"text": record["text"]} for record in found]
    assert alone == (RECORDS * 2)[: len(alone)]
    assert len(alone) > 3
    assert mended == counts


def test_a_column_that_is_lacking_is_looked_for():
    for name, record, says in (
        ("a.csv", {"id": "1", " Text": "a"}, r"its columns are 'id', ' Text'; rename ' Text' to"),
        (
            "a.csv",
            {"id\ttext": "1"},
            r"of a \.csv are separated by ',', but its header .* has a tab",
        ),
        ("a.tsv", {"id;text": "1"}, r"of a \.tsv are separated by a tab, but .* has ';'"),
        ("a.csv", {"1": "2", "a": "b"}, "its first line must name the columns"),
        ("a.jsonl", {"1;2": "2"}, "its columns are '1;2'$"),
    ):
        assert re.search(says, tables.lacking(name, record, "text"))


@pytest.mark.parametrize("packing", [".bz2", ".xz", ".gz", ".zst"])
def test_every_member_of_an_archive_is_read_or_it_is_refused(tmp_path, packing):
    pack, path = PACKERS[packing], tmp_path / f"a.jsonl{packing}"
    first, second = pack(JSON), pack(JSON * 50)
    pads = ("", "\0" * 8) if packing in (".bz2", ".xz") else ("",)
    for pad in map(str.encode, pads):
        path.write_bytes(first + pad + second + pad)
        assert [record for _, record in read(path)] == RECORDS * 51
    broken = bytearray(second)
    broken[len(broken) // 2] ^= 1
    unseen = packing == ".zst"  # which need not have a sum to check
    for rest in b"junk", b"junk" if unseen else bytes(broken), second[:-9], b"\xff" + second:
        path.write_bytes(first + rest)
        with pytest.raises(BadInput, match=r"damaged or cut off"):
            read(path)


def test_only_columns_in_use_are_read_and_bytes_may_be_text(tmp_path):
    parquet({"a": [b"\xff", b"a"], "b": ["é".encode(), None], "c": [1, 2]}, tmp_path / "a.parquet")
    used = lambda names: [name for name in names if name != "c"]
    found = [r for _, r in tables.rows("key", tmp_path / "a.parquet", None, used)]
    assert found == [{"a": b"\xff", "b": "é"}, {"a": "a", "b": None}]


def test_halves_of_characters_are_replaced_and_pairs_are_kept(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_bytes(rb'{"a": ["\ud83d \udc00", "\ud83d\ude00", "\\ud83d"], "\udfff": NaN}')
    with caplog.at_level(logging.WARNING):
        ((_, record),) = tables.rows("key", path)
    assert record.pop("\ufffd") != 0
    assert record == {"a": ["\ufffd \ufffd", "\U0001f600", r"\ud83d"]}
    assert "a.jsonl: lone surrogate replaced by U+FFFD (3 times)" in caplog.text


def test_a_field_may_be_longer_than_csv_has_it(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000)
    assert len(read(tmp_path / "a.csv")[0][1]["text"]) == 200_000


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a":\n', r"a\.jsonl, line 3, is not JSON: Expecting value at"),
        (
            "a.jsonl",
            b'[{"a": 1}]',
            r"line 1, is not a JSON object, but a list; .* one object a line",
        ),
        ("a.jsonl", b'[{"a": 1},\n', r"line 1, is not JSON: .*must become one object a line"),
        ("a.jsonl", b"null\n", r"line 1, is not a JSON object, but null"),
        ("a.jsonl", b"[" * 100_000, r"line 1, is not JSON: nested too deeply"),
        ("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', r"line 2, is not UTF-8 \(byte 0xe9\)"),
        ("a.jsonl", b'{"a": "\xed\xa0\xbd"}\n', r"line 1, is not UTF-8"),
        ("a.jsonl", JSON.decode().encode("utf-16-le"), r"looks like UTF-16 without a byte order"),
        ("a.jsonl", JSON.decode().encode("utf-32-be"), r"looks like UTF-32 without a byte order"),
        ("a.jsonl", JSON.decode().encode("utf-32-le"), r"looks like UTF-32 without a byte order"),
        (
            "a.jsonl",
            b'{"a": 1}\n{"a": 2, "b": 0, "a": 3}',
            r"line 2, .* 'a' stands twice, with 2 and 3",
        ),
        ("a.jsonl", JSON.decode().encode("utf-16")[:-1], r"follows line 2 is not UTF-16 \(trunc"),
        ("a.jsonl", b"\n\n", r"holds no records"),
        ("a.jsonl", b"", r"is an empty file"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", r"is a git-lfs pointer"),
        ("a.csv", b"a,b\n\n1,2\n3\n", r"a\.csv, line 4, has 1 field, but the header has 2"),
        ("a.csv", b'a,b\n1,"x\ny"\n1,2,3\n', r"line 4, has 3 fields"),
        ("a.csv", b"a,b,a\n", r"line 1, the header, has 'a' twice"),
        ("a.csv", b",a\n0,1\n", r"the header, has a column without a name; .*index=False"),
        ("a.csv", b"a, \n", r"the header, has a column without a name; give it one"),
        ("a.csv", b"a,b\n", r"holds no records"),
        ("a.csv", b'a,b\n1,2\n"x,3\n4,5\n', r"line 3, is not a row of a \.csv: unexpected end"),
        ("a.csv", b'a,b\n"x"y,3\n', r"line 2, is not a row of a \.csv"),
        ("a.csv", b"a,b\n1,2\n\xff,2\n", r"line 3, is not UTF-8 \(byte 0xff\)"),
        ("a.parquet", b"PAR1", r"cannot be read as \.parquet"),
        ("a.txt", b"a", r"its name should end in \.jsonl"),
        ("a.parquet.gz", b"a", r"its name should end in \.jsonl"),
        *((f"a.jsonl{packing}", JSON, rf"damaged.*as a {packing} file") for packing in PACKERS),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path, name, raw, says):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(BadInput, match=rf"^key: .*{says}") as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("packing", PACKERS)
def test_an_archive_cut_off_gives_what_it_has_and_is_refused(tmp_path, packing):
    count = 1000 if packing == ".bz2" else 200  # more than a block
    noise = b"".join(b'{"a": "%s"}\n' % os.urandom(999).hex().encode() for _ in range(count))
    (tmp_path / f"a.jsonl{packing}").write_bytes(PACKERS[packing](noise)[:-30])
    records = tables.rows("key", tmp_path / f"a.jsonl{packing}", collections.Counter())
    assert next(records) == (1, json.loads(noise[: noise.index(b"\n")]))
    with pytest.raises(BadInput, match=r"damaged or cut off"):
        list(records)


def test_a_parquet_that_is_none_is_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    for columns, says in (
        ({"a": pa.array([], pa.string())}, "holds no records"),
        (pa.table([[1], [2]], names=["a", "a"]), "has the column 'a' twice"),
    ):
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pyarrow.parquet.write_table(table, path)
        with pytest.raises(BadInput, match=rf"^key: .*a\.parquet {says}"):
            read(path)
    ends = pa.array([0, 1, 2], pa.int32()).buffers()[1]
    latin = pa.Array.from_buffers(pa.string(), 2, [None, ends, pa.py_buffer(b"a\xe9")])
    parquet({"a": latin}, path)
    with pytest.raises(BadInput, match=r"^key: .*a\.parquet, row 2, is not UTF-8 .*; write it so"):
        read(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadInput, match=r"^key: .*cannot be read as \.parquet"):
        read(path)


def test_what_is_no_file_is_refused_unopened(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    (tmp_path / "b.parquet").symlink_to("b.parquet")
    (tmp_path / "c.jsonl").symlink_to("nowhere")
    for name, says in ("a.csv", "FIFO"), ("b.parquet", "back to itself"), ("c.jsonl", "not there"):
        with pytest.raises(BadInput, match=says):
            read(tmp_path / name)
