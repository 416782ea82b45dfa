"""A file on its way to its name: written in parts, in any order, and named when it is right.

Knows files, offsets and locks; knows nothing about stores.  Where a folder for it is given, the
parts outlive the process, and the next one finds them under the file's digest.
"""

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, cast

from modelmill.spec.errors import DoesNotFit
from modelmill.store.crew import PART_BYTES, part_count
from modelmill.store.space import ANOTHER_VOLUME, FULL, make_folder

FILE_MODE: Final = 0o644
"""The reader of a shared volume may be another user than the writer."""

PATIENCE_SECONDS: Final = 1.0
"""A process that has just been killed may hold its locks for another moment."""

LOOK_SECONDS: Final = 0.05

JOURNAL: Final = ".parts"
"""Beside a kept file of several parts: one byte per part, 1 where it has been written."""

Sink = Callable[[int, bytes], None]
"""Takes bytes at an offset; called from several threads, in any order."""


class Landing:
    """One file that is being fetched; closed without having landed, it keeps what it may keep."""

    def __init__(self, path: Path, size_bytes: int, kept: Path | None = None) -> None:
        """Say where the file goes; nothing is opened yet.

        Args:
            path: its final name.
            size_bytes: of the whole file.
            kept: its name on the same volume while it is unfinished, under which a later
                process may go on.
        """
        self._path = path
        self._size_bytes = size_bytes
        self._kept = kept
        self._fd = self._journal_fd = -1
        self._unfinished: Path | None = None
        self._done = b""

    def open(self) -> None:
        """Take up the kept file, unless a live process has it; else begin one of its own."""
        if self._kept is not None:
            self._fd = self._take_up(self._kept)
        if self._fd == -1:
            self._kept = None
            make_folder(self._path.parent)
            self._unfinished = _beside(self._path)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            self._fd = os.open(self._unfinished, flags, FILE_MODE)
        os.fchmod(self._fd, FILE_MODE)
        self._read_journal()

    def _take_up(self, kept: Path) -> int:
        fd = take(kept, PATIENCE_SECONDS)
        if fd != -1 and _is_linked(fd) and os.fstat(fd).st_size != self._size_bytes:
            # It is somebody's file, and has been changed: theirs to keep.
            forget(kept)
            os.close(fd)
            return take(kept)
        return fd

    def _read_journal(self) -> None:
        """Find out which parts are there.  Wrong claims are harmless: the digest decides."""
        count = part_count(self._size_bytes, PART_BYTES)
        is_whole = os.fstat(self._fd).st_size == self._size_bytes
        if self._kept is None:
            self._done = bytes(count)
        elif count == 1 or _is_linked(self._fd):
            self._done = bytes([is_whole]) * count
        else:
            journal = journal_of(self._kept)
            if not is_whole:
                journal.unlink(missing_ok=True)
                os.ftruncate(self._fd, self._size_bytes)
            self._journal_fd = os.open(journal, os.O_RDWR | os.O_CREAT, FILE_MODE)
            self._done = os.pread(self._journal_fd, count, 0).ljust(count, b"\0")

    def present(self, number: int) -> bytes | None:
        """Read a part that an earlier process has written, if it has."""
        if not self._done[number]:
            return None
        body = os.pread(self._fd, PART_BYTES, number * PART_BYTES)
        expected_bytes = min(PART_BYTES, self._size_bytes - number * PART_BYTES)
        return body if len(body) == expected_bytes else None

    def write(self, number: int, body: bytes) -> None:
        """Write a part; called from several threads.

        Raises:
            DoesNotFit: the disk is full.
        """
        with _full_disk_named(self._path):
            _write_all(self._fd, number * PART_BYTES, body)
            if self._journal_fd != -1:
                # After the bytes: a process killed in between writes them once more.
                os.pwrite(self._journal_fd, b"\1", number)

    def forget(self) -> None:
        """Start over, once it is opened again: what is there is not the file."""
        if self._kept is not None:
            forget(self._kept)
        self.close()

    def land(self) -> None:
        """Give the file its name; a kept one keeps its other name too, for a later process."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._kept is None:
            assert self._unfinished is not None
            self._unfinished.replace(self._path)
        else:
            second = _beside(self._path)
            try:
                second.hardlink_to(self._kept)
            except OSError:
                # A file system without hard links.
                self._kept.replace(self._path)
                journal_of(self._kept).unlink(missing_ok=True)
            else:
                second.replace(self._path)
                # Renaming one name of a file to another of its names does nothing.
                second.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of it; harmless when it has been done already."""
        for fd in (self._fd, self._journal_fd):
            if fd != -1:
                os.close(fd)
        self._fd = self._journal_fd = -1
        if self._unfinished is not None:
            self._unfinished.unlink(missing_ok=True)
            self._unfinished = None


def take(path: Path, patience_seconds: float = 0) -> int:
    """Open a file for this process alone, creating it; -1 where that is not possible."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    deadline = time.monotonic() + patience_seconds
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            fd = os.open(path, flags, FILE_MODE)
            if _is_locked_here(fd, path):
                return fd
            os.close(fd)
            if time.monotonic() > deadline:
                break
            time.sleep(LOOK_SECONDS)
    return -1


def _is_locked_here(fd: int, path: Path) -> bool:
    """Lock an open file, unless another has it or it has been removed or moved away."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found, named = os.fstat(fd), path.lstat()
    except OSError:
        return False
    is_at_path = (found.st_dev, found.st_ino) == (named.st_dev, named.st_ino)
    return is_at_path and stat.S_ISREG(found.st_mode)


def forget(kept: Path) -> None:
    """Remove a kept file that this process has taken; another name of it stays as it is."""
    journal_of(kept).unlink(missing_ok=True)
    kept.unlink(missing_ok=True)


def journal_of(kept: Path) -> Path:
    """Name the record of the parts that a kept file has."""
    return kept.with_name(kept.name + JOURNAL)


@contextmanager
def final_name(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when everything went well."""
    make_folder(path.parent)
    unfinished = _beside(path)
    try:
        with _full_disk_named(path):
            with unfinished.open("xb", buffering=0) as file:
                os.fchmod(file.fileno(), FILE_MODE)
                yield cast("BinaryIO", file)
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def sink_of(file: BinaryIO) -> Sink:
    """Write to an open file at any offset, all of what is given."""

    def write(offset: int, body: bytes) -> None:
        _write_all(file.fileno(), offset, body)

    return write


def _write_all(fd: int, offset: int, body: bytes) -> None:
    view = memoryview(body)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DoesNotFit("The disk is full", at=str(path), fix=ANOTHER_VOLUME) from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def _is_linked(fd: int) -> bool:
    """Tell whether a kept file is an input of somebody too, and so must not be written to."""
    return os.fstat(fd).st_nlink > 1
