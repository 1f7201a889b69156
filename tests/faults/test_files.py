"""Files that are none, cannot be read, or do not hold what they should: one line, exit code 2, and
nothing is waited for."""

import contextlib
import gzip
import json
import os
import pathlib
import shutil
import socket

import corpus
import pytest
from faults import refused
from helpers import DIGITS, ROOT

from common import inputs
from common.errors import BadInput
from lm.data import corpora
from vision.data import fashion_mnist

LANGUAGE = f"{ROOT}/tests/support/language_config.py:clm"


def fifo(path: pathlib.Path) -> None:
    os.mkfifo(path)


def device(path: pathlib.Path) -> None:
    path.symlink_to("/dev/zero")


def sock(path: pathlib.Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # a full path may be too long for it


def folder(path: pathlib.Path) -> None:
    path.mkdir()


def dangling(path: pathlib.Path) -> None:
    path.symlink_to("nowhere")


def loop(path: pathlib.Path) -> None:
    path.symlink_to(path.name)


# (what makes it, what the line says)
KINDS = [
    (fifo, r"is a FIFO \(named pipe\), not a file"),
    (device, r"is a device, not a file"),
    (sock, r"is a socket, not a file"),
    (folder, r"is a folder, not a file"),
    (dangling, r"is a link to nowhere, which is not there"),
    (loop, r"cannot be read: it is a symbolic link that leads back to itself"),
]
# (name of the file, what the line says)
NAMES = [
    ("/nowhere/x", r"no such (file|workdir).*: ?.*nowhere|'/nowhere/x': no such"),
    ("/" + "a" * 5000, r"a…a.* cannot be read: file name too long"),
    ("/tmp/" + "a" * 300, r"cannot be read: file name too long"),
    ("http://x/y", r"http://x/y is not a local file"),
]


def config_file(path) -> tuple[str, ...]:
    return "--config", str(path)


def labelled(path) -> tuple[str, ...]:
    made = pathlib.Path(path).parent / "labelled.py"
    if not made.parent.is_dir() or str(path).startswith(("/tmp/a", "/a")):
        made = pathlib.Path(os.environ["SCRATCH"]) / "labelled.py"
    made.write_text(
        "def get_config():\n    return {'task': 'lm.classify', 'data': {'tokenizer': "
        f"{os.environ['SCRATCH'] + '/wordpiece_150'!r}, 'name': {f'file:{path}'!r}}}}}\n"
    )
    return "--config", str(made)


def tokenizer(path) -> tuple[str, ...]:
    return "--config", LANGUAGE, "--config.data.name=sotu", f"--config.data.tokenizer={path}"


def weights(path) -> tuple[str, ...]:
    return (
        *("--config", f"{DIGITS}:mlp", "--config.model.module=vision.resnet:ResNet"),
        *("--config.model.stages=(1,)", "--config.model.widths=(16,)"),
        f"--config.init.path={path}",
    )


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.setenv("TOUCHSTONE_DATA", str(tmp_path / "data"))
    corpus.tokenizer(tmp_path, "wordpiece", 150)
    return tmp_path


@pytest.mark.parametrize("words", [config_file, labelled, tokenizer, weights])
@pytest.mark.parametrize(("make", "says"), KINDS)
def test_what_is_no_file_is_refused_unopened(make, says, words, capsys, scratch):
    path = scratch / ("theirs.py" if words is config_file else "theirs.json")
    make(path)
    if make is folder and words in (tokenizer, weights):  # which may be folders
        says = r"has none of the files that are read|no weights: there should be"
    refused(capsys, "train", *words(path), "--dry-run", says=says)


@pytest.mark.parametrize("words", [labelled, tokenizer, weights])
@pytest.mark.parametrize(("name", "says"), NAMES, ids=["missing", "long", "component", "scheme"])
def test_a_name_that_cannot_be_opened_is_one_line(name, says, words, capsys, scratch):
    line = refused(capsys, "train", *words(name), "--dry-run", says=says)
    assert len(line) < 400


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", r"--config: it is empty"),
        (":mlp", r"--config: it is empty"),
        ("nowhere.py", r"--config: no such file: nowhere\.py"),
        ("a\0b.py", r"--config: a\\x00b\.py cannot be read: embedded null byte"),
        ("a" * 5000 + ".py", r"--config: a.*…a.*\.py cannot be read: file name too long"),
        ("/etc/passwd", r"--config: /etc/passwd is not a Python file"),
    ],
    ids=["empty", "colon", "missing", "nul", "long", "other"],
)
def test_the_name_of_a_config_file(name, says, capsys):
    refused(capsys, "train", f"--config={name}", "--dry-run", says=says)


def test_a_file_that_may_not_be_read(capsys, tmp_path, monkeypatch):
    path = tmp_path / "theirs.py"
    path.write_text("")
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused(capsys, "train", "--config", str(path), "--dry-run", says="theirs.*permission denied")


# --------------------------------------------------------------------------------------- corpora


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("texts") / "own"
    corpus.write(made, 4)
    return made


def write(contents: bytes):
    return lambda path: path.write_bytes(contents)


# (name of a file added to a corpus, what makes it, what the line says)
ADDED = [
    ("x.txt", fifo, r"x\.txt is a FIFO"),
    ("letters/x.jsonl", fifo, r"letters/x\.jsonl is a FIFO"),
    ("x.txt", device, r"x\.txt is a device"),
    ("x.txt", sock, r"x\.txt is a socket"),
    ("x.txt", dangling, r"x\.txt is a link to nowhere, which is not there"),
    ("x.jsonl", dangling, r"x\.jsonl is a link to nowhere"),
    ("x.txt", loop, r"x\.txt cannot be read: it is a symbolic link"),
    ("letters/up", lambda path: path.symlink_to(".."), r"letters/up is a link to a folder above"),
    ("x.txt", write(b"a\nb\n\xff"), r"x\.txt cannot be read: line 3 is not UTF-8"),
    ("x.txt", write("a b".encode("utf-16-le")), r"x\.txt cannot be read: it looks like UTF-16"),
    ("x.jsonl", write(b'{"text": "a"}\n{"text": "\xff"}\n'), r"x\.jsonl, line 2, is not UTF-8"),
    ("x.jsonl", write(b"[" * 100_000), r"x\.jsonl, line 1.*: nested too deeply"),
    ("x.jsonl", write(b'\n\n{"text": null}\n'), r"x\.jsonl, line 3: 'text' is null"),
    ("x.jsonl", write(b"[1]\n"), r"x\.jsonl, line 1, is not a JSON object"),
    ("x.jsonl", write(b'{"text": "a", "name": 3}\n'), r"x\.jsonl, line 1: 'name' is a whole"),
    ("x.jsonl", write(b"\0\0\n"), r"x\.jsonl, line 1, has a NUL character"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "says"), ADDED)
def test_a_file_among_the_texts_is_named(name, make, says, capsys, tmp_path, texts, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_DATA", str(tmp_path / "data"))
    own = tmp_path / "own"
    shutil.copytree(texts, own)
    make(own / name)
    words = "--config", LANGUAGE, "--dry-run", f"--config.data.name=folder:{own}"
    refused(capsys, "train", *words, says=rf"^error: config\.data\.name: .*{says}")


def test_a_files_name_that_is_not_utf8(tmp_path, texts):
    shutil.copytree(texts, tmp_path / "own")
    with open(os.fsencode(tmp_path / "own") + b"/\xff.txt", "w") as file:
        file.write("a")
    with pytest.raises(BadInput, match=r"the file's name is not UTF-8"):
        list(corpora.documents(f"folder:{tmp_path / 'own'}"))


def test_texts_that_are_odd_and_right(tmp_path):
    os.mkfifo(tmp_path / "other.dat")  # not a text
    lines = [
        '\ufeff{"text": "a", "name": null}',
        r'{"text": "\ud83d\ude00", "name": "pair"}',
        '{"text": "b\u2028c"}',
    ]
    (tmp_path / "x.jsonl").write_text("\r\n".join(lines), encoding="utf-8")
    found = [(d.name, d.text) for d in corpora.documents(f"folder:{tmp_path}")]
    assert found == [("x.jsonl:1", "a"), ("pair", "\U0001f600"), ("x.jsonl:3", "b\u2028c")]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.name=folder:/etc/passwd", r"data\.name: /etc/passwd is a file, not a folder"),
        ("data.name=folder:/nowhere", r"data\.name: no such folder: /nowhere"),
        ("data.name=folder:", r"unknown corpus 'folder:'"),
        ("data.name=folder:/" + "a" * 5000, r"data\.name: .* cannot be read: file name too long"),
        ("data.vocab_size=0", r"data\.vocab_size: 0 is too small"),
        ("data.vocab_size=1000000000000", r"vocab_size: 1000000000000 is more than 4,194,304"),
        ("data.length=1000000000000", r"data\.length: 1000000000000 is not in 8 to 16,777,216"),
    ],
)
def test_an_override_that_makes_no_corpus(override, says, capsys, texts, tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_DATA", str(tmp_path))
    words = "--config", LANGUAGE, "--dry-run", f"--config.data.name=folder:{texts}"
    refused(capsys, "train", *words, f"--config.{override}", says=says)


# -------------------------------------------------------------------------------- labelled texts

GOOD = [{"text": f"the union {i}", "label": i % 2} for i in range(60)]


def lines_of(*rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# (contents of a labelled .jsonl, what the line says)
LABELLED = [
    (b"", r"theirs\.json is an empty file"),
    (b"x\n", r"line 1, is not JSON"),
    (lines_of(GOOD[0]) + b'{"text": "\xff", "label": 1}\n', r"theirs\.json, line 2, is not UTF-8"),
    (lines_of(*GOOD).decode().encode("utf-16-be"), r"it looks like UTF-16 without a byte"),
    (b"[" * 100_000, r"line 1, is not JSON: nested too deeply"),
    (b'{"text": "a", "label": ' + b"9" * 5000 + b"}", r"line 1, is not JSON"),
    (lines_of({"text": None, "label": 1}), r"line 1: 'text' is null"),
    (lines_of([1]), r"line 1, is not a JSON object"),
    (b"null\n", r"line 1, is not a JSON object"),
    (b'{"text": "a", "label": NaN}\n{"text": "b", "label": 1.0}\n', r"a label is not finite"),
    (b'{"text": "a", "label": 1e39}\n{"text": "b", "label": 1.0}\n', r"a label is not finite"),
    (b'{"text": "a", "label": 1' + b"0" * 400 + b'}\n{"text": "b", "label": 1.5}\n', r"not finite"),
    (lines_of(GOOD[0] | {"split": "a b"}), r"line 1: split 'a b'"),
]


@pytest.mark.parametrize(("raw", "says"), LABELLED)
def test_a_labelled_file_that_is_none_names_its_line(raw, says, capsys, scratch):
    path = scratch / "theirs.json"
    path.write_bytes(raw)
    refused(capsys, "train", *labelled(path), "--dry-run", says=says)


# ------------------------------------------------------------------------------ compressed files


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-20], lambda raw: raw[:40] + b"\xff" * 40 + raw[80:], lambda raw: b"x" * 50],
    ids=["truncated", "flipped", "other"],
)
def test_a_damaged_archive_is_one_line(damage, tmp_path):
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(damage(gzip.compress(bytes(range(256)) * 40)))
    with pytest.raises(BadInput, match=r"ubyte\.gz: cannot be read: .*; fetch it again"):
        fashion_mnist.read_idx(path, "")


def test_a_damaged_corpus_of_the_package_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "sotu.jsonl.xz"
    raw = (ROOT / "lm/data/sotu.jsonl.xz").read_bytes()
    monkeypatch.setattr(corpora, "_embedded", lambda: path)
    for damaged in raw[:-100], b"x" * 100, b"":
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"sotu\.jsonl\.xz: damaged"):
            corpora.documents("sotu")


def test_json_of_a_file_is_an_object(tmp_path):
    path = tmp_path / "a.json"
    for raw in b"", b"[]", b"null", b"3", b"{", b"\xff", b"[" * 100_000:
        path.write_bytes(raw)
        with pytest.raises(BadInput, match=r"^key: .*a\.json"):
            inputs.json_object("key", path)
