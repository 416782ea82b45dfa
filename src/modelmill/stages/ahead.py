"""Files of an output that are sent while the stage still works, such as weights being written.

They lie under the attempt's own prefix, where nobody looks before the commit.  Sending files early
is only for speed: what fails, or changes afterwards, is sent with the rest.  What is poured lies
nowhere else, so there a failure is the stage's.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from modelmill.spec.errors import Interrupted, ModelmillError
from modelmill.spec.records import FileRecord
from modelmill.stages.stop import StopRequested
from modelmill.store.connection import Stopped
from modelmill.store.crew import OnBytes
from modelmill.store.outgoing import Growing
from modelmill.store.poured import Poured
from modelmill.store.ranges import RangedFile
from modelmill.store.s3 import Store
from modelmill.store.transfer import upload

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sent:
    """A file as it was when all of it was there."""

    record: FileRecord
    path: Path
    modified_ns: int

    @property
    def is_unchanged(self) -> bool:
        now = self.path.stat()
        return (now.st_size, now.st_mtime_ns) == (self.record.size_bytes, self.modified_ns)


class Ahead:
    """Sends files one after the other in the background; use as a context manager.

    Leaving it ends what is still being sent, with no upload in parts left open.
    """

    def __init__(self, store: Store, prefix: str, root: Path) -> None:
        """Send to a prefix of a store what lies below `root`."""
        self._store = store
        self._prefix = prefix
        self._root = root
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, "ahead")
        self._handed: dict[str, Future[_Sent | None]] = {}
        self._poured: dict[str, tuple[Poured, Future[FileRecord]]] = {}
        self._failure: BaseException | None = None
        self._telling = threading.Lock()
        self._early_bytes = 0
        self._on_bytes: OnBytes = self._count_early

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End whatever is still being sent; what is poured is left to whoever goes on with it."""
        if isinstance(error, StopRequested | Interrupted):
            for poured, _ in self._poured.values():
                poured.leave()
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def send(self, path: Path, size_bytes: int) -> None:
        """Take over a file that is written from its first byte to its last, or is complete."""
        name = path.relative_to(self._root).as_posix()
        self._handed[name] = self._pool.submit(self._send, name, Growing(path, size_bytes))

    def sent(self, on_bytes: OnBytes) -> Mapping[str, FileRecord]:
        """Wait, and say what is there as it lies in the folder now, by path.

        Args:
            on_bytes: told about what has been sent, and while it waits.
        """
        with self._telling:
            self._on_bytes = on_bytes
            on_bytes(self._early_bytes)
        return {
            name: sent.record
            for name, each in self._handed.items()
            if (sent := each.result()) is not None and sent.is_unchanged
        }

    def pour(self, name: str, size_bytes: int, before: RangedFile | None = None) -> Poured:
        """Begin a file of the output that will lie in no folder.

        Args:
            name: of the file.
            size_bytes: of all of it.
            before: the same file as far as an earlier attempt has sent it.
        """
        poured = Poured(name, f"{self._prefix}/{name}", size_bytes, before)
        store = self._store if before is None else self._store.for_copies()
        self._poured[name] = poured, self._pool.submit(self._send_poured, store, poured)
        return poured

    def poured(self) -> Iterator[tuple[FileRecord, Poured]]:
        """Wait for what has been poured; say what it is, and what its pieces are.

        Raises:
            ModelmillError: it could not be sent.
        """
        for name, (poured, future) in self._poured.items():
            yield future.result().model_copy(update={"path": name}), poured

    def _send_poured(self, store: Store, poured: Poured) -> FileRecord:
        try:
            return upload(store, poured.key, poured, stop=self._stop)
        except BaseException as error:
            # What fails stops what comes after it, whose error says nothing.
            self._failure = self._failure or error
            poured.give_up(self._failure)
            if self._failure is error:
                raise
            raise self._failure from None

    def _send(self, name: str, file: Growing) -> _Sent | None:
        told_bytes = 0

        def tell(count: int) -> None:
            nonlocal told_bytes
            told_bytes += count
            with self._telling:
                self._on_bytes(count)

        try:
            record = upload(self._store, f"{self._prefix}/{name}", file, tell, self._stop)
            return _Sent(record, file.path, file.path.stat().st_mtime_ns)
        except (ModelmillError, Stopped) as error:
            self._failure = self._failure or error
            logger.info("%s is sent with the rest: %s", name, error)
            tell(-told_bytes)
            return None

    def _count_early(self, count: int) -> None:
        self._early_bytes += count
