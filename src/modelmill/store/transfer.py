"""Bulk bytes between local files and a store, every one of them hashed on the way.

Knows files and parts; knows nothing about artifacts.  Nothing is read from the disk a second
time for its digest, but for parts that an earlier process has fetched; and memory does not
grow with what is moved (`BUDGET_BYTES`).
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from modelmill.spec.errors import DigestMismatch
from modelmill.spec.records import FileRecord
from modelmill.store.connection import Stopped
from modelmill.store.crew import (
    PART_BYTES,
    Countdown,
    Crew,
    Digest,
    Job,
    OnBytes,
    no_progress,
    part_count,
)
from modelmill.store.kept import Kept
from modelmill.store.landing import Landing
from modelmill.store.multipart import UploadLost, once_more_if_lost
from modelmill.store.objects import ListedObject
from modelmill.store.outgoing import Complete, Outgoing, Source
from modelmill.store.s3 import PreconditionFailed, Store
from modelmill.store.targets import Digests, Nowhere, Target

_FIX = "make it again: modelmill run FILE --again STAGE"


def upload_many(
    store: Store,
    files: Mapping[str, Path | Source],
    on_bytes: OnBytes = no_progress,
    stop: threading.Event | None = None,
) -> tuple[FileRecord, ...]:
    """Upload files side by side, big ones in parts, and say what they are.

    On any exception, Ctrl-C included, no upload in parts is left behind.

    Args:
        store: where to.
        files: local files, or what gives their bytes, by key.
        on_bytes: told about progress.
        stop: ends it when another thread sets it.

    Returns:
        One record per file in the order of `files`, its path being the key.

    Raises:
        DataError: a file changed its size meanwhile.
        Stopped: `stop` was set.
    """
    records: dict[str, FileRecord] = {}

    def send(stoppable: Store) -> None:
        left = {key: file for key, file in files.items() if key not in records}
        with Crew(stoppable.stop, on_bytes) as crew:
            outgoing = [Outgoing(crew, stoppable, key, _source(file)) for key, file in left.items()]
            try:
                crew.run(each.jobs() for each in outgoing)
            except BaseException as error:
                for each in outgoing:
                    each.abandon()
                if isinstance(error, UploadLost):
                    crew.tell(-sum(each.told_bytes for each in outgoing if not each.is_sent))
                raise
            finally:
                records.update({each.key: each.record() for each in outgoing if each.is_sent})

    once_more_if_lost(store, files, send, stop)
    return tuple(records[key] for key in files)


def upload(
    store: Store,
    key: str,
    file: Path | Source,
    on_bytes: OnBytes = no_progress,
    stop: threading.Event | None = None,
) -> FileRecord:
    """Upload one file and say what it is; its path in the record is the key."""
    return upload_many(store, {key: file}, on_bytes, stop)[0]


def download_many(
    store: Store,
    files: Iterable[tuple[FileRecord, str, Path]],
    on_bytes: OnBytes = no_progress,
    kept: Kept | None = None,
) -> None:
    """Download files side by side and compare every byte with what the records say.

    A file gets its final name only after its digest was right; of a failed one nothing
    is left but what is kept.

    Args:
        store: where from.
        files: what it must be, its key, and where it goes.
        on_bytes: told about progress.
        kept: what earlier processes have fetched and later ones may go on from.

    Raises:
        DigestMismatch: the stored bytes are not the ones recorded, twice.
    """
    with _Reading(store, on_bytes, is_patient=False) as reading:
        problems = reading.all(
            _Incoming(
                reading,
                _Wanted(key, record.size_bytes, sha256=record.sha256),
                Landing(path, record.size_bytes, None if kept is None else kept.name_of(record)),
            )
            for record, key, path in files
        )
    if problems:
        raise problems[0]


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
    with _Reading(store, on_bytes, is_patient=False) as reading:
        incoming = [
            _Incoming(
                reading,
                _Wanted(listed.key, listed.size_bytes, etag=listed.etag),
                Landing(path, listed.size_bytes),
            )
            for listed, path in files
        ]
        reading.all(incoming)
    return tuple(each.record() for each in incoming)


def verify_many(
    store: Store, files: Iterable[tuple[FileRecord, str]], on_bytes: OnBytes = no_progress
) -> tuple[DigestMismatch, ...]:
    """Read stored objects, compare every byte with the records, and keep nothing.

    Returns:
        One error per object that is not what its record says.
    """
    with _Reading(store, on_bytes, is_patient=True) as reading:
        return reading.all(
            _Incoming(reading, _Wanted(key, record.size_bytes, sha256=record.sha256), Nowhere())
            for record, key in files
        )


def digests_of_pieces(
    store: Store, files: Iterable[tuple[FileRecord, str]], on_bytes: OnBytes = no_progress
) -> tuple[tuple[bytes, ...], ...]:
    """Compare stored objects with their records, and say what each of their pieces is.

    Returns:
        For each file the SHA-256 of every `PIECE_BYTES`.

    Raises:
        DigestMismatch: the stored bytes are not the ones recorded, twice.
    """
    digests: list[Digests] = []

    def target() -> Digests:
        digests.append(Digests())
        return digests[-1]

    with _Reading(store, on_bytes, is_patient=False) as reading:
        problems = reading.all(
            _Incoming(reading, _Wanted(key, record.size_bytes, sha256=record.sha256), target())
            for record, key in files
        )
    if problems:
        raise problems[0]
    return tuple(each.in_order() for each in digests)


def _source(file: Path | Source) -> Source:
    return Complete(file, file.stat().st_size) if isinstance(file, Path) else file


class _Reading:
    """One transfer from the store; use as a context manager."""

    def __init__(self, store: Store, on_bytes: OnBytes, *, is_patient: bool) -> None:
        self.store = store.stoppable()
        self.crew = Crew(self.store.stop, on_bytes)
        self.is_patient = is_patient
        """A file that is gone does not keep the others from being read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.crew.__exit__()

    def all(self, files: Iterable["_Incoming"]) -> tuple[DigestMismatch, ...]:
        """Read files, once more where a digest is wrong: a bit may have flipped on the wire only.

        Returns:
            One error per file that is not what it should be.
        """
        begun: list[_Incoming] = []

        def begin(file: _Incoming) -> Iterator[Job]:
            begun.append(file)
            return file.jobs()

        try:
            self.crew.run(begin(file) for file in files)
            doubtful = [file for file in begun if file.is_doubtful]
            self.crew.run(file.jobs() for file in doubtful)
        finally:
            for file in begun:
                file.target.close()
        return tuple(file.problem for file in begun if file.problem is not None)


@dataclass(frozen=True)
class _Wanted:
    """An object, and how to tell that it is the right one."""

    key: str
    size_bytes: int
    sha256: str = ""
    etag: str = ""


class _Incoming:
    """One file on its way from the store."""

    def __init__(self, reading: _Reading, wanted: _Wanted, target: Target) -> None:
        self._reading = reading
        self._store = reading.store
        self._wanted = wanted
        self._count = part_count(wanted.size_bytes, PART_BYTES)
        self._etag = wanted.etag
        self._asking = threading.Lock()
        self.target = target
        self.problem: DigestMismatch | None = None
        self.is_doubtful = False
        """Its digest was wrong."""

    def jobs(self) -> Iterator[Job]:
        """Bring each part; with the last, compare."""
        self.problem = None
        self._left = Countdown(self._count)
        self._digest = Digest(self._store.stop)
        self.target.open()
        for number in range(self._count):
            yield Job(min(PART_BYTES, self._wanted.size_bytes), partial(self._bring, number))

    def record(self) -> FileRecord:
        """Say what came."""
        return FileRecord(
            path=self._wanted.key,
            size_bytes=self._wanted.size_bytes,
            sha256=self._digest.hexdigest(),
        )

    def _bring(self, number: int) -> None:
        try:
            body = self.target.present(number)
            if body is None:
                body = self._fetch(number)
                self.target.write(number, body)
            self._digest.add(number, body)
        except DigestMismatch as problem:
            self.problem = problem
            self._digest.give_up()
            if not self._reading.is_patient:
                raise
        except Stopped:
            if self.problem is None:
                raise
        else:
            self._reading.crew.tell(len(body))
            if self._left.is_last():
                self._compare()

    def _compare(self) -> None:
        sha256 = self._digest.hexdigest()
        if self._wanted.sha256 in ("", sha256):
            self.target.land()
            return
        self.target.forget()
        self._reading.crew.tell(-self._wanted.size_bytes)
        self.is_doubtful = True
        self.problem = self._mismatch(
            f"bytes have the SHA-256 {sha256}; {self._wanted.sha256} was committed"
        )

    def _fetch(self, number: int) -> bytes:
        """Read one part of one and the same object.

        Raises:
            DigestMismatch: it is gone, has been replaced, or has another size.
        """
        try:
            if self._wanted.size_bytes == 0:
                # An empty object has no first byte to ask for.
                self._state()
                return b""
            etag = self._etag if self._count == 1 else self._state()
            answer = self._store.read_range(self._wanted.key, number * PART_BYTES, PART_BYTES, etag)
        except PreconditionFailed:
            answer = None
        if answer is None:
            raise self._gone()
        self._check_size(answer.object_bytes)
        return answer.body

    def _state(self) -> str:
        """Ask once which state of the object all its parts must be of."""
        with self._asking:
            if not self._etag:
                found = self._store.head(self._wanted.key)
                if found is None:
                    raise self._gone()
                self._check_size(found.size_bytes)
                self._etag = found.etag
            return self._etag

    def _check_size(self, found_bytes: int) -> None:
        wanted_bytes = self._wanted.size_bytes
        if found_bytes != wanted_bytes:
            raise self._mismatch(
                f"object is {found_bytes:,} bytes long; {wanted_bytes:,} bytes were expected"
            )

    def _gone(self) -> DigestMismatch:
        wanted_bytes = self._wanted.size_bytes
        return self._mismatch(
            f"object is gone or has been replaced; {wanted_bytes:,} bytes were expected"
        )

    def _mismatch(self, what: str) -> DigestMismatch:
        return DigestMismatch(
            f"The stored {what}", at=self._store.url_of(self._wanted.key), fix=_FIX
        )
