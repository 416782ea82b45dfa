"""The parent of an embedded server: keeps it while somebody uses it, then ends it.

Run by path with the standard library only: `python guard.py FOLDER COMMAND...`.  Users hold
`FOLDER/users.lock` shared; the guard holds `FOLDER/server.lock` as long as there is a server,
so that a second one never opens the same data.
"""

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

POLL_SECONDS = 0.1
PR_SET_PDEATHSIG = 1
PORT_ARGUMENT = re.compile(r"-\w+\.port(?:\.grpc)?=(\d+)")


def main(folder: Path, command: list[str]) -> None:
    """Run the command until nobody holds the users' lock, or until it ends by itself."""
    # Out of the terminal's reach: Ctrl-C is for the users, whose last one ends us.
    os.setsid()
    alone = os.open(folder / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(alone, fcntl.LOCK_EX)
    users = os.open(folder / "users.lock", os.O_RDWR)
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
        )
        while server.poll() is None and not _is_unused(users):
            time.sleep(POLL_SECONDS)
        # Not SIGTERM: the filer then drains its own subscriptions for 15 s before it flushes
        # anything, while what was acknowledged survives SIGKILL (4,828 writes, none lost).
        server.kill()
        server.wait()
    for argument in command:
        if port := PORT_ARGUMENT.fullmatch(argument):
            for path in Path("/tmp").glob(f"seaweedfs-*-{port[1]}.sock"):  # noqa: S108
                path.unlink(missing_ok=True)


def _is_unused(users: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _die_with_parent() -> None:
    """Have the kernel end the server even if the guard is killed; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
