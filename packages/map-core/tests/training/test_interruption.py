"""Signals end a run at the end of a step; impatience ends it at once."""

import signal
import time

import pytest

from map_core.training.interruption import SAME_KEYPRESS_SECONDS, Interruption


def test_a_second_ctrl_c_stops_at_once_but_an_echo_of_the_first_does_not():
    handler = signal.getsignal(signal.SIGINT)  # a background job of a shell ignores it
    with Interruption() as interruption:
        assert not interruption.requested
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert interruption.requested
        time.sleep(SAME_KEYPRESS_SECONDS + 0.05)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler
