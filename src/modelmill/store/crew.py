"""Parts of files moved side by side, with bounded memory and digests in the right order.

Knows threads and turns; knows nothing about stores, keys or what is moved.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final, Self, TypeVar

from modelmill.store.connection import Stopped

T = TypeVar("T")

PART_BYTES: Final = 16 * 1024 * 1024
THREADS: Final = 8
"""One stream of a distant store is slow, and SHA-256 of one file is one thread's work."""

FILES_AT_ONCE: Final = 4
"""Files whose parts take turns, so that as many digests grow at once."""

BUDGET_BYTES: Final = 160 * 1024 * 1024
"""Parts in memory, of all files together."""

AT_ONCE: Final = 4 * THREADS
"""Small files on their way: enough that a slow one does not leave threads idle."""

LOOK_SECONDS: Final = 0.2

OnBytes = Callable[[int], None]
"""Told how many more bytes are done (negative: read again); never by two threads at once."""


def no_progress(_: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Job:
    """One part of a file, and what it takes of the memory while it runs."""

    size_bytes: int
    run: Callable[[], None]


class Crew:
    """Threads that move parts; use as a context manager."""

    def __init__(self, stop: threading.Event, on_bytes: OnBytes) -> None:
        self.stop = stop
        self._on_bytes = on_bytes
        self._telling = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS)
        self._changing = threading.Condition()
        self._running = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def run(self, files: Iterable[Iterator[Job]]) -> None:
        """Do the jobs of all files; those of one file are begun in their order.

        After an exception, Ctrl-C included, no job is left running.

        Raises:
            Stopped: another thread has set `stop`.
        """
        waiting: deque[tuple[Future[None], int]] = deque()
        taken_bytes = 0

        def finish_first() -> int:
            future, size_bytes = waiting[0]
            future.result()
            waiting.popleft()
            return size_bytes

        try:
            for job in _in_turns(files, FILES_AT_ONCE):
                # Begun in order, a part never waits for room that a later one has.
                while waiting and (
                    len(waiting) >= AT_ONCE or taken_bytes + job.size_bytes > BUDGET_BYTES
                ):
                    taken_bytes -= finish_first()
                taken_bytes += job.size_bytes
                waiting.append((self._pool.submit(self._do, job), job.size_bytes))
            while waiting:
                finish_first()
        except BaseException:
            for future, _ in waiting:
                future.cancel()
            # Not for futures: a signal that comes while a thread is started leaves a job that
            # nobody has one of.
            with self._changing:
                self.stop.set()
                self._changing.wait_for(lambda: not self._running)
            raise

    def _do(self, job: Job) -> None:
        """Do a job, unless it is too late to begin one."""
        with self._changing:
            if self.stop.is_set():
                raise Stopped
            self._running += 1
        try:
            job.run()
        finally:
            with self._changing:
                self._running -= 1
                self._changing.notify_all()

    def tell(self, count: int) -> None:
        """Pass on how many more bytes are done."""
        with self._telling:
            self._on_bytes(count)


class Digest:
    """The SHA-256 of a file whose parts come in any order: each waits for its turn.

    A part can wait only for earlier ones, which have been begun before it.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._is_lost = False
        self._sha256 = hashlib.sha256()
        self._next = 0
        self._turn = threading.Condition()

    def add(self, number: int, body: bytes) -> None:
        """Add a part, counted from 0, once all before it have been added.

        Raises:
            Stopped: one of them will not come.
        """
        with self._turn:
            while not self._turn.wait_for(lambda: self._next == number, LOOK_SECONDS):
                if self._is_lost or self._stop.is_set():
                    raise Stopped
        # Nobody else has this turn, and other files are hashed meanwhile.
        self._sha256.update(body)
        with self._turn:
            self._next += 1
            self._turn.notify_all()

    def give_up(self) -> None:
        """Let nobody wait any more."""
        self._is_lost = True

    def hexdigest(self) -> str:
        """Say what it is; only when all parts have been added."""
        return self._sha256.hexdigest()


class Countdown:
    """How many parts of a file are still to come."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._lock = threading.Lock()

    def is_last(self) -> bool:
        """Count one, and tell whether it was the last."""
        with self._lock:
            self._left -= 1
            return self._left == 0


def part_count(size_bytes: int, part_bytes: int) -> int:
    """Say in how many parts a file is moved; an empty one in one."""
    return max(1, -(-size_bytes // part_bytes))


def _in_turns(iterators: Iterable[Iterator[T]], at_once: int) -> Iterator[T]:
    """Take one from each of a few iterators in turn; where one ends the next begins."""
    coming = iter(iterators)
    present = deque(islice(coming, at_once))
    while present:
        iterator = present.popleft()
        try:
            item = next(iterator)
        except StopIteration:
            present.extend(islice(coming, 1))
            continue
        present.append(iterator)
        yield item
