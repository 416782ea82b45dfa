"""What keeps a stage's state while the stage goes on: one upload at a time, in the background.

Knows time, threads and the request to stop; knows nothing about what is kept, or where.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from modelmill.spec.errors import Interrupted, ModelmillError
from modelmill.stages.stop import RESERVE_SECONDS, STOPPED, Stop, StopRequested

CHECKPOINT_SECONDS: Final = 300.0

AGAIN_SECONDS: Final = 30.0
"""After a state that could not be saved."""

logger = logging.getLogger(__name__)


class Commit(Protocol):
    """Commits what there is to go on from."""

    def __call__(self, on_bytes: Callable[[int], None], *, is_last: bool) -> None:
        """Commit it; the last time, a store that is gone is not waited for."""
        ...


@dataclass
class Keeper:
    """Decides when a state is kept, and keeps it."""

    commit: Commit
    stop: Stop
    every_seconds: float = CHECKPOINT_SECONDS
    warn: Callable[[str], None] = logger.warning
    has_room: Callable[[int], bool] = lambda _: True
    """Tells whether a state of so many bytes fits beside all that the stage has to write."""
    stalls: list[float] = field(default_factory=list)
    """Seconds that the stage stood still for each state."""
    uploads: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Keep the first state when the time between two has passed."""
        self._kept = self._asked = time.monotonic()
        self._longest_step = 0.0
        self._thread: threading.Thread | None = None
        self._is_over = False
        self._has_warned = False
        self._is_too_large = False

    def begin(self) -> None:
        """Count time from here."""
        self._kept = self._asked = time.monotonic()

    def is_due(self) -> bool:
        """Tell, after a step, whether it is time to keep a state.

        While one is on its way it is not; once the stage has been asked to stop it is.
        """
        now = time.monotonic()
        self._longest_step = max(self._longest_step, now - self._asked)
        self._asked = now
        if self.stop.is_set:
            return True
        if self._is_too_large or self._is_sending():
            return False
        return now - self._kept >= self.every_seconds

    def keep(self, size_bytes: int, write: Callable[[], None]) -> None:
        """Let a state be written and send it; waits for neither store nor network.

        Raises:
            Interrupted: the stage has been asked to stop, and the state is committed.
        """
        self.wait()  # only where the stage has been asked to stop
        begun = time.monotonic()
        if not self._is_written(size_bytes, write):
            self._end_if_asked()
            return
        self._kept = time.monotonic()
        self.stalls.append(self._kept - begun)
        if self.stop.is_set:
            self._send(is_last=True)
            self._end_if_asked()
        self._thread = threading.Thread(target=self._send, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for what is on its way."""
        if self._thread is not None:
            self._thread.join()

    def settle(self) -> None:
        """Give up what is on its way: it is not needed any more, or there is no time."""
        self._is_over = True
        self.wait()

    def _is_written(self, size_bytes: int, write: Callable[[], None]) -> bool:
        """Never at the cost of the work itself: a full volume would end it."""
        if not self.has_room(size_bytes):
            if not self._is_too_large:
                self.warn(
                    f"No checkpoints are kept: one has about {size_bytes / 2**20:,.0f} MiB, and "
                    "the disk has no room for it; an interruption goes back to the start"
                )
            self._is_too_large = True
            return False
        try:
            write()
        except OSError as error:
            self.warn(f"A checkpoint could not be written: {error}")
            self._kept = time.monotonic()
            return False
        return True

    def _end_if_asked(self) -> None:
        if self.stop.is_set:
            raise Interrupted(STOPPED)

    def _is_sending(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _send(self, *, is_last: bool = False) -> None:
        begun = time.monotonic()
        try:
            self.commit(self._count, is_last=is_last)
        except _GivenUp:
            return
        except ModelmillError as error:
            # The stage's own transfers report a lost store; the next state may be luckier.
            self.warn(f"A checkpoint could not be saved: {error.what}")
            self._kept += AGAIN_SECONDS - self.every_seconds
            return
        self.uploads.append(time.monotonic() - begun)
        logger.info(
            "checkpoint: stood still for %.2f s, saved in %.2f s",
            self.stalls[-1],
            self.uploads[-1],
        )
        self._compare_with_grace()

    def _count(self, _: int) -> None:
        """Stand between two parts of an upload, which abandons itself on an exception."""
        if self._is_over or self.stop.is_urgent:
            raise _GivenUp

    def _compare_with_grace(self) -> None:
        grace = self.stop.grace_seconds
        needed = self._longest_step + self.stalls[-1] + self.uploads[-1] + RESERVE_SECONDS
        if grace is None or self._has_warned or needed <= grace:
            return
        self._has_warned = True
        self.warn(
            f"A stage that is asked to stop has {grace:.0f} s; a step, a checkpoint and its upload "
            f"need about {needed:.0f} s, so an interruption goes back to the checkpoint before it: "
            "give it more (on a cluster stages.finetune.termination_grace_period_seconds)"
        )


class _GivenUp(StopRequested):
    """Raised between two parts of an upload that nobody wants any more."""
