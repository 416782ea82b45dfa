"""A file that is sent while it is made and lies nowhere: its bytes wait in memory for their part.

Knows parts; knows nothing about stores.
"""

import threading
from typing import Final

from modelmill.store.connection import Stopped
from modelmill.store.crew import LOOK_SECONDS, part_count
from modelmill.store.outgoing import part_bytes_of
from modelmill.store.ranges import piece_digests

PARTS_WAITING: Final = 1
"""Complete and not yet on their way; whoever has one more waits."""


class Poured:
    """A file of known length that one thread writes and others send, each byte once."""

    def __init__(self, size_bytes: int) -> None:
        """Wait for so many bytes."""
        self.size_bytes = size_bytes
        self.part_bytes = part_bytes_of(size_bytes)
        self._count = part_count(size_bytes, self.part_bytes)
        self._digests: dict[int, tuple[bytes, ...]] = {}
        self._present: dict[int, bytearray] = {}
        self._filling = bytearray()
        self._reached = 0
        self._filled = 0
        self._error: BaseException | None = None
        self._changing = threading.Condition()

    def write(self, view: memoryview) -> None:
        """Take the next bytes; wait while sending is behind.

        Raises:
            ModelmillError: it could not be sent.
        """
        while view:
            if self._reached == len(self._filling):
                self._filling, self._reached = bytearray(self._next_bytes), 0
            taken = view[: len(self._filling) - self._reached]
            self._filling[self._reached : self._reached + len(taken)] = taken
            view, self._reached = view[len(taken) :], self._reached + len(taken)
            if self._reached == len(self._filling):
                self._hand_over()

    def read(self, start: int, length: int, stop: threading.Event) -> bytes:
        """Give away the part that begins at `start`, once it is there.

        Raises:
            Stopped: `stop` was set before.
        """
        number = start // self.part_bytes
        assert (start, length) == (number * self.part_bytes, self.part_bytes)
        with self._changing:
            while not self._changing.wait_for(lambda: number in self._present, LOOK_SECONDS):
                if stop.is_set():
                    raise Stopped
            body = bytes(self._present.pop(number))
            self._changing.notify_all()
        self._digests[number] = piece_digests(body)
        return body

    def give_up(self, error: BaseException) -> None:
        """Let nobody wait any more; whoever writes gets the error."""
        with self._changing:
            self._error = error
            self._changing.notify_all()

    @property
    def digests(self) -> tuple[bytes, ...]:
        """Give the SHA-256 of each piece; only when all have been sent."""
        return tuple(each for number in range(self._count) for each in self._digests[number])

    def _hand_over(self) -> None:
        with self._changing:
            self._changing.wait_for(lambda: self._error or len(self._present) < PARTS_WAITING)
            if self._error is not None:
                raise self._error
            self._present[self._filled] = self._filling
            self._filling, self._reached = bytearray(), 0
            self._filled += 1
            self._changing.notify_all()

    @property
    def _next_bytes(self) -> int:
        """How long the part is that is filled next."""
        return min(self.part_bytes, self.size_bytes - self._filled * self.part_bytes)
