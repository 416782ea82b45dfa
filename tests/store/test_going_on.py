"""An upload in parts that another process goes on with."""

import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from unittest.mock import Mock

import pytest

from modelmill.spec.errors import InternalError, Interrupted, StoreUnreachable
from modelmill.stages.ahead import Ahead
from modelmill.stages.ledger import SENT, Ledger
from modelmill.store.crew import PART_BYTES
from modelmill.store.multipart import UploadLost
from modelmill.store.ranges import Ranges, reading_ranges
from modelmill.store.s3 import Store
from modelmill.store.sent import sent_before
from modelmill.store.transfer import digests_of_pieces

BODY = Random(0).randbytes(4 * PART_BYTES + 5)
HEADER = BODY[:1000]
NAME = "model.safetensors"
OLD, NEW = "artifacts/merge/k/attempts/old", "artifacts/merge/k/attempts/new"


@pytest.fixture
def ranges(store: Store) -> Iterator[Ranges]:
    """Read what is stored."""
    with reading_ranges(store) as opened:
        yield opened


@pytest.fixture
def ledger(ranges: Ranges, tmp_path: Path) -> Ledger:
    """Know nothing yet."""
    return Ledger(tmp_path, ranges, lambda: None)


def after(ledger: Ledger) -> Ledger:
    """Read in another process what this one has kept."""
    return Ledger(ledger.folder, ledger.ranges, ledger.saved)


def begin(ledger: Ledger, ahead: Ahead, parts: int) -> None:
    """Write some parts, and wait until it is known that they have been sent."""
    poured = ahead.pour(NAME, len(BODY))
    ledger.begun.append(poured)
    poured.write(memoryview(BODY)[: parts * PART_BYTES])
    deadline = time.monotonic() + 30
    while poured.parts_accepted < parts and time.monotonic() < deadline:
        time.sleep(0.01)
    ledger.keep()


def be_interrupted(ledger: Ledger, store: Store, error: BaseException, parts: int = 3) -> None:
    """Send some parts and end."""

    def attempt() -> None:
        with Ahead(store, OLD, ledger.folder) as ahead:
            begin(ledger, ahead, parts)
            raise error

    with pytest.raises(type(error)):
        attempt()


def test_rest_is_written_by_who_comes_after(store: Store, ledger: Ledger) -> None:
    """All of it has the digest of all of it, and what was there is not written."""
    be_interrupted(ledger, store, Interrupted("asked to"))
    assert list(store.unfinished()) == []
    before = after(ledger).before(NAME, HEADER, len(BODY))
    assert before is not None
    with Ahead(store, NEW, ledger.folder) as ahead:
        poured = ahead.pour(NAME, len(BODY), before)
        assert poured.take(1000) == 1000
        assert poured.take(len(BODY)) == 3 * PART_BYTES - 1000
        poured.write(memoryview(BODY)[3 * PART_BYTES :])
        ((record, _),) = ahead.poured()
        assert [poured.origin(number) is None for number in range(5)] == [False] * 3 + [True] * 2
        # A store that copies no CRC32 could not finish an upload that has any.
        assert {part.crc32 for part in poured.sent().parts} == {""}
    (digests,) = digests_of_pieces(store, [(record, poured.key)])
    assert digests == poured.digests
    assert list(store.unfinished()) == []


def test_store_that_cannot_copy_is_sent_what_it_has(
    store: Store, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are at hand: they have been read to be compared."""
    be_interrupted(ledger, store, Interrupted("asked to"))
    refused = InternalError("Copying is not implemented", at=store.url)
    monkeypatch.setattr(Store, "copy_part", Mock(side_effect=refused))
    before = after(ledger).before(NAME, HEADER, len(BODY))
    with Ahead(store, NEW, ledger.folder) as ahead:
        poured = ahead.pour(NAME, len(BODY), before)
        poured.write(memoryview(BODY)[poured.take(len(BODY)) :])
        ((record, _),) = ahead.poured()
    assert digests_of_pieces(store, [(record, poured.key)]) == (poured.digests,)
    assert record.sha256 == hashlib.sha256(BODY).hexdigest()


def test_who_fails_leaves_no_upload_open(store: Store, ledger: Ledger) -> None:
    """Nobody goes on with what is wrong; what was kept of it is gone then."""
    be_interrupted(ledger, store, RuntimeError("a tensor is not what it must be"))
    assert list(store.unfinished()) == []
    assert store.head(f"{OLD}/{NAME}") is None
    assert after(ledger).before(NAME, HEADER, len(BODY)) is None


def test_who_still_sends_is_told_that_another_goes_on(store: Store, ledger: Ledger) -> None:
    """It was only thought to be dead: its file must not look complete."""
    with Ahead(store, OLD, ledger.folder) as ahead:
        begin(ledger, ahead, 2)
        assert after(ledger).before(NAME, HEADER, len(BODY)) is not None
        with pytest.raises(StoreUnreachable, match="loses an upload"):
            write_the_rest(ledger, ahead)
    found = store.head(f"{OLD}/{NAME}")
    assert found is not None
    assert found.size_bytes == 2 * PART_BYTES


def write_the_rest(ledger: Ledger, ahead: Ahead) -> None:
    """Write what this process has not written of its file, and wait until it is there."""
    ledger.begun[-1].write(memoryview(BODY)[2 * PART_BYTES :])
    list(ahead.poured())


def test_upload_that_another_has_finished_short_is_lost(store: Store) -> None:
    """A lost answer looks the same, but for the size."""
    upload = store.start_multipart("file")
    parts = [store.put_part("file", upload, each, bytes(PART_BYTES)) for each in (1, 2)]
    store.finish_multipart("file", upload, parts[:1])
    store.finish_multipart("file", upload, parts[:1])
    with pytest.raises(UploadLost):
        store.finish_multipart("file", upload, parts)


def test_file_that_is_complete_is_as_good(store: Store, ledger: Ledger) -> None:
    """Its process was killed before that was known."""
    with Ahead(store, OLD, ledger.folder) as ahead:
        begin(ledger, ahead, 2)
        write_the_rest(ledger, ahead)
    before = after(ledger).before(NAME, HEADER, len(BODY))
    assert before is not None
    assert before.size_bytes == 2 * PART_BYTES


@pytest.mark.parametrize(
    ("header", "size_bytes"),
    [(HEADER[:-1] + bytes([HEADER[-1] ^ 1]), len(BODY)), (HEADER, len(BODY) + 1)],
)
def test_another_file_of_the_same_name_is_not_gone_on_with(
    store: Store, ledger: Ledger, header: bytes, size_bytes: int
) -> None:
    """Another version of a library may place tensors elsewhere; what is sent then is kept."""
    be_interrupted(ledger, store, Interrupted("asked to"))
    second = after(ledger)
    assert second.before(NAME, header, size_bytes) is None
    with Ahead(store, NEW, ledger.folder) as ahead:
        begin(second, ahead, 1)
        assert sent_before(second.begun[-1].sent(), ledger.ranges).size_bytes == PART_BYTES
    third = after(ledger).before(NAME, HEADER, len(BODY))
    assert third is not None
    assert third.key == f"{NEW}/{NAME}"


def test_ledger_of_another_form_is_passed_over(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """Only time is lost."""
    (ledger.folder / f"{NAME}{SENT}").write_text('{"format": 2}')
    with caplog.at_level(logging.INFO):
        assert after(ledger).before(NAME, HEADER, len(BODY)) is None
    assert "passed over" in caplog.text
