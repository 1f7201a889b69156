"""What a process is told from outside, and what it says while it waits."""

import io
import math
import os
import signal
import sys
import time

import pytest
from helpers import wait_for

from common.devices import ending, terminal


def test_a_process_may_be_told_to_end_again_and_again():
    before = signal.getsignal(signal.SIGTERM)
    with ending.Preemption() as preemption:
        assert not preemption.noticed()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.noticed()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_interrupt_ends_it_at_once():
    # Where a shell began this in the background, an interrupt is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with ending.Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.noticed()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    signal.signal(signal.SIGINT, before)


# ----------------------------------------------------------------------------- the guarding thread


def test_what_takes_long_says_so_and_how_far_it_is(monkeypatch):
    screen, done = io.StringIO(), iter(range(100))
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(ending, "SILENCE_SECONDS", 0.3)
    with terminal.steady(), ending.guarded():
        with ending.busy("reading"):
            wait_for(lambda: "reading (" in screen.getvalue())
        with ending.busy(lambda: f"saving: {next(done)} files"):
            wait_for(lambda: "saving: 0 files (" in screen.getvalue())


def test_what_talks_is_not_talked_over(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(ending, "SILENCE_SECONDS", 0.6)
    with terminal.steady(), ending.guarded(), ending.busy("training"):
        for _ in range(10):
            time.sleep(0.1)
            terminal.say("a step")
    assert "training" not in screen.getvalue()


def test_a_signal_interrupts_what_does_not_poll():
    with pytest.raises(ending.Ended) as ended, ending.guarded():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert ending.outcome(ended.value.args[0]) == (
        143,
        "told to end, with nothing to resume from; run the same command again",
    )
    with pytest.raises(ending.Ended) as ended, ending.guarded():  # noqa: PT012
        ending.keeps(4)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    assert ending.outcome(ended.value.args[0])[0] == ending.PREEMPTED


def test_what_is_saved_is_waited_for_and_what_hangs_is_not(monkeypatch):
    ends = []
    monkeypatch.setattr(ending._Watch, "end", lambda watch: ends.append(time.monotonic()))
    with ending.guarded(), ending.Preemption():
        with ending.grace(math.inf):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.8)
        assert not ends
        saved_at = time.monotonic()
        with ending.grace(0.5):
            wait_for(lambda: ends)
    assert ends[0] - saved_at >= 0.5


def test_what_saves_again_and_again_and_never_ends_is_ended(monkeypatch):
    """As where the notice to the other processes is lost, and the run goes on."""
    ends = []
    monkeypatch.setattr(ending._Watch, "end", lambda watch: ends.append(watch.told))
    with ending.guarded(), ending.Preemption(), ending.grace(0.5):
        os.kill(os.getpid(), signal.SIGTERM)

        def save() -> bool:
            with ending.grace(math.inf):
                time.sleep(0.02)
            return bool(ends)

        wait_for(save, 20)


def test_an_evaluation_is_interrupted_and_a_step_is_not():
    with ending.guarded(), ending.Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.noticed()
        with pytest.raises(ending.Ended), preemption.interrupting():
            pytest.fail("it was told before it began")


def test_a_unit_of_work_that_takes_long_is_given_its_time_and_no_more():
    with ending.guarded(), ending.Preemption():
        for longest, given in ((0.1, ending.GRACE_SECONDS), (10, 25), (1e4, 60)):
            ending.allow(longest)
            assert ending._WATCH.grace == given
