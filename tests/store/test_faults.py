"""What networks and busy stores do to requests, and that none of it is ever seen in an artifact."""

from dataclasses import dataclass, replace
from email.utils import formatdate
from pathlib import Path
from random import Random

import pytest
from botocore.exceptions import ClientError

from modelmill.spec.errors import DigestMismatch, StoreUnreachable
from modelmill.spec.records import FileRecord
from modelmill.store.artifact import attempt_prefix, commit, pull, stage_files
from modelmill.store.failures import retry_after_seconds
from modelmill.store.s3 import Store
from modelmill.store.transfer import PART_BYTES, download, upload
from tests.store.conftest import ManifestMaker
from tests.store.proxy import Fault, Proxy, Request

BIG_BYTES = PART_BYTES + 12_345


@dataclass(frozen=True)
class Files:
    """A file that goes in one request, one that goes in two parts, and room for others."""

    small: Path
    big: Path
    room: Path

    def check(self, store: Store, record: FileRecord, source: Path) -> None:
        """Read what was stored, and find no upload left open."""
        download(store, record.path, self.room / "check", record)
        assert (self.room / "check").read_bytes() == source.read_bytes()
        assert store.open_uploads(record.path) == ()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the files once."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "small").write_bytes(Random(1).randbytes(10_000))
    (folder / "big").write_bytes(Random(0).randbytes(BIG_BYTES))
    return folder


@pytest.fixture
def files(sources: Path, tmp_path: Path) -> Files:
    """Have them, and a folder of one's own."""
    return Files(sources / "small", sources / "big", tmp_path)


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("CreateMultipartUpload", "lost answer"),
        ("CreateMultipartUpload", "cut"),
        ("UploadPart", "lost answer"),
        ("UploadPart", "reset inside"),
        ("UploadPart", "flip up"),
        ("CompleteMultipartUpload", "reset before"),
        ("CompleteMultipartUpload", "lost answer"),
        ("CompleteMultipartUpload", "cut"),
    ],
)
def test_upload_in_parts_when_a_request_fails(
    hasty: Store, proxy: Proxy, files: Files, operation: str, fault: Fault
) -> None:
    """Done or not done, known or not known: the file is whole and no upload is left open."""
    proxy.plan(operation, fault)

    record = upload(hasty, "file", files.big)

    assert proxy.applied == [fault]
    files.check(hasty, record, files.big)


def test_upload_in_parts_whose_id_is_damaged(hasty: Store, proxy: Proxy, files: Files) -> None:
    """An answer in which a bit has flipped names an upload that is not there: it starts again."""
    # In the middle of the answer is the id.
    proxy.plan("CreateMultipartUpload", "flip id")

    record = upload(hasty, "file", files.big)

    assert (proxy.applied, proxy.seen["CreateMultipartUpload"]) == (["flip id"], 2)
    files.check(hasty, record, files.big)


def test_upload_in_parts_that_is_stopped_and_whose_id_is_damaged(
    hasty: Store, proxy: Proxy, files: Files
) -> None:
    """What was begun is dropped although nobody knows what it is called."""
    proxy.plan("CreateMultipartUpload", "flip id")

    def fail(request: Request) -> Fault | None:
        return proxy._take(request) or ("500" if request.operation == "UploadPart" else None)

    proxy.choose = fail
    with pytest.raises(StoreUnreachable):
        upload(replace(hasty, retry_budget_seconds=0.5), "file", files.big)

    assert hasty.open_uploads("file") == ()


def test_upload_in_parts_that_is_always_lost(hasty: Store, proxy: Proxy, files: Files) -> None:
    """It is not started for ever, and the message says what may be behind it."""

    def abort(request: Request) -> Fault | None:
        if request.operation == "UploadPart":
            for each in hasty.open_uploads("file"):
                hasty.abandon_multipart("file", each)
        return None

    proxy.choose = abort
    with pytest.raises(StoreUnreachable, match="loses an upload in parts") as caught:
        upload(hasty, "file", files.big)

    assert "rule of the bucket" in caught.value.fix


@pytest.mark.parametrize("fault", ["lost answer", "reset before", "reset inside", "flip up"])
def test_upload_when_a_request_fails(
    store: Store, hasty: Store, proxy: Proxy, files: Files, fault: Fault
) -> None:
    """A small file is sent again."""
    proxy.plan("PutObject", fault)

    record = upload(hasty, "file", files.small)

    assert proxy.applied == [fault]
    files.check(store, record, files.small)


@pytest.mark.parametrize("fault", ["503", "500", "429"])
def test_artifact_when_the_store_is_busy(
    hasty: Store, proxy: Proxy, make_manifest: ManifestMaker, tmp_path: Path, fault: Fault
) -> None:
    """Twenty refusals in a row, of every kind of request, cost time and nothing else."""
    manifest = make_manifest("key", attempt="a")
    for operation in ("PutObject", "GetObject"):
        proxy.plan(operation, fault, times=20)

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"x")

    files = stage_files(hasty, attempt_prefix("merge", "key", "a"), tmp_path / "in")
    published = commit(hasty, manifest.model_copy(update={"files": files}))
    pull(hasty, published.committed, tmp_path / "out")

    assert (published.state, len(proxy.applied)) == ("won", 40)
    assert (tmp_path / "out" / "a").read_bytes() == b"x"


def test_busy_store_ends_with_74_when_the_budget_is_spent(hasty: Store, proxy: Proxy) -> None:
    """The message says how long it was tried and with what answer."""
    proxy.always("*", "503")
    brief = replace(hasty, retry_budget_seconds=0.5)

    with pytest.raises(StoreUnreachable, match="SlowDown") as caught:
        brief.put("file", b"x")

    assert (caught.value.exit_code, caught.value.at) == (74, f"{hasty.url}/file")
    assert "finished stages are kept" in caught.value.fix


@pytest.mark.parametrize("operation", ["PutObject", "GetObject"])
def test_store_that_accepts_and_never_answers(
    hasty: Store, proxy: Proxy, files: Files, operation: str
) -> None:
    """A request that nobody answers is given up and made again."""
    proxy.plan(operation, "blackhole", times=2)

    record = upload(hasty, "file", files.small)
    download(hasty, "file", files.room / "out", record)

    assert proxy.applied == ["blackhole"] * 2
    assert (files.room / "out").read_bytes() == files.small.read_bytes()


def test_commit_that_is_applied_after_it_was_given_up(
    hasty: Store, proxy: Proxy, make_manifest: ManifestMaker
) -> None:
    """A put that arrives when another has won changes nothing."""
    proxy.late_seconds = 1.5
    proxy.plan("PutObject", "late")
    first = commit(hasty, make_manifest("key"))

    proxy.wait(2.5)

    assert (first.state, proxy.applied) == ("won", ["late"])
    assert commit(hasty, make_manifest("key")).committed == first.committed


def test_commit_when_the_loser_is_told_409(
    store: Store, behind: Store, proxy: Proxy, make_manifest: ManifestMaker
) -> None:
    """A store that calls a lost race a conflict is understood."""
    first = commit(store, make_manifest("key"))
    proxy.always("PutObject", "409")

    second = commit(behind, make_manifest("key"))

    assert (second.state, second.committed, proxy.applied) == ("adopted", first.committed, ["409"])


def test_commit_when_a_bit_of_the_refusal_flips(
    store: Store, behind: Store, proxy: Proxy, make_manifest: ManifestMaker
) -> None:
    """The status says what it is, whatever happened to the words."""
    first = commit(store, make_manifest("key"))
    for _ in range(20):
        proxy.plan("PutObject", "flip down")
        assert commit(behind, make_manifest("key")).committed == first.committed
    assert proxy.applied == ["flip down"] * 20


def test_listing_when_a_bit_flips(store: Store, behind: Store, proxy: Proxy) -> None:
    """A listing that is no XML any more is asked for again."""
    for number in range(3):
        store.put(f"file{number}", b"x")
    broken = 0
    for _ in range(20):
        proxy.plan("ListObjects", "flip down")
        before = proxy.seen["ListObjects"]
        assert len(list(behind.list())) == 3
        broken += proxy.seen["ListObjects"] - before > 1
    assert broken


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_object_that_changes_while_it_is_read(
    store: Store, behind: Store, proxy: Proxy, files: Files, change: str
) -> None:
    """Parts of two states are never put together."""
    record = upload(store, "file", files.big)

    def meddle(request: Request) -> Fault | None:
        if request.headers.get("range", "").startswith(f"bytes={PART_BYTES}-"):
            if change == "deleted":
                store.delete(["file"])
            else:
                store.put("file", b"y" * BIG_BYTES)
        return None

    proxy.choose = meddle
    with pytest.raises(DigestMismatch, match=r"replaced|have the SHA"):
        download(behind, "file", files.room / "out", record)

    assert list(files.room.iterdir()) == []


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("", 0),
        ("soon", 0),
        ("-1", 0),
        (formatdate(1_000_000_030, usegmt=True), 30),
        (formatdate(999_999_000, usegmt=True), 0),
    ],
)
def test_retry_after_in_every_form(header: str, seconds: float) -> None:
    """A number of seconds or a date, by the clock of the store; what is neither is ignored."""
    error = ClientError(
        {
            "Error": {"Code": "SlowDown"},
            "ResponseMetadata": {
                "HTTPStatusCode": 503,
                "RequestId": "",
                "HostId": "",
                "HTTPHeaders": {
                    "retry-after": header,
                    "date": formatdate(1_000_000_000, usegmt=True),
                },
                "RetryAttempts": 0,
            },
        },
        "PutObject",
    )

    assert retry_after_seconds(error) == seconds
