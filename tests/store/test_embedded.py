import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelmill.spec.errors import PermissionRefused
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.s3 import Store

GONE_SECONDS = 20
"""Far more than it takes; only a failure waits this long."""

_USER = """
import os, sys, time
from pathlib import Path
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.address import open_store

with EmbeddedStore(Path(sys.argv[1])) as embedded:
    os.environ.update(embedded.environment)
    store = open_store(embedded.url)
    print(store.get("key") and store.get("key").body.decode(), flush=True)
    store.put("key", b"kept")
    print("ready", flush=True)
    time.sleep(600)
"""


def _servers(folder: Path) -> list[int]:
    """Find the server processes of a folder; the guard has the same words in its arguments."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                command = (process / "cmdline").read_bytes()
                name = (process / "exe").readlink().name
            except OSError:
                continue
            if name == "weed" and f"-dir={folder.resolve()}/".encode() in command:
                found.append(int(process.name))
    return found


def _wait_until_gone(folder: Path) -> list[int]:
    deadline = time.monotonic() + GONE_SECONDS
    while (left := _servers(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_server_when_its_user_dies(tmp_path: Path, aws: pytest.MonkeyPatch) -> None:
    """No server outlives its last user, killed or by Ctrl-C; what was stored is kept."""
    for end, expected in ((signal.SIGKILL, b"None\n"), (signal.SIGINT, b"kept\n")):
        user = subprocess.Popen(
            [sys.executable, "-c", _USER, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with user:
            assert user.stdout is not None
            assert user.stdout.readline() == expected
            assert user.stdout.readline() == b"ready\n"
            assert len(_servers(tmp_path)) == 1
            # To the whole group, as a terminal does.
            os.killpg(user.pid, end)
        assert _wait_until_gone(tmp_path) == []


def test_server_with_two_users(server: EmbeddedStore, store: Store) -> None:
    """A second user joins the running server and does not take it along."""
    before = _servers(server.folder)
    with EmbeddedStore(server.folder) as second:
        assert second.environment["AWS_ENDPOINT_URL"] == server.environment["AWS_ENDPOINT_URL"]

    assert _servers(server.folder) == before
    store.check()


def test_server_when_it_crashed(tmp_path: Path, aws: pytest.MonkeyPatch) -> None:
    """A crashed server is replaced at the same address, so that its other users recover."""
    with EmbeddedStore(tmp_path) as first:
        os.kill(_servers(tmp_path)[0], signal.SIGKILL)
        with EmbeddedStore(tmp_path) as second:
            assert second.environment["AWS_ENDPOINT_URL"] == first.environment["AWS_ENDPOINT_URL"]
    assert _servers(tmp_path) == []


def test_server_listens_on_loopback_only(server: EmbeddedStore) -> None:
    """Nothing outside this machine can reach any port of the server."""
    (pid,) = _servers(server.folder)
    sockets = {
        target.name.removeprefix("socket:[").removesuffix("]")
        for each in Path(f"/proc/{pid}/fd").iterdir()
        if (target := each.readlink()).name.startswith("socket:")
    }
    listening = [
        fields[1].split(":")[0]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if (fields := line.split())[3] == "0A" and fields[9] in sockets
    ]

    loopback = socket.inet_aton("127.0.0.1")[::-1].hex().upper()
    assert len(listening) == 8
    assert set(listening) == {loopback}


def test_server_files_are_private(server: EmbeddedStore) -> None:
    """Nobody else can read the credentials."""
    for name in ("server.json", "identities.json"):
        assert (server.folder / name).stat().st_mode & 0o777 == 0o600
    assert json.loads((server.folder / "server.json").read_text())["secret_key"]


@pytest.mark.parametrize(
    "home",
    ["file/x", "/proc/x", "/sys/x"],
)
def test_folder_that_can_hold_no_store(tmp_path: Path, home: str) -> None:
    """A file in the way, and places of the kernel's own, are named with what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(PermissionRefused) as caught, EmbeddedStore(tmp_path / home / "store"):
        pass
    assert caught.value.at == str(tmp_path / home / "store")
    assert "--home DIR" in caught.value.fix
