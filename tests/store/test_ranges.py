"""Files that are poured into a store and read there by ranges, without a disk in between."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from random import Random

import pytest

from modelmill.spec.errors import (
    DataError,
    DigestMismatch,
    StoreUnreachable,
)
from modelmill.spec.records import FileRecord
from modelmill.stages.ahead import Ahead
from modelmill.store.crew import PART_BYTES
from modelmill.store.poured import PARTS_WAITING, Poured
from modelmill.store.ranges import PIECE_BYTES, RangedFile, Ranges, reading_ranges
from modelmill.store.s3 import Store
from modelmill.store.transfer import digests_of_pieces, upload
from tests.store.proxy import Proxy

KEY = "weights"
WEIGHTS = Random(0).randbytes(2 * PART_BYTES + 5)
PREFIX = "artifacts/merge/k/attempts/a"
NAME = "model.safetensors"


@pytest.fixture
def record(store: Store, tmp_path: Path) -> FileRecord:
    """Have a file of three parts in the store."""
    path = tmp_path / "weights"
    path.write_bytes(WEIGHTS)
    return upload(store, KEY, path)


@pytest.fixture
def ranges(behind: Store) -> Iterator[Ranges]:
    """Read through the proxy."""
    with reading_ranges(behind) as opened:
        yield opened


def verified(ranges: Ranges, record: FileRecord) -> RangedFile:
    """Read all of it once."""
    (digests,) = digests_of_pieces(ranges.store, [(record, KEY)])
    return RangedFile(PurePosixPath(KEY), KEY, record.size_bytes, digests, ranges)


def read(file: RangedFile, start: int, length: int) -> bytes:
    """Read a range."""
    body = bytearray(length)
    file.read_into(start, memoryview(body))
    return bytes(body)


def test_any_range_is_what_was_stored(ranges: Ranges, record: FileRecord) -> None:
    """Within a part, over their ends, and all of it."""
    file, random = verified(ranges, record), Random(1)
    starts = [0, PART_BYTES - 1, PART_BYTES, 2 * PART_BYTES + 4]
    starts += [random.randrange(len(WEIGHTS)) for _ in range(20)]
    for start in starts:
        length = min(random.choice([1, 1000, PART_BYTES, len(WEIGHTS)]), len(WEIGHTS) - start)
        assert read(file, start, length) == WEIGHTS[start : start + length]


def test_pieces_are_read_once_in_their_order(
    ranges: Ranges, record: FileRecord, proxy: Proxy
) -> None:
    """Many small tensors of one piece are one request."""
    file = verified(ranges, record)
    before = proxy.seen["GetObject"]
    for start in range(0, len(WEIGHTS) - 1000, PIECE_BYTES // 8):
        read(file, start, 1000)
    assert proxy.seen["GetObject"] - before == len(WEIGHTS) // PIECE_BYTES


def test_range_behind_the_end_is_refused(ranges: Ranges, record: FileRecord) -> None:
    """A header that promises more than there is does not become a shorter tensor."""
    with pytest.raises(DataError, match="the file ends at byte"):
        read(verified(ranges, record), len(WEIGHTS) - 1, 2)


def test_bit_that_flips_on_the_wire_is_read_again(
    ranges: Ranges, record: FileRecord, proxy: Proxy
) -> None:
    """Nobody sees it."""
    file = verified(ranges, record)
    proxy.plan("GetObject", "flip down")
    assert read(file, 0, len(WEIGHTS)) == WEIGHTS
    assert "flip down" in proxy.applied


@pytest.mark.parametrize("change", ["replaced", "removed", "shortened"])
def test_file_that_changes_between_two_reads_is_refused(
    store: Store, ranges: Ranges, record: FileRecord, change: str
) -> None:
    """What was verified before is no promise about what is there now."""
    file = verified(ranges, record)
    match change:
        case "replaced":
            store.put(KEY, bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:])
        case "removed":
            store.delete([KEY])
        case _:
            store.put(KEY, WEIGHTS[:-1])
    with pytest.raises(DigestMismatch, match="no longer those that were there"):
        read(file, 0, len(WEIGHTS))


def test_file_that_is_not_what_its_record_says_is_refused(
    store: Store, ranges: Ranges, record: FileRecord
) -> None:
    """Before a byte of it is used."""
    store.put(KEY, bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:])
    with pytest.raises(DigestMismatch, match="was committed"):
        verified(ranges, record)


def pour(ahead: Ahead, body: bytes) -> None:
    """Write a file in pieces that have nothing to do with parts."""
    poured = ahead.pour(NAME, len(body))
    for start in range(0, len(body), 3_000_000):
        poured.write(memoryview(body)[start : start + 3_000_000])


@pytest.mark.parametrize("size_bytes", [1, PART_BYTES, PART_BYTES + 1, len(WEIGHTS)])
def test_what_is_poured_is_read_back(
    behind: Store, ranges: Ranges, tmp_path: Path, size_bytes: int
) -> None:
    """Its record and the digests of its parts are those of what was written."""
    body = WEIGHTS[:size_bytes]
    with Ahead(behind, PREFIX, tmp_path) as ahead:
        pour(ahead, body)
        ((record, poured),) = ahead.poured()
    (digests,) = digests_of_pieces(behind, [(record, poured.key)])
    assert (record.path, poured.key) == (NAME, f"{PREFIX}/{NAME}")
    assert poured.digests == digests
    file = RangedFile(PurePosixPath(NAME), poured.key, record.size_bytes, digests, ranges)
    assert read(file, 0, size_bytes) == body


def test_whoever_writes_waits_for_those_who_send() -> None:
    """What is not on its way yet takes the memory of a few parts, however much is written."""
    poured = Poured(NAME, KEY, 10 * PART_BYTES)
    written: list[int] = []

    def write() -> None:
        for number in range(10):
            poured.write(memoryview(bytes(PART_BYTES)))
            written.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    for number in range(10):
        deadline = time.monotonic() + 10
        while len(written) < min(10, number + PARTS_WAITING) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02)  # it would go on here
        assert len(written) == min(10, number + PARTS_WAITING)
        assert poured.read(number * PART_BYTES, PART_BYTES, threading.Event()) == bytes(PART_BYTES)
    writer.join()


def test_whoever_writes_is_told_that_it_cannot_be_sent() -> None:
    """There is nothing that could be sent with the rest."""
    poured = Poured(NAME, KEY, (PARTS_WAITING + 1) * PART_BYTES)
    for _ in range(PARTS_WAITING):
        poured.write(memoryview(bytes(PART_BYTES)))
    poured.give_up(StoreUnreachable("The store is gone"))
    with pytest.raises(StoreUnreachable, match="The store is gone"):
        poured.write(memoryview(bytes(PART_BYTES)))


def test_what_cannot_be_sent_ends_the_attempt(behind: Store, proxy: Proxy, tmp_path: Path) -> None:
    """Its bytes lie nowhere, so it cannot be sent with the rest as files are."""
    proxy.always("UploadPart", "503")
    impatient = replace(behind, retry_budget_seconds=0.5)
    with Ahead(impatient, PREFIX, tmp_path) as ahead, pytest.raises(StoreUnreachable):
        pour_all(ahead, WEIGHTS)
    assert behind.open_uploads(f"{PREFIX}/{NAME}") == ()


def test_upload_that_the_store_loses_ends_the_attempt(
    behind: Store, proxy: Proxy, tmp_path: Path
) -> None:
    """Parts that were sent are in nobody's memory any more, so nobody waits for them."""
    proxy.plan("CreateMultipartUpload", "flip id")
    with (
        Ahead(behind, PREFIX, tmp_path) as ahead,
        pytest.raises(StoreUnreachable, match="loses an upload"),
    ):
        pour_all(ahead, WEIGHTS)
    assert behind.open_uploads(f"{PREFIX}/{NAME}") == ()


def pour_all(ahead: Ahead, body: bytes) -> None:
    """Write a file and wait for it."""
    pour(ahead, body)
    list(ahead.poured())


def test_first_failure_is_the_one_that_is_told(behind: Store, proxy: Proxy, tmp_path: Path) -> None:
    """A file that cannot be finished ends those that come after it, with its own error."""
    proxy.always("CompleteMultipartUpload", "503")
    impatient = replace(behind, retry_budget_seconds=0.5)
    with Ahead(impatient, PREFIX, tmp_path) as ahead:
        pour(ahead, WEIGHTS)
        second = ahead.pour("other", len(WEIGHTS))
        with pytest.raises(StoreUnreachable):
            second.write(memoryview(WEIGHTS))
        with pytest.raises(StoreUnreachable):
            list(ahead.poured())


def test_stage_that_ends_early_leaves_no_upload_open(behind: Store, tmp_path: Path) -> None:
    """Its writer has failed: nobody waits for the rest."""

    def work() -> None:
        with Ahead(behind, PREFIX, tmp_path) as ahead:
            ahead.pour(NAME, len(WEIGHTS)).write(memoryview(WEIGHTS[: PART_BYTES + 1]))
            raise RuntimeError("no more bytes")

    with pytest.raises(RuntimeError, match="no more bytes"):
        work()
    assert behind.open_uploads(f"{PREFIX}/{NAME}") == ()
