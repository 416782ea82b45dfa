"""What pulls have fetched and a later process may need again, in one folder of a volume.

Files are named by their SHA-256, so whoever needs the same bytes finds them, and are hashed
again before they are used, so nobody has to be trusted.  A finished file is the same file as
the one that was asked for (a hard link) and takes no room of its own.

A lock on each file belongs to the process that fetches it, and ends with it.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelmill.spec.records import FileRecord
from modelmill.store.landing import JOURNAL, forget, take
from modelmill.store.space import free_bytes_of

OLD_SECONDS: Final = 24 * 3600.0
"""Whoever did not come back within a day fetches anew."""

KEPT: Final = ".modelmill-kept"
"""Its usual name, in the folder that is filled or beside it."""

_BLOCK_BYTES: Final = 512


@dataclass(frozen=True)
class Kept:
    """A folder of kept files; there is nothing in it that cannot be fetched again."""

    folder: Path

    def name_of(self, file: FileRecord) -> Path:
        """Say where a file is kept."""
        return self.folder / file.sha256

    def present_bytes(self, files: Iterable[FileRecord]) -> int:
        """Say how much of the files is on the disk already."""
        return sum(_disk_bytes(self.folder / digest) for digest in _digests(files))

    def tidy(self, wanted: Iterable[FileRecord], needed_bytes: int) -> None:
        """Remove what nobody has come back for, and, where room is short, all that is not wanted.

        Args:
            wanted: what is about to be pulled.
            needed_bytes: how much room that will take.
        """
        spared = _digests(wanted)
        unwanted = [path for path in self._files() if path.name not in spared]
        for path in sorted(unwanted, key=_changed):
            is_old = time.time() - _changed(path) > OLD_SECONDS
            if is_old or free_bytes_of(self.folder) < needed_bytes:
                _remove(path)

    def drop(self, files: Iterable[FileRecord]) -> None:
        """Keep these no longer: what they were pulled for is done."""
        for digest in _digests(files):
            path = self.folder / digest
            if path.exists():
                _remove(path)
        with suppress(OSError):
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if path.suffix != JOURNAL]


def _digests(files: Iterable[FileRecord]) -> set[str]:
    return {file.sha256 for file in files}


def _remove(path: Path) -> None:
    """Remove a file that no live process is fetching; another name of it stays."""
    fd = take(path)
    if fd == -1:
        return
    forget(path)
    os.close(fd)


def _disk_bytes(path: Path) -> int:
    """Say what a file takes; one that is written in parts has holes."""
    with suppress(OSError):
        return path.lstat().st_blocks * _BLOCK_BYTES
    return 0


def _changed(path: Path) -> float:
    with suppress(OSError):
        return path.lstat().st_mtime
    return time.time()
