"""The request to stop: what it interrupts at once, and what it lets finish a step first.

Knows signals; knows nothing about stages or stores.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

LOOK_SECONDS: Final = 0.5

STOPPED: Final = "Asked to stop; nothing half-done was published"
"""True in the middle of a commit too, which is either done or not."""

RESERVE_SECONDS: Final = 5.0
"""Of the grace period: for giving up an upload and saying so."""


class StopRequested(BaseException):
    """Raised out of a signal handler; not an Exception, so that no library swallows it."""


@dataclass
class Stop:
    """Whether the process has been asked to stop."""

    grace_seconds: float | None = None
    """From the request to SIGKILL; None if nobody has said."""
    is_set: bool = False
    is_urgent: bool = False
    """Whether nothing may be finished any more."""
    is_patient: bool = False
    """Whether the request waits for the end of a step, which looks at `is_set`."""
    _timer: threading.Timer | None = field(default=None, repr=False)

    def install(self) -> None:
        """Let SIGTERM and SIGINT interrupt whatever the main thread is doing, once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """Let a request wait for the end of a step, as far as the grace period allows.

        An exception in the middle of a step would leave half of the weights changed, and
        nothing that could be saved.  A second request does not wait.
        """
        self.is_patient = True
        try:
            yield
        finally:
            self.is_patient = False
            if self._timer is not None:
                self._timer.cancel()

    @property
    def patience_seconds(self) -> float | None:
        """How long after a request a step may go on."""
        if self.grace_seconds is None:
            return None
        return max(self.grace_seconds - RESERVE_SECONDS, self.grace_seconds / 2)

    def _handle(self, number: int, _frame: object) -> None:
        if self.is_urgent:
            return
        if self.is_patient and not self.is_set:
            self.is_set = True
            if self.patience_seconds is not None:
                # A signal: only the main thread can raise out of what the main thread does.
                self._timer = threading.Timer(self.patience_seconds, os.kill, (os.getpid(), number))
                self._timer.daemon = True
                self._timer.start()
            return
        self.is_set = self.is_urgent = True
        raise StopRequested


def end_with(parent_pid: int, by: signal.Signals = signal.SIGTERM) -> None:
    """Stop this process soon after its parent has gone.

    Nobody would see, or stop, what goes on here; and a conductor's embedded store goes with
    it, so that the stage would only wait for it.
    """

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), by)

    threading.Thread(target=watch, name="parent", daemon=True).start()
