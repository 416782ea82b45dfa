"""A watch over a stage that may hang: it looks for life, says where everything stands, and ends it.

Knows threads and signals; must not know stages.  Two watches, because of the interpreter's
lock: a thread of ours, and the kernel's alarm for native code that hangs while it holds it.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LOOK_SECONDS: Final = 0.5

ARM_SECONDS: Final = 5.0

WRITE_SECONDS: Final = 2.0
"""For processes of ours to write where they stand."""

SPARE_SECONDS: Final = 15
"""Before the kernel's alarm: our own thread should have done it, with better words."""


@dataclass
class Hang:
    """Ends the process when nothing has shown life for too long."""

    after_seconds: float
    exit_code: int
    say: Callable[[float], None]
    """Says the last words, given the seconds without life."""

    def __post_init__(self) -> None:
        """Begin alive."""
        self._idle_seconds = 0.0
        self._looked = self._armed = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._arm()
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)

    def live(self) -> None:
        """Show life; costs nothing, from any thread."""
        self._idle_seconds = 0.0

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            now = time.monotonic()
            # A process that was itself stopped, as a laptop's lid does it, has not hung.
            self._idle_seconds += min(now - self._looked, 2 * LOOK_SECONDS)
            self._looked = now
            if self._idle_seconds > self.after_seconds:
                self._end()
            if now - self._armed > ARM_SECONDS:
                self._arm()

    def _arm(self) -> None:
        self._armed = time.monotonic()
        seconds = int(self.after_seconds) + SPARE_SECONDS
        faulthandler.dump_traceback_later(seconds)
        signal.alarm(seconds + 1)

    def _end(self) -> None:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        _let_children_say_where_they_stand()
        try:
            self.say(self._idle_seconds)
        finally:
            # The main thread is where no exception reaches it.
            os._exit(self.exit_code)


def _let_children_say_where_they_stand() -> None:
    """Ask the ranks of a finetune, which have set a handler up for it; then let none outlive us."""
    children = multiprocessing.active_children()
    for child in children:
        if child.pid is not None:
            os.kill(child.pid, signal.SIGUSR1)
    if children:
        time.sleep(WRITE_SECONDS)
    for child in children:
        child.kill()
