"""Stored files that are read by ranges, wherever a range begins, and never lie on a disk.

A range has no digest of its own.  So all of a file is read once and compared with its record, and
what is read afterwards is compared, piece by piece, with what was there then.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from modelmill.spec.errors import DataError, DigestMismatch
from modelmill.store.s3 import PreconditionFailed, Store

PIECE_BYTES: Final = 4 * 1024 * 1024
"""Much smaller than a layer, whose tensors are read in another order than they lie in."""
THREADS: Final = 4
AT_ONCE: Final = 6
"""Pieces of one range that are on their way or wait to be taken."""
PIECES_HELD: Final = 12
"""Of all files together: where one tensor ends the next begins."""
TRIES: Final = 2
"""A bit may have flipped on the wire only."""


def piece_digests(body: bytes) -> tuple[bytes, ...]:
    """Give the SHA-256 of each piece of a part of a file."""
    view = memoryview(body)
    starts = range(0, max(1, len(body)), PIECE_BYTES)
    return tuple(hashlib.sha256(view[start : start + PIECE_BYTES]).digest() for start in starts)


class Ranges:
    """Reads pieces of stored files in the background and holds the last few."""

    def __init__(self, store: Store, pool: ThreadPoolExecutor) -> None:
        """Read from a store with some threads."""
        self.store = store
        self._pool = pool
        self._held: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()

    def piece(self, file: "RangedFile", number: int, last: int) -> bytes:
        """Give one piece, and have the next ones up to the last on their way."""
        for each in range(number, min(number + AT_ONCE, last + 1)):
            at = (file.key, each)
            if at not in self._held:
                self._held[at] = self._pool.submit(self._fetch, file, each)
            self._held.move_to_end(at)
        body = self._held[file.key, number].result()
        while len(self._held) > PIECES_HELD:
            self._held.popitem(last=False)
        return body

    def _fetch(self, file: "RangedFile", number: int) -> bytes:
        start = number * PIECE_BYTES
        for _ in range(TRIES):
            try:
                answer = self.store.read_range(file.key, start, PIECE_BYTES)
            except PreconditionFailed:
                answer = None
            if answer is None:
                break
            if hashlib.sha256(answer.body).digest() == file.digests[number]:
                return answer.body
        raise DigestMismatch(
            f"The stored bytes from {start:,} on are no longer those that were there",
            at=self.store.url_of(file.key),
            fix="run the same command again; if it stays, see: modelmill artifacts verify",
        )


@contextmanager
def reading_ranges(store: Store) -> Iterator[Ranges]:
    """Read ranges of a store for a while."""
    stoppable = store.stoppable()
    with ThreadPoolExecutor(THREADS, "ranges") as pool:
        try:
            yield Ranges(stoppable, pool)
        finally:
            stoppable.stop.set()
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class RangedFile:
    """A stored file whose every piece is known by its digest."""

    path: PurePosixPath
    """Inside the artifact."""
    key: str
    size_bytes: int
    digests: Sequence[bytes] = field(repr=False)
    """SHA-256 of each piece."""
    ranges: Ranges = field(repr=False)

    def read_into(self, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes from a place on; not for several threads at once.

        Raises:
            DataError: the file ends before.
            DigestMismatch: the stored bytes have changed.
        """
        end = start + len(view)
        if end > self.size_bytes:
            raise DataError(
                f"the file ends at byte {self.size_bytes:,}, inside a tensor",
                at=self.ranges.store.url_of(self.key),
                fix="copy or save the file again",
            )
        while view:
            number, inside = divmod(start, PIECE_BYTES)
            piece = self.ranges.piece(self, number, (end - 1) // PIECE_BYTES)
            taken = piece[inside : inside + len(view)]
            view[: len(taken)] = taken
            view, start = view[len(taken) :], start + len(taken)
