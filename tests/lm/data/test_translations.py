"""The sets of pairs that are prepared: what is read of Debian's packages, and what is held out."""

import collections
import io
import tarfile

import pytest

from common.data import fetch
from common.errors import BadInput
from lm.data import corpora, translations


def deb(path, files: dict[str, str]):
    """A Debian package with these files: an archive of `ar` with one of tar in it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        members = {"debian-binary": b"2.0", "control.tar.xz": b"", "data.tar.xz": packed.getvalue()}
        for name, contents in members.items():
            header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(contents):<10}`\n"
            file.write(header.encode() + contents + b"\n" * (len(contents) % 2))
    return path


def test_the_files_of_a_debian_package_are_read(tmp_path):
    path = deb(tmp_path / "a.deb", {"usr/b.txt": "b", "usr/a.txt": "ä", "etc/c.txt": "c"})
    members = list(fetch.members(path, prefix="usr/", suffix=".txt"))
    assert members == [("usr/a.txt", "ä".encode()), ("usr/b.txt", b"b")]
    assert fetch.read_member(path, "etc/c.txt") == b"c"
    (tmp_path / "b.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(BadInput, match=r"b\.deb: it is no Debian package"):
        fetch.read_member(tmp_path / "b.deb", "etc/c.txt")


def test_paragraphs_are_paired_by_page_and_identifier(tmp_path):
    page = lambda *rows: "<html><body>" + "".join(rows) + "</body></html>"
    english = page(
        '<h1 id="one">Open <b>a</b>\n  file</h1>',
        '<p id="two" class="paragraph">Alone &amp; here</p>',
        '<p id="three" class="bascode">Sub Main</p>',
        '<p id="four">Twice</p><p id="four">Twice</p>',
        "<p>no identifier</p>",
    )
    german = page(
        '<p id="one">Eine Datei öffnen</p>',
        '<p id="three" class="bascode">Sub Main</p><p id="four">Zweimal</p>',
    )
    at = translations.PAGES
    archives = (
        deb(tmp_path / "en.deb", {f"{at.format('en-US')}a/b.html": english}),
        deb(tmp_path / "de.deb", {f"{at.format('de')}a/b.html": german}),
    )
    found = list(translations._paragraphs(*archives))
    part = corpora.part("a/b.html")
    assert found == [("a/b.html#one", part, "Open a file", "Eine Datei öffnen")]


def test_nothing_that_is_held_out_stands_in_an_earlier_part():
    named = [
        ("1", "test", "a", "Z"),  # its source is trained on
        ("2", "train", "a", "A"),
        ("3", "train", "a", "A"),
        ("4", "train", "b", "b"),
        ("5", "valid", "x", "A"),  # its target is
        ("6", "valid", "c", "C"),
        ("7", "test", "c", "D"),  # its source is in "valid"
        ("8", "test", "e", "E"),
        ("9", "test", "b", "B"),  # that of 4, which is left out
    ]
    notes = collections.Counter()
    left = [name for name, *_ in translations.distinct(iter(named), notes)]
    assert left == ["2", "6", "8", "9"]
    assert notes == {
        "pair of 'test' with a text of an earlier part left out": 2,
        "pair of 'valid' with a text of an earlier part left out": 1,
        "pair of 'train' that repeats another left out": 1,
        "pair whose target is its source left out": 1,
    }
