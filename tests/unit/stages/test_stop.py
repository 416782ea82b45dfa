"""What SIGTERM interrupts at once, and what it lets finish a step."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from modelmill.stages.stop import Stop, StopRequested


@pytest.fixture
def stop() -> Iterator[Stop]:
    """Install a stop, and take it back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stop = Stop()
    stop.install()
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


def ask() -> None:
    """Send SIGTERM to this process."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)


def test_request_interrupts_at_once_and_only_once(stop: Stop) -> None:
    """What cleans up is not interrupted again."""
    with pytest.raises(StopRequested):
        ask()
    assert stop.is_urgent
    ask()


def test_request_waits_for_the_end_of_a_step(stop: Stop) -> None:
    """Nothing is torn; who looks sees it."""
    with stop.patiently():
        ask()
        assert stop.is_set
        assert not stop.is_urgent
    assert not stop.is_patient


def test_second_request_does_not_wait(stop: Stop) -> None:
    """Ctrl-C twice means now."""
    with stop.patiently():
        ask()
        with pytest.raises(StopRequested):
            ask()


def test_step_that_takes_longer_than_the_grace_period_is_interrupted(stop: Stop) -> None:
    """So that the process ends with words and no torn upload, before SIGKILL comes."""
    stop.grace_seconds = 0.2
    with stop.patiently():
        ask()
        with pytest.raises(StopRequested):
            time.sleep(60)
    assert stop.is_urgent


@pytest.mark.parametrize(("grace", "patience"), [(20.0, 15.0), (6.0, 3.0), (None, None)])
def test_patience_leaves_time_for_last_words(grace: float | None, patience: float | None) -> None:
    """Five seconds of a long grace period, half of a short one."""
    assert Stop(grace).patience_seconds == patience
