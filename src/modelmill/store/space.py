"""Whether a volume takes, and has room for, what is about to be written."""

import errno
import os
from pathlib import Path
from typing import Final

from modelmill.spec.errors import DoesNotFit, PermissionRefused

FULL: Final = (errno.ENOSPC, errno.EDQUOT)
ANOTHER_VOLUME: Final = "free some space, or choose a folder on a larger volume"


def check_space(
    folder: Path, needed_bytes: int, limit_bytes: int | None = None, present_bytes: int = 0
) -> None:
    """Refuse to start what the volume cannot hold.

    Args:
        folder: on the volume; need not exist yet.
        needed_bytes: all that will be there at once.
        limit_bytes: the volume's own limit where the file system does not know it: over an
            emptyDir's limit the kubelet evicts, there is no ENOSPC.
        present_bytes: how much of what is needed is there already.

    Raises:
        DoesNotFit: with both sizes.
    """
    room_bytes = free_bytes_of(folder) + present_bytes
    if limit_bytes is not None:
        room_bytes = min(room_bytes, limit_bytes)
    if needed_bytes > room_bytes:
        raise DoesNotFit(
            f"About {_size(needed_bytes)} of disk are needed and {_size(room_bytes)} are free",
            at=str(folder),
            fix="free some space, or choose a folder on a larger volume (a run on this machine: "
            "--home; stages elsewhere: MODELMILL_WORK)",
        )


def make_folder(folder: Path, fix: str = "name another folder") -> None:
    """Make a folder that files are written to, with those above it.

    Args:
        folder: may be there already.
        fix: how to name another one.

    Raises:
        DoesNotFit: the volume is full.
        PermissionRefused: it cannot be made, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise DoesNotFit("The disk is full", at=str(folder), fix=ANOTHER_VOLUME) from error
        raise PermissionRefused(
            f"The folder cannot be made ({error.strerror})", at=str(folder), fix=fix
        ) from error
    if not os.access(folder, os.W_OK):
        raise PermissionRefused("The folder cannot be written to", at=str(folder), fix=fix)


def _size(size_bytes: int) -> str:
    if size_bytes < 2**20:
        return f"{size_bytes / 2**10:,.0f} KiB"
    return f"{size_bytes / 2**20:,.0f} MiB"


def free_bytes_of(folder: Path) -> int:
    """Say how much more the volume of a folder holds, even before the folder exists."""
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
