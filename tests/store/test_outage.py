"""A store that is killed and comes back while an artifact is being published."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from threading import Lock, Thread

import pytest

from modelmill.store.address import open_store
from modelmill.store.artifact import attempt_prefix, commit, read_manifest, stage_files, verify
from modelmill.store.transfer import PART_BYTES
from tests.store.conftest import ManifestMaker
from tests.store.proxy import Fault, Proxy, Request
from tests.store.weed import Weed


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """Run a store that may be killed."""
    with Weed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture
def gate(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Stand before it, and know when to kill it."""
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    with closing(Proxy(weed.environment)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy


@pytest.mark.parametrize("moment", ["CreateMultipartUpload", "UploadPart", "COMMITTED.json"])
def test_store_that_is_killed_and_comes_back(
    weed: Weed, gate: Proxy, make_manifest: ManifestMaker, tmp_path: Path, moment: str
) -> None:
    """At the start, in the middle or at the end: the attempt waits, goes on, and wins."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "small").write_bytes(b"x")
    (tmp_path / "in" / "big").write_bytes(Random(0).randbytes(PART_BYTES + 1000))
    deaths: list[Thread] = []
    dying = Lock()

    def kill_once(request: Request) -> Fault | None:
        with dying:
            if not deaths and (request.operation == moment or request.path.endswith(moment)):
                weed.kill()
                deaths.append(Thread(target=weed.start))
                deaths[0].start()
        return None

    gate.choose = kill_once
    store = open_store(f"{weed.url}/{moment}")
    manifest = make_manifest("key", attempt="a")

    files = stage_files(store, attempt_prefix("merge", "key", "a"), tmp_path / "in")
    published = commit(store, manifest.model_copy(update={"files": files}))

    deaths[0].join()
    assert published.state == "won"
    assert read_manifest(store, "merge", "key") == published.committed
    assert verify(store, published.committed) == ()
