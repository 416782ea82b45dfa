import hashlib
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from modelmill.spec.errors import DigestMismatch, DoesNotFit, InputMissing, UnsafeArtifact
from modelmill.spec.records import FileRecord
from modelmill.store.artifact import attempt_prefix, pull, stage_files, verify
from modelmill.store.crew import PART_BYTES
from modelmill.store.landing import final_name
from modelmill.store.s3 import Store
from modelmill.store.transfer import download, download_many, upload, upload_many
from tests.store.conftest import Publisher
from tests.store.proxy import Proxy

BIG_BYTES = PART_BYTES + 12_345


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a file of two parts."""
    path = tmp_path_factory.mktemp("big") / "model.safetensors"
    path.write_bytes(random.Random(0).randbytes(BIG_BYTES))
    return path


def _open_uploads(store: Store) -> int:
    answer = store.client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix)
    return len(answer.get("Uploads", []))


@pytest.mark.parametrize("size_bytes", [0, 1, PART_BYTES - 1, PART_BYTES, BIG_BYTES])
def test_round_trip(store: Store, big: Path, tmp_path: Path, size_bytes: int) -> None:
    """What comes back is what was sent, with the digest and the mode that readers need."""
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(big.read_bytes()[:size_bytes])
    sent: list[int] = []
    received: list[int] = []

    record = upload(store, "file", source, sent.append)
    download(store, "file", target, record, received.append)

    assert record == FileRecord(
        path="file",
        size_bytes=size_bytes,
        sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
    )
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o644
    assert (sum(sent), sum(received)) == (size_bytes, size_bytes)
    assert _open_uploads(store) == 0


def test_many_files_at_once(store: Store, big: Path, tmp_path: Path) -> None:
    """Big and small files go side by side, and each is what it was."""
    whole = big.read_bytes()
    sizes = {"a": BIG_BYTES, "b": 10, "c": BIG_BYTES - 1, "d": 0, "e": PART_BYTES, "f": BIG_BYTES}
    sources = {name: tmp_path / name for name in sizes}
    for name, path in sources.items():
        path.write_bytes(whole[: sizes[name]])

    records = upload_many(store, sources)
    pulled = tmp_path / "pulled"
    download_many(store, [(each, each.path, pulled / each.path) for each in records])

    assert [record.path for record in records] == list(sizes)
    assert {path.name: path.read_bytes() for path in pulled.iterdir()} == {
        name: whole[:size] for name, size in sizes.items()
    }


def test_upload_interrupted(store: Store, big: Path) -> None:
    """Ctrl-C in the middle of big uploads leaves no parts and no object behind."""

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload_many(store, {"file": big, "beside": big}, interrupt)

    assert (_open_uploads(store), store.head("file"), store.head("beside")) == (0, None, None)
    assert upload(store, "file", big).size_bytes == BIG_BYTES


def test_upload_interrupted_while_a_thread_is_started(
    behind: Store, proxy: Proxy, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that began and that nobody knows of leaves no parts behind either."""
    unknown: list[threading.Thread] = []

    class Interrupted(ThreadPoolExecutor):
        """Starts a thread and is interrupted before it has told anybody, as by a signal."""

        def submit(self, *given: Any, **named: Any) -> Any:
            unknown.append(threading.Thread(target=given[0], args=given[1:], daemon=True))
            unknown[0].start()
            while not proxy.seen["CreateMultipartUpload"]:
                time.sleep(0.01)
            raise KeyboardInterrupt

    monkeypatch.setattr("modelmill.store.crew.ThreadPoolExecutor", Interrupted)
    proxy.plan("CreateMultipartUpload", "delay")
    with pytest.raises(KeyboardInterrupt):
        upload(behind, "file", big)
    unknown[0].join()
    assert (_open_uploads(behind), behind.head("file")) == (0, None)


def test_open_uploads_are_seen(store: Store) -> None:
    """An upload that nobody abandons is seen by the check above."""
    upload_id = store.start_multipart("file")
    assert _open_uploads(store) == 1
    store.abandon_multipart("file", upload_id)
    assert _open_uploads(store) == 0


@pytest.mark.parametrize("size_bytes", [100, BIG_BYTES])
def test_pull_of_changed_bytes(
    store: Store, publish: Publisher, big: Path, tmp_path: Path, size_bytes: int
) -> None:
    """One flipped bit in the store is noticed, and nothing gets the final name."""
    body = big.read_bytes()[:size_bytes]
    committed = publish(store, "key", {"model": body})
    flipped = bytearray(body)
    flipped[-1] ^= 1
    damaged = tmp_path / "damaged"
    damaged.write_bytes(flipped)
    prefix = attempt_prefix("merge", "key", committed.manifest.attempt)
    upload(store, f"{prefix}/model", damaged)

    with pytest.raises(DigestMismatch) as caught:
        pull(store, committed, tmp_path / "out")

    assert caught.value.at == f"{store.url}/{prefix}/model"
    assert list((tmp_path / "out").iterdir()) == []
    assert len(verify(store, committed)) == 1


@pytest.mark.parametrize("size_bytes", [100, BIG_BYTES])
def test_download_when_a_bit_flips_on_the_wire(
    behind: Store, proxy: Proxy, big: Path, tmp_path: Path, size_bytes: int
) -> None:
    """Damage on the wire costs a second reading and is never accepted."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(big.read_bytes()[:size_bytes])
    record = upload(behind, "file", source)
    proxy.plan("GET", "flip down")

    download(behind, "file", target, record)

    assert target.read_bytes() == source.read_bytes()
    assert proxy.applied == ["flip down"]


def test_ranged_read_when_a_bit_flips_on_the_wire(
    store: Store, behind: Store, proxy: Proxy
) -> None:
    """The store's client alone accepts a damaged range, so the digest is what protects."""
    store.put("file", b"x" * 1000)
    proxy.plan("GET", "flip down")

    answer = behind.read_range("file", 0, 1000)

    assert answer is not None
    assert answer.body != b"x" * 1000


def test_download_when_an_answer_is_cut(
    store: Store, behind: Store, proxy: Proxy, tmp_path: Path
) -> None:
    """A cut answer is asked for again."""
    store.put("file", b"x" * 1000)
    record = FileRecord(
        path="file", size_bytes=1000, sha256=hashlib.sha256(b"x" * 1000).hexdigest()
    )
    proxy.plan("GET", "cut", times=2)

    download(behind, "file", tmp_path / "file", record)

    assert proxy.applied == ["cut", "cut"]


def test_disk_that_is_full(tmp_path: Path) -> None:
    """It is 78 with the file's name, and nothing is left of the file."""
    with (
        pytest.raises(DoesNotFit, match="The disk is full") as caught,
        final_name(tmp_path / "file"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")

    assert (caught.value.exit_code, caught.value.at) == (78, str(tmp_path / "file"))
    assert list(tmp_path.iterdir()) == []


def test_pull_of_changed_size(store: Store, publish: Publisher, tmp_path: Path) -> None:
    """An object of another size is refused without reading it."""
    committed = publish(store, "key", {"model": b"1234"})
    prefix = attempt_prefix("merge", "key", committed.manifest.attempt)
    store.put(f"{prefix}/model", b"12345")

    with pytest.raises(DigestMismatch, match="is 5 bytes long; 4 bytes were expected"):
        pull(store, committed, tmp_path / "out")


def test_pull_of_deleted_file(store: Store, publish: Publisher, tmp_path: Path) -> None:
    """A committed file that is gone is an error, and the others are not half an artifact."""
    committed = publish(store, "key", {"a": b"1", "b": b"2"})
    prefix = attempt_prefix("merge", "key", committed.manifest.attempt)
    store.delete([f"{prefix}/a"])

    with pytest.raises(DigestMismatch, match="is gone"):
        pull(store, committed, tmp_path / "out")

    (problem,) = verify(store, committed)
    assert problem.startswith(f"{store.url}/{prefix}/a: The stored object is gone")


def test_pull_of_parts(store: Store, publish: Publisher, tmp_path: Path) -> None:
    """Only the files that are asked for are read, and what is beside them is ignored."""
    files = {"adapter/a": b"1", "adapter/b": b"2", "adapter2/c": b"3", "prompt.json": b"{}"}
    committed = publish(store, "key", files)
    prefix = attempt_prefix("merge", "key", committed.manifest.attempt)
    store.put(f"{prefix}/adapter/extra", b"not committed")

    pulled = pull(store, committed, tmp_path / "out", ("adapter", "prompt.json"))

    found = {path.relative_to(tmp_path / "out").as_posix() for path in _files(tmp_path / "out")}
    assert found == {file.path for file in pulled} == {"adapter/a", "adapter/b", "prompt.json"}


def test_pull_of_a_part_that_is_not_there(store: Store, publish: Publisher, tmp_path: Path) -> None:
    """A part that matches nothing is an error that names what there is."""
    committed = publish(store, "key", {"adapter/a": b"1"})

    with pytest.raises(InputMissing, match="no part 'adapt'") as caught:
        pull(store, committed, tmp_path / "out", ("adapt",))

    assert caught.value.fix == "choose from: adapter"


def test_stage_files_with_link(store: Store, tmp_path: Path) -> None:
    """A link in a stage's output is refused before anything is sent."""
    (tmp_path / "link").symlink_to("/etc/passwd")

    with pytest.raises(UnsafeArtifact, match="link"):
        stage_files(store, "artifacts/merge/key/attempts/a", tmp_path)

    assert list(store.list()) == []


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]
