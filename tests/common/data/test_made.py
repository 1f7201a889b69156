"""Folders made from other files: once, whole or not at all."""

import concurrent.futures
import os
import shutil

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


def _shut(folder):
    """A folder of another user, as far as one who is not root can tell."""
    folder.mkdir()
    (folder / "junk").write_text("")


IN_THE_WAY = {
    "a link": ("set", lambda path: path.symlink_to(path.parent / "elsewhere")),
    "a dead link": ("set", lambda path: path.symlink_to("nowhere")),
    "a file": ("set", lambda path: path.write_text("")),
    "of another user": ("set", _shut),
    "an unfinished file": (".set.unfinished", lambda path: path.write_text("")),
    "an unfinished folder of another user": (".set.unfinished", _shut),
    "a lock that is a folder": (".set.lock", lambda path: path.mkdir()),
    "a lock that is a FIFO": (".set.lock", os.mkfifo),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_is_in_the_way_is_refused_before_the_work_begins(tmp_path, monkeypatch, kind):
    (tmp_path / "elsewhere").mkdir()
    name, put = IN_THE_WAY[kind]
    put(tmp_path / name)
    remove = shutil.rmtree

    def rmtree(path, *arguments, **options):
        if "another user" in kind and (path / "junk").exists():
            raise PermissionError(13, "Permission denied")
        remove(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadInput, match=rf"/{name} cannot be replaced \(.*config\.data\.folder"):
        made.folder(tmp_path / "set", load, pytest.fail, "the set")
    assert sorted({*tmp_path.iterdir()} - {tmp_path / ".set.lock"} - {*before}) == []


def test_the_lock_of_another_user_is_a_lock(tmp_path, monkeypatch):
    (tmp_path / ".set.lock").write_text("")
    real = os.open

    def guarded(file, flags, *arguments, **options):
        if str(file).endswith(".lock") and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return real(file, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", guarded)
    build = lambda into: (into / "value").write_text("whole")
    assert made.folder(tmp_path / "set", load, build, "the set") == "whole"
