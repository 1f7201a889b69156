"""Standard error outlives its reader."""

import io
import os
import sys

import pytest

from common.devices import terminal


class Gone(io.StringIO):
    """A terminal that has gone away."""

    def write(self, text):
        raise OSError(5, "Input/output error")

    def flush(self):
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("stream", [Gone(), None, "closed"])
def test_what_cannot_be_shown_is_in_the_copy(stream, tmp_path, monkeypatch):
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with terminal.steady():
        print("before", file=sys.stderr, flush=True)
        terminal.copy_to(tmp_path / "console.log")
        assert not sys.stderr.isatty()
        terminal.say("after")
        sys.stderr.write("half")
    assert sys.stderr is stream
    assert (tmp_path / "console.log").read_text() == "before\nafter\n"


def test_a_copy_holds_what_stayed_on_the_screen(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.steady():
        terminal.copy_to(tmp_path / "console.log")
        sys.stderr.write("\rstep 1/9  loss 3.0")
        sys.stderr.write("\rstep 2/9          ")
        sys.stderr.write("\rstep 5: saved\n")
    assert (tmp_path / "console.log").read_text() == "step 5: saved\n"
    assert "loss 3.0" in screen.getvalue()


def test_a_copy_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.steady():
        terminal.copy_to(tmp_path / "missing" / "console.log")
        terminal.say("shown")
    assert screen.getvalue() == "shown\n"


def test_a_copy_goes_on_where_it_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for text in ("first", "second"):
        with terminal.steady():
            terminal.copy_to(tmp_path / "console.log")
            terminal.say(text)
    assert (tmp_path / "console.log").read_text() == "first\nsecond\n"


def test_output_that_cannot_be_written_is_offered_and_forgotten(monkeypatch):
    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", full)
    terminal.offer("a result")
    assert terminal.flushed(full)
    os.close(full.fileno())
