"""The lines of a log: what ends one, what is damage, and that what is removed is kept."""

import json

import pytest
from etils import epath

from common.errors import BadInput
from common.runs import lines, log

LINE = '{"step": 1, "eval/test/text": "a\u2028b\u2029c\x85d"}\n'


def read(folder, raw: bytes) -> list[dict]:
    (folder / lines.NAME).write_bytes(raw)
    return log.read_lines(folder)


def test_lines_end_at_line_feeds_alone(tmp_path):
    raw = (LINE + LINE.replace('"step": 1', '"step": 2')).encode()
    assert [line["eval/test/text"] for line in read(tmp_path, raw)] == ["a\u2028b\u2029c\x85d"] * 2


def test_what_editors_add_is_passed_over_mended_and_kept(tmp_path):
    good = b'{"step": 1, "train/x": 0.1}\n{"step": 2}\n'
    raw = b"\xef\xbb\xbf" + good.replace(b"\n", b"\r\n\r\n") + b"  \n"
    assert [line["step"] for line in read(tmp_path, raw)] == [1, 2]
    for _ in range(2):
        lines.mend(tmp_path)
        assert (tmp_path / lines.NAME).read_bytes() == good
        assert (tmp_path / "metrics.jsonl.before-mending").read_bytes() == raw
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / lines.NAME).write_bytes(good + b"torn")
    lines.mend(tmp_path)
    assert (tmp_path / "metrics.jsonl.before-mending-2").read_bytes() == good + b"torn"


def test_a_log_is_written_anew_as_it_stood(tmp_path):
    text = LINE + '{"b": 1e0,   "step":2}\n'
    (tmp_path / lines.NAME).write_text(text)
    log.Log(tmp_path, 2, writing=True, name="", config={}, tensorboard=False, wandb="").close()
    assert (tmp_path / lines.NAME).read_text() == text


def test_a_log_is_not_opened_over_damage(tmp_path):
    text = '{"step": 1}\n?\n{"step": 2}\n'
    (tmp_path / lines.NAME).write_text(text)
    with pytest.raises(BadInput, match=r"metrics.jsonl is damaged at line 2: it is not a JSON"):
        log.Log(tmp_path, 2, writing=True, name="", config={}, tensorboard=False, wandb="")
    assert (tmp_path / lines.NAME).read_text() == text


def test_the_tail_holds_a_line_however_long(tmp_path):
    rows = [{"step": k, "x": "y" * 1000} for k in range(20)]
    (tmp_path / lines.NAME).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert log.tail(tmp_path, size=10)[-1:] == rows[-1:]
    assert log.tail(tmp_path) == rows
    (tmp_path / lines.NAME).write_bytes(b"\xff\n" * 9)
    assert log.tail(tmp_path, size=10) == []


def test_parts_are_numbered_and_nothing_else_is_one(tmp_path):
    folder = tmp_path / "metrics"
    folder.mkdir()
    for name in ("part_00002.jsonl", "part_00010.jsonl", "part_copy.jsonl", "part_00001.jsonl.x"):
        (folder / name).write_text('{"step": 1}\n')
    names = [path.name for path in lines.log_files(tmp_path)]
    assert names == ["part_00002.jsonl", "part_00010.jsonl"]
    (tmp_path / lines.NAME).write_text("")
    assert lines.log_files(tmp_path) == [epath.Path(tmp_path / lines.NAME)]
