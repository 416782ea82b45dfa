"""The pulse of a stage: what a request to stop interrupts, and what is kept of the work."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from modelmill.spec.errors import Interrupted, StoreUnreachable
from modelmill.spec.records import Progress
from modelmill.stages import pulse
from modelmill.stages.pulse import LivePulse, Outlets, Told
from modelmill.stages.stop import Stop


@dataclass
class Ear:
    """Counts what the store is told."""

    commits: list[bool] = field(default_factory=list)
    lives: int = 0
    failures: list[Exception] = field(default_factory=list)
    """Of the next commits."""

    def progress(self, progress: Progress) -> None:
        """Hear nothing."""

    def commit(self, on_bytes: Callable[[int], None], *, is_last: bool) -> None:
        """Count."""
        if self.failures:
            raise self.failures.pop()
        self.commits.append(is_last)

    def live(self) -> None:
        """Count."""
        self.lives += 1


def make(told: Ear) -> LivePulse:
    """Make a pulse whose states are always due."""
    outlets = Outlets(None, Told(told.progress, told.commit), print, told.live, 0)
    return LivePulse("stage", "attempt", outlets, Stop())


def test_request_to_stop_waits_for_the_end_of_a_step() -> None:
    """Progress within a step goes on, the state at its end is kept, and then it is over."""
    told = Ear()
    live = make(told)
    written: list[str] = []

    def last_step() -> None:
        with live.steps():
            live.stop.is_set = True
            live.progress(1, 2, "steps")
            assert live.is_due()
            live.keep(1, lambda: written.append("state"))

    with pytest.raises(Interrupted):
        last_step()
    assert written == ["state"]
    assert told.commits == [True]
    with pytest.raises(Interrupted):
        live.progress(2, 2, "steps")


def test_request_to_stop_in_the_last_step_publishes_nothing() -> None:
    """There is no step after it, and so no state to go on from."""
    live = make(Ear())
    with pytest.raises(Interrupted), live.steps():
        live.stop.is_set = True


def test_only_new_work_is_unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that got nowhere saves nothing, so that a conductor can tell."""
    told = Ear()
    live = make(told)
    assert not live.is_unsaved
    live.save()
    assert (live.is_unsaved, told.commits) == (True, [])
    monkeypatch.setattr(pulse, "SAVE_SECONDS", 0)
    live.save()
    assert (live.is_unsaved, told.commits) == (False, [False])


def test_work_goes_on_where_it_cannot_be_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that is away for a moment must not end a stage that needs it much later."""
    told = Ear(failures=[StoreUnreachable("The store does not answer")])
    live = make(told)
    monkeypatch.setattr(pulse, "SAVE_SECONDS", 0)
    live.save()
    assert (live.is_unsaved, told.commits) == (True, [])
    assert "could not be saved: The store does not answer" in capsys.readouterr().out
    live.save()
    assert (live.is_unsaved, told.commits) == (False, [False])


def test_state_that_others_wait_for_must_be_saved() -> None:
    """Whoever shares a stage looks at what the store has, right after it."""
    told = Ear()
    live = make(told)
    live.save()
    told.failures.append(StoreUnreachable("The store does not answer"))
    with pytest.raises(StoreUnreachable):
        live.commit()


def test_everything_a_stage_says_shows_life() -> None:
    """Parts, progress, bytes and steps: whatever is called, it has not hung."""
    told = Ear()
    live = make(told)
    with live.part("work"):
        live.progress(1, 2, "rows")
        live.moving(10)(5)
        live.is_due()
    assert told.lives == 4


def test_last_words_of_a_hung_stage_say_where_it_was() -> None:
    """With the numbers, and the setting that would have let it go on."""
    live = make(Ear())
    with live.part("work"):
        live.progress(12, 1000, "steps")
        failure = live.as_hung(3600.4)
    assert failure.what.startswith("No progress for 3600 s in 'work', 12 of 1,000 steps; the log")
    assert "hung_after_seconds" in failure.fix


@dataclass
class SlowEar(Ear):
    """Hears of progress only when it may."""

    begun: threading.Event = field(default_factory=threading.Event)
    may_hear: threading.Event = field(default_factory=threading.Event)
    heard: int = 0

    def progress(self, progress: Progress) -> None:
        """Wait, then count."""
        self.begun.set()
        assert self.may_hear.wait(10)
        self.heard += 1


def test_nothing_is_told_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything on its way: it would say that somebody works on what is committed."""
    monkeypatch.setattr(pulse, "FILE_SECONDS", 0.001)
    monkeypatch.setattr(pulse, "STORE_SECONDS", 0)
    told = SlowEar()
    with make(told) as live:
        assert told.begun.wait(10)
        threading.Timer(0.05, told.may_hear.set).start()
        live.end()
        heard = told.heard
    assert heard
    time.sleep(0.02)
    assert told.heard == heard
