"""A state is kept in the background, one at a time, and once more when the stage must stop."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from modelmill.spec.errors import Interrupted, StoreUnreachable
from modelmill.stages.keeper import Keeper
from modelmill.stages.stop import Stop


@dataclass
class Shelf:
    """Commits when it is let, and remembers what."""

    written: list[str] = field(default_factory=list)
    committed: list[tuple[str, bool]] = field(default_factory=list)
    may_commit: threading.Event = field(default_factory=threading.Event)
    failures: list[Exception] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def commit(self, on_bytes: Callable[[int], None], *, is_last: bool) -> None:
        """Commit what is written, in two parts."""
        newest = self.written[-1]
        on_bytes(1)
        self.may_commit.wait()
        on_bytes(1)
        if self.failures:
            raise self.failures.pop()
        self.committed.append((newest, is_last))

    def write(self, text: str) -> Callable[[], None]:
        """Give a function that writes."""
        return lambda: self.written.append(text)


def keeper(shelf: Shelf, stop: Stop, every_seconds: float = 0) -> Keeper:
    """Make a keeper that finds a state due at once."""
    return Keeper(shelf.commit, stop, every_seconds, shelf.warnings.append)


def test_stage_goes_on_while_a_state_is_on_its_way_and_keeps_no_other() -> None:
    """The stage waits for the writing alone."""
    shelf = Shelf()
    mine = keeper(shelf, Stop())
    assert mine.is_due()
    mine.keep(1, shelf.write("one"))
    assert not mine.is_due()
    shelf.may_commit.set()
    mine.wait()
    assert shelf.committed == [("one", False)]
    assert mine.is_due()


def test_state_is_not_due_before_its_time() -> None:
    """Five minutes are five minutes."""
    assert not keeper(Shelf(), Stop(), 300).is_due()


def test_stop_sends_a_last_state_after_the_one_that_is_on_its_way() -> None:
    """The older one is not given up for one that may not make it."""
    shelf, stop = Shelf(), Stop()
    mine = keeper(shelf, stop, 300)
    mine.keep(1, shelf.write("one"))
    stop.is_set = True
    assert mine.is_due()
    threading.Timer(0.05, shelf.may_commit.set).start()
    with pytest.raises(Interrupted):
        mine.keep(1, shelf.write("two"))
    assert shelf.committed == [("one", False), ("two", True)]


def test_upload_is_given_up_when_there_is_no_time_left() -> None:
    """Between two parts; the transfer takes back what it has begun."""
    shelf, stop = Shelf(), Stop()
    mine = keeper(shelf, stop)
    mine.keep(1, shelf.write("one"))
    stop.is_urgent = True
    shelf.may_commit.set()
    mine.settle()
    assert shelf.committed == []
    assert shelf.warnings == []


def test_state_that_cannot_be_saved_costs_a_warning_and_nothing_else() -> None:
    """A store that is away must not end a training that needs it much later."""
    shelf = Shelf(failures=[StoreUnreachable("The store does not answer")])
    shelf.may_commit.set()
    mine = keeper(shelf, Stop())
    mine.keep(1, shelf.write("one"))
    mine.wait()
    mine.keep(1, shelf.write("two"))
    mine.wait()
    assert shelf.committed == [("two", False)]
    assert shelf.warnings == ["A checkpoint could not be saved: The store does not answer"]


def test_full_disk_costs_a_warning_and_nothing_else() -> None:
    """Training needs no room for what it writes at its end but that."""

    def write() -> None:
        raise OSError(28, "No space left on device")

    shelf, stop = Shelf(), Stop()
    mine = keeper(shelf, stop)
    mine.keep(1, write)
    assert "No space left" in shelf.warnings[0]
    stop.is_set = True
    with pytest.raises(Interrupted):
        mine.keep(1, write)
    assert shelf.committed == []


def test_grace_period_that_is_too_short_is_said_once() -> None:
    """A step, a state and its upload must fit into it, as measured."""
    shelf = Shelf()
    shelf.may_commit.set()
    mine = keeper(shelf, Stop(grace_seconds=1))
    for text in ("one", "two"):
        mine.keep(1, shelf.write(text))
        mine.wait()
    [warning] = shelf.warnings
    assert "asked to stop has 1 s" in warning
    enough = Shelf()
    enough.may_commit.set()
    mine = keeper(enough, Stop(grace_seconds=60))
    mine.keep(1, enough.write("one"))
    mine.wait()
    assert enough.warnings == []


def test_state_that_would_take_the_outputs_room_is_not_written() -> None:
    """Over its limit a volume is evicted with everything on it; better no checkpoints."""
    shelf, stop = Shelf(), Stop()
    mine = Keeper(shelf.commit, stop, 0, shelf.warnings.append, lambda size_bytes: size_bytes < 100)
    for _ in range(2):
        mine.keep(2**30, shelf.write("large"))
    assert not mine.is_due()
    assert shelf.written == []
    [warning] = shelf.warnings
    assert "No checkpoints are kept: one has about 1,024 MiB" in warning
    stop.is_set = True
    assert mine.is_due()
    with pytest.raises(Interrupted):
        mine.keep(2**30, shelf.write("large"))
