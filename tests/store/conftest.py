"""One real SeaweedFS for all tests here, and ways to it that are open, damaged or shut."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelmill.spec.names import Kind
from modelmill.spec.records import Device, FileRecord, InputRecord, Manifest
from modelmill.store.address import open_store
from modelmill.store.artifact import Committed, attempt_id, attempt_prefix, commit, stage_files
from modelmill.store.connection import Connection
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.s3 import Store
from tests.store.proxy import Proxy

READ_SECONDS = 1.0
PAUSE_SECONDS = 0.05


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


@pytest.fixture
def proxy(server: EmbeddedStore) -> Iterator[Proxy]:
    """Stand between client and server."""
    between = Proxy(server.environment)
    yield between
    between.close()


@pytest.fixture
def behind(store: Store, proxy: Proxy, aws: pytest.MonkeyPatch) -> Store:
    """Open the same prefix as `store`, through the proxy."""
    aws.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    return open_store(store.url, retry_budget_seconds=20)


@pytest.fixture
def hasty(behind: Store) -> Store:
    """Open the same with little patience for one answer and none for pauses."""
    return replace(behind, connection=Connection("s3://", READ_SECONDS, PAUSE_SECONDS))


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
