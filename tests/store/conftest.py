"""One real SeaweedFS for all tests here, and a proxy that can damage what passes through it."""

import http.client
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from modelmill.spec.names import Kind
from modelmill.spec.records import Device, FileRecord, InputRecord, Manifest
from modelmill.store.artifact import Committed, attempt_id, attempt_prefix, commit, stage_files
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.s3 import Store, open_store

Fault = Literal["503", "lost answer", "flip down", "cut"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """Run one server for all tests."""
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as embedded:
        yield embedded


@pytest.fixture
def aws(server: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Point the AWS SDK's variables at the server; a test may change them again."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture(scope="session")
def opened(server: EmbeddedStore) -> Store:
    """Open the bucket once: making a client costs more than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        return open_store(server.url, retry_budget_seconds=20)


@pytest.fixture
def store(opened: Store, aws: pytest.MonkeyPatch) -> Store:
    """Use a prefix that no other test uses."""
    return replace(opened, prefix=uuid.uuid4().hex)


class Proxy:
    """Forwards S3 requests and applies one planned fault to each that matches."""

    def __init__(self, target: str) -> None:
        self.target = target.removeprefix("http://")
        self.faults: list[tuple[str, Fault]] = []
        self.applied: list[Fault] = []
        self.seen: list[str] = []
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def plan(self, method: str, fault: Fault, times: int = 1) -> None:
        """Damage the next requests of this method."""
        self.faults += [(method, fault)] * times

    def take(self, method: str) -> Fault | None:
        """Use up the next planned fault if it is for this method."""
        self.seen.append(method)
        if self.faults and self.faults[0][0] == method:
            fault = self.faults.pop(0)[1]
            self.applied.append(fault)
            return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: ClassVar[Proxy]

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.owner.take(self.command)
        if fault == "503":
            self.send_response(503)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection(self.owner.target)
        connection.request(self.command, self.path, body, dict(self.headers.items()))
        answer = connection.getresponse()
        content = bytearray(answer.read())
        connection.close()
        if fault == "lost answer":
            self.close_connection = True
            return
        if fault == "flip down":
            content[len(content) // 2] ^= 1
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        self.close_connection = fault == "cut"

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def proxy(server: EmbeddedStore) -> Iterator[Proxy]:
    """Stand between client and server."""
    between = Proxy(server.environment["AWS_ENDPOINT_URL"])
    yield between
    between.server.shutdown()
    between.server.server_close()


@pytest.fixture
def behind(store: Store, proxy: Proxy, aws: pytest.MonkeyPatch) -> Store:
    """Open the same prefix as `store`, through the proxy."""
    aws.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    return open_store(store.url, retry_budget_seconds=20)


ManifestMaker = Callable[..., Manifest]


@pytest.fixture
def make_manifest() -> ManifestMaker:
    """Make manifests that differ in what a test cares about only."""

    def make(
        key: str,
        files: tuple[FileRecord, ...] = (),
        *,
        kind: Kind = "merge",
        attempt: str = "",
        inputs: dict[str, InputRecord] | None = None,
    ) -> Manifest:
        return Manifest(
            kind=kind,
            key=key,
            stage=kind,
            run="test",
            attempt=attempt or attempt_id(),
            created="2026-01-01T00:00:00Z",
            settings={},
            inputs=inputs or {},
            versions={},
            device=Device(accelerator="cpu", name="test"),
            files=files,
        )

    return make


Publisher = Callable[..., Committed]


@pytest.fixture
def publish(make_manifest: ManifestMaker, tmp_path: Path) -> Publisher:
    """Publish files given as bytes by path, the way a stage does."""

    def run(
        store: Store,
        key: str,
        files: dict[str, bytes],
        *,
        kind: Kind = "merge",
        inputs: dict[str, InputRecord] | None = None,
    ) -> Committed:
        attempt = attempt_id()
        root = tmp_path / attempt
        for path, body in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(body)
        records = stage_files(store, attempt_prefix(kind, key, attempt), root)
        manifest = make_manifest(key, records, kind=kind, attempt=attempt, inputs=inputs)
        return commit(store, manifest).committed

    return run
