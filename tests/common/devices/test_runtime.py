"""What a process is told from outside."""

import os
import signal

import pytest

from common.devices import runtime


def test_a_process_may_be_told_to_end_again_and_again():
    before = signal.getsignal(signal.SIGTERM)
    with runtime.Preemption() as preemption:
        assert not preemption.noticed()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.noticed()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_interrupt_ends_it_at_once():
    # Where a shell began this in the background, an interrupt is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with runtime.Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.noticed()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    signal.signal(signal.SIGINT, before)
