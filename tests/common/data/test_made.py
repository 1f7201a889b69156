"""Folders made from other files: once, whole or not at all."""

import concurrent.futures
import os

import pytest

from common.data import made
from common.errors import BadInput


def load(path):
    return (path / "value").read_text() if (path / "value").exists() else None


def test_it_is_made_once_by_one_at_a_time(tmp_path):
    built = []

    def build(into):
        assert not list(into.iterdir())
        (into / "value").write_text("whole")
        built.append(into)

    make = lambda _: made.folder(tmp_path / "below" / "set", load, build, "the set")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(make, range(8))) == {"whole"}
    assert len(built) == 1
    assert [p.name for p in (tmp_path / "below").iterdir() if p.is_dir()] == ["set"]


def test_what_fails_or_was_cut_off_leaves_nothing(tmp_path, caplog):
    def fail(into):
        (into / "value").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.folder(tmp_path / "set", load, fail, "the set")
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    (tmp_path / ".set.unfinished").mkdir()  # of a process that was killed
    (tmp_path / ".set.unfinished" / "value").write_text("half")
    (tmp_path / "set").mkdir()  # damaged
    (tmp_path / "set" / "junk").write_text("")
    build = lambda into: (into / "value").write_text("whole")
    assert made.folder(tmp_path / "set", load, build, "the set") == "whole"
    assert os.listdir(tmp_path / "set") == ["value"]
    assert "is damaged" in caplog.text


def test_a_place_that_cannot_be_written_is_refused_or_replaced(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "set"
    build = lambda into: (into / "value").write_text("whole")
    with pytest.raises(BadInput, match=r"file cannot be written .*config\.data\.folder"):
        made.folder(path, load, build, "the set")
    with pytest.warns(UserWarning, match="the set are kept in"):
        assert made.folder(path, load, build, "the set", elsewhere=True) == "whole"
