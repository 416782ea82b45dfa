"""A file that is sent while it is made and lies nowhere: its bytes wait in memory for their part.

What an earlier process has sent of it need not be made again.  Knows parts; makes no request.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Final

from modelmill.spec.errors import ModelmillError
from modelmill.store.connection import Stopped
from modelmill.store.crew import LOOK_SECONDS, PART_BYTES, part_count
from modelmill.store.objects import PutPart, Span
from modelmill.store.outgoing import part_bytes_of
from modelmill.store.ranges import RangedFile, piece_digests
from modelmill.store.sent import Sent, SentPart

PARTS_WAITING: Final = 1
"""Complete and not yet on their way; whoever has one more waits."""

logger = logging.getLogger(__name__)


class Poured:
    """A file of known length that one thread writes and others send, each byte once."""

    def __init__(
        self, path: str, key: str, size_bytes: int, before: RangedFile | None = None
    ) -> None:
        """Wait for so many bytes.

        Args:
            path: inside the artifact.
            key: where they go.
            size_bytes: of all of it.
            before: the same file as far as an earlier process has sent it.
        """
        self.path, self.key = path, key
        self.size_bytes = size_bytes
        self.part_bytes = part_bytes_of(size_bytes)
        self.left: Sequence[PutPart] = ()
        self.parts_accepted = 0
        """From the first on, with no gap."""
        self._count = part_count(size_bytes, self.part_bytes)
        self._before = before
        self._origin_key = "" if before is None else before.key
        self._taken_bytes = 0
        self._upload_id, self._parts = "", dict[int, PutPart]()
        self._is_known = False
        self._digests: dict[int, tuple[bytes, ...]] = {}
        self._present: dict[int, bytearray] = {}
        self._filling = bytearray()
        self._reached = 0
        self._filled = 0
        self._error: BaseException | None = None
        self._changing = threading.Condition()

    def take(self, size_bytes: int) -> int:
        """Take so many next bytes from what was sent before, as far as it goes; say how many.

        Raises:
            ModelmillError: they could not be sent on.
        """
        taken = 0
        while self._before is not None and taken < size_bytes:
            # To the end of a part: damage behind it does not keep it from being copied.
            in_part = PART_BYTES - self._taken_bytes % PART_BYTES
            left = self._before.size_bytes - self._taken_bytes
            body = memoryview(bytearray(min(in_part, size_bytes - taken, left)))
            if body and self._is_read(self._before, body):
                taken += len(body)
                # First: whoever sends them asks where they are.
                self._taken_bytes += len(body)
                self.write(body)
            else:
                self._before = None
        return taken

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

    def origin(self, number: int) -> Span | None:
        """Say where a part is already that has been read, if it was sent before."""
        start = number * self.part_bytes
        size_bytes = min(self.part_bytes, self.size_bytes - start)
        if start + size_bytes > self._taken_bytes:
            return None
        return Span(self._origin_key, start, size_bytes)

    def accepted(self, upload_id: str, part: PutPart) -> None:
        """Hear that a part is in the store."""
        with self._changing:
            self._upload_id = upload_id
            self._parts[part.number] = part
            while self.parts_accepted + 1 in self._parts:
                self.parts_accepted += 1

    def sent(self) -> Sent:
        """Say what a later process can go on from, which may know of it from now on."""
        parts = self._first_parts()
        self._is_known = True
        return Sent(
            path=self.path,
            size_bytes=self.size_bytes,
            key=self.key,
            upload_id=self._upload_id,
            parts=tuple(
                SentPart(size_bytes=part.size_bytes, etag=part.etag, crc32=part.crc32)
                for part in parts
            ),
            digests=tuple(
                digest.hex() for part in parts for digest in self._digests[part.number - 1]
            ),
        )

    def leave(self) -> None:
        """Let the store keep what a later process can know of, when sending ends early."""
        if self._is_known:
            self.left = self._first_parts()

    def give_up(self, error: BaseException) -> None:
        """Let nobody wait any more; whoever writes gets the error."""
        with self._changing:
            self._error = error
            self._changing.notify_all()

    @property
    def digests(self) -> tuple[bytes, ...]:
        """Give the SHA-256 of each piece; only when all have been sent."""
        return tuple(each for number in range(self._count) for each in self._digests[number])

    def _first_parts(self) -> Sequence[PutPart]:
        with self._changing:
            return [self._parts[number + 1] for number in range(self.parts_accepted)]

    def _is_read(self, before: RangedFile, body: memoryview) -> bool:
        try:
            before.read_into(self._taken_bytes, body)
        except ModelmillError as error:
            logger.info("the rest of %s is made again: %s", self.path, error)
            return False
        return True

    def _hand_over(self) -> None:
        with self._changing:
            # With pauses: a signal that another thread was given is acted on when this one wakes.
            while not self._changing.wait_for(
                lambda: self._error or len(self._present) < PARTS_WAITING, LOOK_SECONDS
            ):
                pass
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
