"""Bulk bytes between local files and a store, every one of them hashed on the way.

Knows files, parts and threads; knows nothing about artifacts.  Nothing is read from the
disk a second time for its digest, and memory stays below `AT_ONCE` + 1 parts however big
the files are.
"""

import errno
import hashlib
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Self, TypeVar, cast

from modelmill.spec.errors import DigestMismatch, DoesNotFit, ModelmillError
from modelmill.spec.records import FileRecord
from modelmill.store.multipart import abandon_unknown, once_more_if_lost
from modelmill.store.s3 import ListedObject, PreconditionFailed, PutPart, Range, Store

T = TypeVar("T")

PART_BYTES = 16 * 1024 * 1024
"""Ranges of 16 MiB on 4 threads pulled 740 MB/s verified on two cores, where boto3's own
transfer got 480 unverified."""

THREADS = 4
AT_ONCE = THREADS + 2
"""Parts in memory: one per thread, one being hashed, one waiting."""

ABANDON_SECONDS = 5.0

FILE_MODE = 0o644
"""The reader of a shared volume may be another user than the writer."""

_FIX = "make it again: modelmill run FILE --again STAGE"

OnBytes = Callable[[int], None]
"""Told how many more bytes are done (negative: read again); never by two threads at once."""

Sink = Callable[[int, bytes], None]
"""Takes bytes at an offset; called from several threads, in any order."""


def no_progress(_: int) -> None:
    """Report to nobody."""


def upload_many(
    store: Store, files: Mapping[str, Path], on_bytes: OnBytes = no_progress
) -> tuple[FileRecord, ...]:
    """Upload files and say what they are.

    Small files go side by side, a big one goes in parallel parts.  On any exception,
    Ctrl-C included, no upload in parts is left behind.

    Args:
        store: where to.
        files: local files by key.
        on_bytes: told about progress.

    Returns:
        One record per file in the order of `files`, its path being the key.
    """
    sending = store.stoppable()
    records: dict[str, FileRecord] = {}

    def take(record: FileRecord) -> None:
        on_bytes(record.size_bytes)
        records[record.path] = record

    with ThreadPoolExecutor(THREADS) as pool:
        small = {key: path for key, path in files.items() if path.stat().st_size < PART_BYTES}
        _run(
            pool, sending, (partial(_upload_small, sending, *each) for each in small.items()), take
        )
        for key, path in files.items():
            if key not in small:
                send = partial(_upload_big, key=key, path=path, pool=pool, on_bytes=on_bytes)
                records[key] = once_more_if_lost(sending, key, send)
    return tuple(records[key] for key in files)


def upload(store: Store, key: str, path: Path, on_bytes: OnBytes = no_progress) -> FileRecord:
    """Upload one file and say what it is; its path in the record is the key."""
    return upload_many(store, {key: path}, on_bytes)[0]


def download_many(
    store: Store,
    files: Iterable[tuple[FileRecord, str, Path]],
    on_bytes: OnBytes = no_progress,
) -> None:
    """Download files and compare every byte with what the records say.

    A file gets its final name only after its digest was right; of a failed one nothing
    is left.

    Args:
        store: where from.
        files: what it must be, its key, and where it goes.
        on_bytes: told about progress.

    Raises:
        DigestMismatch: the stored bytes are not the ones recorded, twice.
    """
    wanted = list(files)
    with _Reader(store, on_bytes) as reader:
        reader.run(
            partial(_download, reader, *each) for each in wanted if each[0].size_bytes <= PART_BYTES
        )
        for each in wanted:
            if each[0].size_bytes > PART_BYTES:
                _download(reader, *each)


def download(
    store: Store, key: str, path: Path, record: FileRecord, on_bytes: OnBytes = no_progress
) -> None:
    """Download one file and compare every byte with what the record says."""
    download_many(store, [(record, key, path)], on_bytes)


def download_listed(
    store: Store,
    files: Iterable[tuple[ListedObject, Path]],
    on_bytes: OnBytes = no_progress,
) -> tuple[FileRecord, ...]:
    """Download objects that only a listing describes, and say what came.

    Size and ETag are checked; there is no recorded digest to compare with.

    Raises:
        DigestMismatch: an object has been replaced or removed since it was listed.
    """
    records = []
    with _Reader(store, on_bytes) as reader:
        for listed, path in files:
            with final_name(path) as file:
                sha256 = reader.read(listed.key, listed.size_bytes, sink_of(file), listed.etag)
            records.append(FileRecord(path=listed.key, size_bytes=listed.size_bytes, sha256=sha256))
    return tuple(records)


def verify_many(
    store: Store, files: Iterable[tuple[FileRecord, str]], on_bytes: OnBytes = no_progress
) -> tuple[DigestMismatch, ...]:
    """Read stored objects, compare every byte with the records, and keep nothing.

    Returns:
        One error per object that is not what its record says.
    """
    problems = []
    with _Reader(store, on_bytes) as reader:
        for record, key in files:
            try:
                reader.read_recorded(key, record, _nowhere)
            except DigestMismatch as mismatch:
                problems.append(mismatch)
    return tuple(problems)


def _download(reader: "_Reader", record: FileRecord, key: str, path: Path) -> None:
    with final_name(path) as file:
        reader.read_recorded(key, record, sink_of(file))


class _Reader:
    """Reads objects: small ones side by side, a big one in parallel ranges."""

    def __init__(self, store: Store, on_bytes: OnBytes) -> None:
        self.store = store.stoppable()
        self.pool = ThreadPoolExecutor(THREADS)
        self._on_bytes = on_bytes
        self._telling = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def run(self, jobs: Iterable[Callable[[], None]]) -> None:
        """Read small objects side by side."""
        _run(self.pool, self.store, jobs, lambda _: None)

    def read_recorded(self, key: str, record: FileRecord, sink: Sink) -> None:
        """Read again once on a mismatch: a bit may have flipped on the wire only."""
        try:
            self._read_and_compare(key, record, sink)
        except DigestMismatch:
            self._read_and_compare(key, record, sink)

    def _read_and_compare(self, key: str, record: FileRecord, sink: Sink) -> None:
        sha256 = self.read(key, record.size_bytes, sink)
        if sha256 != record.sha256:
            self._tell(-record.size_bytes)
            raise DigestMismatch(
                f"The stored bytes have the SHA-256 {sha256}; {record.sha256} was committed",
                at=self.store.url_of(key),
                fix=_FIX,
            )

    def read(self, key: str, size_bytes: int, sink: Sink, etag: str = "") -> str:
        """Read one and the same object to its end and return its SHA-256.

        A big one is hashed in order while later ranges arrive.

        Raises:
            DigestMismatch: it is gone, has been replaced, or has another size.
        """
        first = self._first(key, size_bytes, etag)
        if size_bytes <= PART_BYTES:
            # Without the pool, which may be running this very call.
            sink(0, first.body)
            self._tell(size_bytes)
            return hashlib.sha256(first.body).hexdigest()
        digest = hashlib.sha256()
        # A failed object stops its own requests, not those for the next one.
        store = self.store.stoppable()

        def fetch(start: int) -> bytes:
            try:
                answer = store.read_range(key, start, PART_BYTES, first.etag) if start else first
            except PreconditionFailed:
                answer = None
            body = self._expect(key, size_bytes, answer).body
            sink(start, body)
            return body

        def take(body: bytes) -> None:
            digest.update(body)
            self._tell(len(body))

        _run(
            self.pool,
            store,
            (partial(fetch, start) for start in range(0, size_bytes, PART_BYTES)),
            take,
        )
        return digest.hexdigest()

    def _first(self, key: str, size_bytes: int, etag: str) -> Range:
        """Read the first range, which also tells the ETag that the others must have."""
        try:
            # An empty object has no first byte to ask for.
            answer = (
                self.store.read_range(key, 0, PART_BYTES, etag)
                if size_bytes
                else _empty(self.store, key)
            )
        except PreconditionFailed:
            answer = None
        return self._expect(key, size_bytes, answer)

    def _tell(self, count: int) -> None:
        with self._telling:
            self._on_bytes(count)

    def _expect(self, key: str, size_bytes: int, answer: Range | None) -> Range:
        if answer is None or answer.object_bytes != size_bytes:
            found = (
                "is gone or has been replaced"
                if answer is None
                else f"is {answer.object_bytes:,} bytes long"
            )
            raise DigestMismatch(
                f"The stored object {found}; {size_bytes:,} bytes were expected",
                at=self.store.url_of(key),
                fix=_FIX,
            )
        return answer


def _empty(store: Store, key: str) -> Range | None:
    listed = store.head(key)
    return None if listed is None else Range(b"", listed.etag, listed.size_bytes)


def _upload_small(store: Store, key: str, path: Path) -> FileRecord:
    body = path.read_bytes()
    store.put(key, body)
    return FileRecord(path=key, size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def _upload_big(
    store: Store, key: str, path: Path, pool: ThreadPoolExecutor, on_bytes: OnBytes
) -> FileRecord:
    digest = hashlib.sha256()
    sent: list[PutPart] = []
    upload_id = store.start_multipart(key)

    def send(number: int, body: bytes) -> PutPart:
        return store.put_part(key, upload_id, number, body)

    def jobs(file: BinaryIO) -> Iterator[Callable[[], PutPart]]:
        number = 0
        while body := file.read(PART_BYTES):
            number += 1
            digest.update(body)
            yield partial(send, number, body)

    def take(part: PutPart) -> None:
        sent.append(part)
        on_bytes(part.size_bytes)

    try:
        with path.open("rb") as file:
            _run(pool, store, jobs(file), take)
        store.finish_multipart(key, upload_id, sent)
    except BaseException:
        on_bytes(-sum(part.size_bytes for part in sent))
        # The first error is the one to tell; a store that is gone is not waited for.
        with suppress(ModelmillError):
            brief = replace(store, stop=threading.Event(), retry_budget_seconds=ABANDON_SECONDS)
            if not brief.abandon_multipart(key, upload_id):
                abandon_unknown(brief, key, "")
        raise
    size_bytes = sum(part.size_bytes for part in sent)
    return FileRecord(path=key, size_bytes=size_bytes, sha256=digest.hexdigest())


def _run(
    pool: ThreadPoolExecutor,
    store: Store,
    jobs: Iterable[Callable[[], T]],
    take: Callable[[T], None],
) -> None:
    """Run jobs side by side and take their results in order, a bounded number at a time.

    After an exception no job is left running.
    """
    waiting: deque[Future[T]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) >= AT_ONCE:
                take(waiting.popleft().result())
        while waiting:
            take(waiting.popleft().result())
    except BaseException:
        store.stop.set()
        for future in waiting:
            future.cancel()
        wait(waiting)
        raise


@contextmanager
def final_name(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when everything went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with unfinished.open("xb", buffering=0) as file:
            os.fchmod(file.fileno(), FILE_MODE)
            yield cast("BinaryIO", file)
        unfinished.replace(path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DoesNotFit(
            "The disk is full", at=str(path), fix="free some space, or give the stage more"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def sink_of(file: BinaryIO) -> Sink:
    """Write to an open file at any offset, all of what is given."""

    def write(offset: int, body: bytes) -> None:
        view = memoryview(body)
        while view:
            written = os.pwrite(file.fileno(), view, offset)
            view, offset = view[written:], offset + written

    return write


def _nowhere(_offset: int, _body: bytes) -> None:
    """Keep nothing."""
