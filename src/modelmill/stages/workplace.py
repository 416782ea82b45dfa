"""Where an attempt works: a folder of its own, and beside it what an earlier one has fetched.

Knows folders and locks; knows nothing about stages.  What an attempt holds is locked, and the
kernel drops a lock with its process; so what is not locked belongs to nobody and is removed.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelmill.store.kept import KEPT, Kept

PREFIX: Final = "modelmill-"
LOCK: Final = ".lock"
"""In an attempt's own folder, held as long as it lives."""


@dataclass(frozen=True)
class Workplace:
    """Two folders on one volume."""

    own: Path
    """Empty at first; removed at the end."""
    kept: Kept | None
    """What pulls leave for the next attempt; None where that would be lost, or not safe."""


@contextmanager
def workplace(root: Path | None, stage: str) -> Iterator[Workplace]:
    """Make a folder for one attempt, and remove those of attempts that were killed.

    Args:
        root: a folder that attempts share and strangers do not; None for the system's
            temporary one, where nothing is kept: anybody could have put it there.
        stage: part of the folder's name, for people.
    """
    if root is None:
        with tempfile.TemporaryDirectory(
            prefix=f"{PREFIX}{stage}-", ignore_cleanup_errors=True
        ) as own:
            yield Workplace(Path(own), None)
        return
    root.mkdir(parents=True, exist_ok=True)
    lock_fd = -1
    # One at a time, so that nobody takes a folder for abandoned that is not locked yet.
    root_fd = _lock(root / f".{PREFIX}lock", fcntl.LOCK_EX)
    try:
        _remove_abandoned(root)
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{stage}-", dir=root))
        lock_fd = _lock(folder / LOCK, fcntl.LOCK_EX)
    finally:
        os.close(root_fd)
    try:
        yield Workplace(folder, Kept(root / KEPT))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock_fd)


def _remove_abandoned(root: Path) -> None:
    for folder in root.glob(f"{PREFIX}*"):
        with suppress(OSError):
            fd = _lock(folder / LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(fd)


def _lock(path: Path, operation: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, operation)
    except OSError:
        os.close(fd)
        raise
    return fd
