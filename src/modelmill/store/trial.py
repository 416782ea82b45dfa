"""Try what a store is asked to do, one promise at a time, with objects that are removed again.

What a vendor's list says does not count: a store that takes a condition and ignores it answers
every write with success, and so does one that takes a checksum and does not compare.  Knows
requests and answers; knows nothing about who wants to know.
"""

import base64
import hashlib
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from botocore.exceptions import ClientError

from modelmill.spec.errors import ModelmillError, StoreUnfit
from modelmill.store.crew import PART_BYTES
from modelmill.store.failures import error_code
from modelmill.store.s3 import PreconditionFailed, Store
from modelmill.store.transfer import download, upload

WRITERS: Final = 16
RACES: Final = 8
SAMPLE_BYTES: Final = 4 * PART_BYTES

_LITTLE: Final = b"a little"


@contextmanager
def trial_prefix(store: Store) -> Iterator[str]:
    """Name a place for trials, and clear it afterwards."""
    prefix = f"probes/{secrets.token_hex(8)}"
    try:
        yield prefix
    finally:
        # Who may not delete, or cannot be reached, has been told so by the trial itself.
        with suppress(ModelmillError):
            for left in store.unfinished(f"{prefix}/"):
                store.abandon_multipart(left.key, left.upload_id)
            store.delete(item.key for item in store.list(f"{prefix}/"))


def try_rights(store: Store, prefix: str) -> None:
    """Write, read, list and delete one object.

    Raises:
        ModelmillError: of the first that is refused; its words name it.
        StoreUnfit: one was granted and has done nothing.
    """
    key = f"{prefix}/rights"
    store.put(key, _LITTLE)
    stored = store.get(key)
    listed = [item.key for item in store.list(f"{prefix}/")]
    store.delete([key])
    if stored is None or stored.body != _LITTLE or listed != [key]:
        raise StoreUnfit(
            "What has been written cannot be read or listed at once",
            at=store.url_of(key),
            fix="use a store whose reads and lists see every write that was answered",
        )
    if store.get(key) is not None:
        raise StoreUnfit(
            "What has been deleted can still be read",
            at=store.url_of(key),
            fix="turn off whatever keeps deleted objects visible",
        )


def try_race(store: Store, prefix: str) -> None:
    """Let many writers create the same object at once, several times over.

    Raises:
        StoreUnfit: there was not exactly one winner each.
    """
    for race in range(RACES):
        key = f"{prefix}/race-{race}"
        start = threading.Barrier(WRITERS)

        def write(writer: int, key: str = key, start: threading.Barrier = start) -> bool:
            start.wait()
            try:
                store.put(key, str(writer).encode(), if_none_match=True)
            except PreconditionFailed:
                return False
            return True

        with ThreadPoolExecutor(WRITERS) as pool:
            winners = [writer for writer, won in enumerate(pool.map(write, range(WRITERS))) if won]
        stored = store.get(key)
        if len(winners) != 1 or stored is None or stored.body != str(winners[0]).encode():
            raise StoreUnfit(
                f"Of {WRITERS} writers that create one object at once, {len(winners)} were told "
                "that they had",
                at=store.url_of(key),
                fix=FIX_CONDITIONS,
            )


FIX_CONDITIONS: Final = (
    "use a store that has conditional writes, or a newer version of this one: without them two "
    "attempts could both commit; where nothing else ever writes to it: modelmill run "
    "--single-writer"
)


def compares_checksums(store: Store, prefix: str) -> bool:
    """Tell whether the store refuses an object whose digest is not the one sent with it."""
    wrong = base64.b64encode(hashlib.md5(b"x", usedforsecurity=False).digest()).decode()
    key = f"{prefix}/damaged"
    try:
        store.client.put_object(
            Bucket=store.bucket,
            Key=f"{store.prefix}/{key}" if store.prefix else key,
            Body=_LITTLE,
            ContentMD5=wrong,
        )
    except ClientError as error:
        return error_code(error) in {"BadDigest", "InvalidDigest"}
    return False


def try_parts(store: Store, prefix: str) -> None:
    """Upload in parts, once to the end and once only to be abandoned.

    Raises:
        StoreUnfit: an upload was not abandoned, or cannot be seen.
    """
    key = f"{prefix}/parts"
    left = store.start_multipart(f"{key}-left")
    store.put_part(f"{key}-left", left, 1, _LITTLE)
    if not any(each.upload_id == left for each in store.unfinished(prefix)):
        raise StoreUnfit(
            "An upload in parts that goes on is not listed, so what a killed one leaves could "
            "never be found",
            at=store.url_of(key),
            fix="let the bucket abort unfinished uploads by a lifecycle rule of a day",
        )
    store.abandon_multipart(f"{key}-left", left)
    if any(each.upload_id == left for each in store.unfinished(prefix)):
        raise StoreUnfit(
            "An upload in parts stays although it was abandoned",
            at=store.url_of(key),
            fix="let the bucket abort unfinished uploads by a lifecycle rule of a day",
        )


def reads_by_etag(store: Store, prefix: str) -> bool:
    """Tell whether a read is refused once the object is another."""
    key = f"{prefix}/replaced"
    etag = store.put(key, _LITTLE)
    store.put(key, _LITTLE[::-1])
    try:
        store.read_range(key, 0, 1, etag)
    except PreconditionFailed:
        return True
    return False


def clock_skew_seconds(store: Store) -> float:
    """Say by how much the store's clock is ahead of this machine's."""
    before = time.time()
    answer = store.client.list_objects_v2(Bucket=store.bucket, MaxKeys=1)
    middle = datetime.fromtimestamp((before + time.time()) / 2, UTC)
    said = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    return (parsedate_to_datetime(said) - middle).total_seconds() if said else 0.0


@dataclass(frozen=True)
class Speed:
    """Of one object in parts, with every byte hashed on the way."""

    up_bytes_per_second: float
    down_bytes_per_second: float


def measure_speed(store: Store, prefix: str) -> Speed:
    """Send one object there and back, checked."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample"
        path.write_bytes(secrets.token_bytes(SAMPLE_BYTES))
        started = time.monotonic()
        record = upload(store, f"{prefix}/sample", path)
        sent = time.monotonic()
        download(store, f"{prefix}/sample", Path(folder) / "back", record)
        ended = time.monotonic()
    return Speed(SAMPLE_BYTES / (sent - started), SAMPLE_BYTES / (ended - sent))
