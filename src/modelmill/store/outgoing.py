"""One file on its way to a store: read once, hashed in the order of its parts, sent in any.

Knows parts and uploads; knows nothing about other files.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from modelmill.spec.errors import DataError, ModelmillError
from modelmill.spec.records import FileRecord
from modelmill.store.connection import Stopped
from modelmill.store.crew import PART_BYTES, Countdown, Crew, Digest, Job, part_count
from modelmill.store.multipart import UploadLost, abandon_unknown
from modelmill.store.objects import PutPart, Span
from modelmill.store.s3 import Store

MOST_PARTS: Final = 10_000
"""S3's limit for one upload."""

ABANDON_SECONDS: Final = 5.0


LOOK_SECONDS: Final = 0.05
"""How often a file that grows is looked at."""

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Where the bytes of a file come from."""

    @property
    def size_bytes(self) -> int:
        """Say how long the file is, or will be."""
        ...

    @property
    def left(self) -> Sequence[PutPart]:
        """Give the parts that somebody goes on from when sending ends early."""
        ...

    def read(self, start: int, length: int, stop: threading.Event) -> bytes:
        """Give so many bytes from a place on, fewer where the file ends before; wait for them.

        Raises:
            DataError: the file has changed.
            Stopped: `stop` was set while it waited.
        """
        ...

    def origin(self, number: int) -> Span | None:
        """Say where the store has a part already that has been read; parts count from 0."""
        ...

    def accepted(self, upload_id: str, part: PutPart) -> None:
        """Hear that a part is in the store."""
        ...


class OnDisk:
    """A file of this machine: what is lost on the way can be sent again."""

    left: Sequence[PutPart] = ()

    def origin(self, number: int) -> None:
        """Have nothing in the store."""

    def accepted(self, upload_id: str, part: PutPart) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Complete(OnDisk):
    """A file that nobody writes any more."""

    path: Path
    size_bytes: int

    def read(self, start: int, length: int, stop: threading.Event) -> bytes:
        """Give bytes at once."""
        del stop
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            body = file.read(length)
        if len(body) != min(length, self.size_bytes - start):
            raise DataError(
                "The file changed while it was being uploaded",
                at=str(self.path),
                fix="run the same command again when nothing writes to it",
            )
        return body


@dataclass(frozen=True)
class Growing(OnDisk):
    """A file that somebody writes from its first byte to its last while it is sent."""

    path: Path
    size_bytes: int
    """Of all of it."""

    def read(self, start: int, length: int, stop: threading.Event) -> bytes:
        """Give bytes as soon as they are there."""
        end_bytes = min(self.size_bytes, start + length)
        while self.path.stat().st_size < end_bytes:
            if stop.wait(LOOK_SECONDS):
                raise Stopped
        return Complete(self.path, self.size_bytes).read(start, length, stop)


class Outgoing:
    """One file on its way to the store."""

    def __init__(self, crew: Crew, store: Store, key: str, file: Source) -> None:
        self._crew = crew
        self._store = store
        self.key = key
        self._file, self._size_bytes = file, file.size_bytes
        self._part_bytes = part_bytes_of(self._size_bytes)
        self._count = part_count(self._size_bytes, self._part_bytes)
        self._left = Countdown(self._count)
        self._digest = Digest(crew.stop)
        self._upload_id = ""
        self._starting = threading.Lock()
        self._sent: list[PutPart] = []
        self.is_sent = False

    def jobs(self) -> Iterator[Job]:
        """Read, hash and send each part."""
        if self._count == 1:
            yield Job(self._size_bytes, self._send_whole)
            return
        for number in range(self._count):
            yield Job(self._part_bytes, partial(self._send_part, number))

    def record(self) -> FileRecord:
        """Say what was sent."""
        return FileRecord(
            path=self.key, size_bytes=self._size_bytes, sha256=self._digest.hexdigest()
        )

    @property
    def told_bytes(self) -> int:
        """How many bytes of a file in parts have been told about as sent."""
        return sum(part.size_bytes for part in self._sent)

    def abandon(self) -> None:
        """Leave no upload open that has been begun and not finished.

        Its parts are gone then, but for those that somebody goes on from: they become an object,
        which is shorter than the file.
        """
        if not self._upload_id:
            return
        # The first error is the one to tell; a store that is gone is not waited for.
        brief = replace(self._store, stop=threading.Event(), retry_budget_seconds=ABANDON_SECONDS)
        with suppress(ModelmillError, UploadLost):
            if self._file.left:
                brief.finish_multipart(self.key, self._upload_id, self._file.left)
            elif not brief.abandon_multipart(self.key, self._upload_id):
                abandon_unknown(brief, self.key, "")

    def _send_whole(self) -> None:
        body = self._read(0)
        self._digest.add(0, body)
        self._store.put(self.key, body)
        self.is_sent = True
        self._crew.tell(len(body))

    def _send_part(self, number: int) -> None:
        body = self._read(number)
        self._digest.add(number, body)
        upload_id = self._start()
        part = self._bring(upload_id, number, body)
        self._file.accepted(upload_id, part)
        self._sent.append(part)
        self._crew.tell(len(body))
        if self._left.is_last():
            parts = sorted(self._sent, key=lambda part: part.number)
            self._store.finish_multipart(self.key, upload_id, parts)
            self.is_sent, self._upload_id = True, ""

    def _bring(self, upload_id: str, number: int, body: bytes) -> PutPart:
        """Have the store copy a part that it has, if it can; else send it."""
        origin = self._file.origin(number)
        if origin is not None:
            try:
                return self._store.copy_part(self.key, upload_id, number + 1, origin)
            except ModelmillError as error:
                logger.info("part %d of %s is sent: %s", number + 1, self.key, error)
        return self._store.put_part(self.key, upload_id, number + 1, body)

    def _start(self) -> str:
        """Begin the upload: not in the main thread, where a signal could lose its id."""
        with self._starting:
            if not self._upload_id:
                self._upload_id = self._store.start_multipart(self.key)
            return self._upload_id

    def _read(self, number: int) -> bytes:
        return self._file.read(number * self._part_bytes, self._part_bytes, self._crew.stop)


def part_bytes_of(size_bytes: int) -> int:
    """Say how large the parts of a file are."""
    part_bytes = PART_BYTES
    while size_bytes > MOST_PARTS * part_bytes:
        part_bytes *= 2
    return part_bytes
