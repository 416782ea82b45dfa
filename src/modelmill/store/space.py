"""Whether a volume has room for what is about to be written."""

import os
from pathlib import Path

from modelmill.spec.errors import DoesNotFit


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
            f"About {needed_bytes / 2**20:,.0f} MiB of disk are needed "
            f"and {room_bytes / 2**20:,.0f} MiB are free",
            at=str(folder),
            fix="free some space, or choose a folder on a larger volume (stages: MODELMILL_WORK)",
        )


def free_bytes_of(folder: Path) -> int:
    """Say how much more the volume of a folder holds, even before the folder exists."""
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
