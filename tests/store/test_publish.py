import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelmill.spec.canonical import canonical_json
from modelmill.spec.errors import DataError, UnsafeArtifact
from modelmill.spec.records import FileRecord, Manifest
from modelmill.store.artifact import (
    Committed,
    Published,
    attempt_prefix,
    commit,
    list_artifacts,
    read_manifest,
)
from modelmill.store.crew import THREADS
from modelmill.store.s3 import Store
from tests.store.conftest import ManifestMaker, Publisher
from tests.store.proxy import Proxy

GOLDEN = Path(__file__).with_name("golden") / "COMMITTED-1.json"
"""A manifest as the first version wrote it; never to be written anew."""

WRITERS = 4
KEYS = 8

Commit = Callable[[Store, Manifest], Published]


def _race(store: Store, make_manifest: ManifestMaker, do_commit: Commit) -> list[list[Published]]:
    """Let several writers commit the same key at the same moment, for several keys."""
    results = []
    with ThreadPoolExecutor(WRITERS) as pool:
        for number in range(KEYS):
            barrier = threading.Barrier(WRITERS)

            def write(manifest: Manifest, barrier: threading.Barrier = barrier) -> Published:
                barrier.wait()
                return do_commit(store, manifest)

            manifests = [make_manifest(f"key{number}") for _ in range(WRITERS)]
            results.append(list(pool.map(write, manifests)))
    return results


def _commit_if_absent_without_condition(store: Store, manifest: Manifest) -> Published:
    """Look first and write then, as SeaweedFS up to 4.16 did inside."""
    present = read_manifest(store, manifest.kind, manifest.key)
    if present is not None:
        return Published("adopted", present)
    body = manifest.model_dump_json().encode()
    store.put(f"artifacts/{manifest.kind}/{manifest.key}/COMMITTED.json", body)
    return Published("won", Committed(manifest, ""))


def _winners(results: list[list[Published]]) -> list[int]:
    return [sum(each.state == "won" for each in writers) for writers in results]


def test_commit_by_twin_writers(store: Store, make_manifest: ManifestMaker) -> None:
    """Of all attempts that commit one key at once, one wins and the others adopt it."""
    results = _race(store, make_manifest, commit)

    assert _winners(results) == [1] * KEYS
    for writers in results:
        assert len({each.committed.sha256 for each in writers}) == 1


def test_race_without_condition(store: Store, make_manifest: ManifestMaker) -> None:
    """The same race has several winners without the condition, so the harness can tell."""
    assert max(_winners(_race(store, make_manifest, _commit_if_absent_without_condition))) > 1


def test_commit_by_twin_processes(store: Store, make_manifest: ManifestMaker) -> None:
    """One of two processes wins each key."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _COMMIT_ALL, store.url],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        manifests = [make_manifest(f"key{number}") for number in range(KEYS)]
        writer.stdin.write("\n".join(each.model_dump_json() for each in manifests))
        writer.stdin.close()
        writer.stdin = None
    states = [writer.communicate()[0].split() for writer in writers]

    assert [Counter(pair) for pair in zip(*states, strict=True)] == (
        [Counter(won=1, adopted=1)] * KEYS
    )


_COMMIT_ALL = """
import sys
from modelmill.spec.records import Manifest
from modelmill.store.artifact import commit
from modelmill.store.address import open_store

store = open_store(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    print(commit(store, Manifest.model_validate_json(line)).state)
"""


def test_commit_when_the_answer_is_lost(
    behind: Store, proxy: Proxy, make_manifest: ManifestMaker
) -> None:
    """A winner whose acknowledgement is lost finds out that it won."""
    proxy.plan("PUT", "lost answer")

    published = commit(behind, make_manifest("key"))

    assert (published.state, proxy.applied) == ("won", ["lost answer"])


def test_commit_when_the_store_is_busy(
    behind: Store, proxy: Proxy, make_manifest: ManifestMaker
) -> None:
    """A burst of 503 longer than the SDK's own patience does not end a commit."""
    proxy.plan("PUT", "503", times=4)

    assert commit(behind, make_manifest("key")).state == "won"
    assert proxy.applied == ["503"] * 4


def test_commit_again(store: Store, make_manifest: ManifestMaker) -> None:
    """A later attempt adopts what is committed and changes nothing."""
    first = commit(store, make_manifest("key"))
    second = commit(store, make_manifest("key"))

    assert second.state == "adopted"
    assert second.committed == first.committed == read_manifest(store, "merge", "key")


def test_read_manifest_of_nothing(store: Store) -> None:
    """What nobody committed does not exist."""
    assert read_manifest(store, "merge", "key") is None


def test_files_without_commit(store: Store) -> None:
    """Files of an attempt that did not commit are not an artifact."""
    store.put("artifacts/merge/key/attempts/a/model.safetensors", b"x")

    assert read_manifest(store, "merge", "key") is None
    assert list(list_artifacts(store)) == []


def test_list_artifacts(store: Store, publish: Publisher) -> None:
    """Every commit is listed once, with kind and key."""
    publish(store, "a", {"x/COMMITTED.json": b"{}"})
    publish(store, "b", {"y": b"1"}, kind="quantize")

    assert sorted(list_artifacts(store)) == [("merge", "a"), ("quantize", "b")]


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b'{"format":2}'])
def test_read_manifest_that_is_no_manifest(store: Store, body: bytes) -> None:
    """An unreadable manifest is an error that names its address."""
    store.put("artifacts/merge/key/COMMITTED.json", body)

    with pytest.raises(DataError) as caught:
        read_manifest(store, "merge", "key")

    assert caught.value.at == f"{store.url}/artifacts/merge/key/COMMITTED.json"


def test_read_manifest_of_another_key(store: Store, make_manifest: ManifestMaker) -> None:
    """A manifest copied to another key is not believed."""
    body = make_manifest("other").model_dump_json().encode()
    store.put("artifacts/merge/key/COMMITTED.json", body)

    with pytest.raises(DataError, match="is about merge other"):
        read_manifest(store, "merge", "key")


@pytest.mark.parametrize(
    "paths", [["../x"], ["/etc/passwd"], ["a\\b"], ["a//b"], ["A", "a"], ["a", "a/b"], ["a", "a"]]
)
def test_read_manifest_with_unsafe_paths(
    store: Store, make_manifest: ManifestMaker, paths: list[str]
) -> None:
    """A manifest cannot lead a reader out of its folder or make two files of one name."""
    files = tuple(FileRecord(path=path, size_bytes=0, sha256="0" * 64) for path in paths)
    body = make_manifest("key", files).model_dump_json().encode()
    store.put("artifacts/merge/key/COMMITTED.json", body)

    with pytest.raises(UnsafeArtifact):
        read_manifest(store, "merge", "key")


def test_manifest_of_thousands_of_files(store: Store, make_manifest: ManifestMaker) -> None:
    """Many small files are one commit like any other."""
    files = tuple(
        FileRecord(path=f"folder-{number % 100}/file-{number}", size_bytes=1, sha256="0" * 64)
        for number in range(2_500)
    )
    manifest = make_manifest("key", files)
    prefix = attempt_prefix("merge", "key", manifest.attempt)
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(lambda file: store.put(f"{prefix}/{file.path}", b"1"), files):
            pass
    published = commit(store, manifest)

    assert read_manifest(store, "merge", "key") == published.committed


def test_manifest_of_the_first_version(store: Store) -> None:
    """What was committed once is read by every later version, and means the same."""
    store.put("artifacts/merge/key/COMMITTED.json", GOLDEN.read_bytes())

    committed = read_manifest(store, "merge", "key")

    assert committed is not None
    assert canonical_json(committed.manifest.model_dump(mode="json")) == GOLDEN.read_bytes()


@pytest.mark.parametrize("change", [{"format": 2}, {"signature": "later"}])
def test_manifest_of_a_later_version(store: Store, change: dict[str, object]) -> None:
    """It is refused, with the one advice that helps."""
    document = json.loads(GOLDEN.read_bytes())
    store.put("artifacts/merge/key/COMMITTED.json", json.dumps({**document, **change}).encode())

    with pytest.raises(DataError, match="written by a later version") as caught:
        read_manifest(store, "merge", "key")

    assert caught.value.exit_code == 65
    assert caught.value.fix.startswith("upgrade modelmill")
