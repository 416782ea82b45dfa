"""A bucket and a prefix as the one place where everything lives.

The only module that makes S3 requests.  Knows keys, bytes, conditions and retries; knows
nothing about artifacts, runs or what the bytes mean.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from botocore.exceptions import ClientError

from modelmill.store.connection import Connection
from modelmill.store.failures import (
    error_code,
    is_condition,
    is_missing,
)
from modelmill.store.keys import check_key
from modelmill.store.multipart import UploadLost, abandon_unknown, unless_lost
from modelmill.store.objects import ListedObject, PutPart, Range, Span, Stored, Unfinished

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        CompletedPartTypeDef,
        CopySourceTypeDef,
        DeleteTypeDef,
    )

T = TypeVar("T")

RETRY_BUDGET_SECONDS = 300.0
"""By time, not by attempts: SeaweedFS needs up to 23 s to serve again after a crash, and
three quick 503 exhaust botocore's own modes within 4 s."""

DELETE_AT_ONCE = 1000
"""The limit of one DeleteObjects request."""


class PreconditionFailed(Exception):
    """A conditional write lost, or won and lost its answer: read the object to find out."""


@dataclass(frozen=True)
class Store:
    """Objects below one prefix of one bucket; safe to share between threads.

    Every method retries what is safe to repeat until the budget is used up, then raises
    `StoreUnreachable`; whatever a retry cannot cure is raised at once as `InputMissing`,
    `PermissionRefused` or `InternalError`.
    """

    bucket: str
    prefix: str
    connection: Connection = field(repr=False, compare=False)
    retry_budget_seconds: float = RETRY_BUDGET_SECONDS
    is_foreign: bool = False
    """Somebody else's bucket: keys are read as they are, outside our grammar too."""
    is_single_writer: bool = False
    """The user vouches that nobody else writes here: conditions are checked by a look before
    the write, for stores that do not check them."""
    stop: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    @property
    def client(self) -> "S3Client":
        """The present client: another one after credentials have been renewed."""
        return self.connection.client

    @property
    def url(self) -> str:
        """The address users know it by."""
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"

    def url_of(self, key: str) -> str:
        """Name one object, for messages."""
        return f"{self.url}/{key}" if key else self.url

    def stoppable(self) -> "Store":
        """Share connections with a copy whose retries end when its `stop` is set."""
        return replace(self, stop=threading.Event())

    def for_copies(self) -> "Store":
        """Give a copy for uploads that have parts copied."""
        return replace(self, connection=self.connection.without_crc32())

    def check(self) -> None:
        """Prove with one request that the bucket is there and the credentials work."""
        self._try(
            self.url,
            lambda: self.client.list_objects_v2(
                Bucket=self.bucket, Prefix=self._full(""), MaxKeys=1
            ),
        )

    def get(self, key: str) -> Stored | None:
        """Read a small object whole, or tell that there is none."""

        def read() -> Stored | None:
            try:
                answer = self.client.get_object(Bucket=self.bucket, Key=self._full(key))
                stored = Stored(answer["Body"].read(), answer["ETag"])
            except ClientError as error:
                if is_missing(error):
                    return None
                raise
            self.connection.check_etag(stored.etag, stored.body)
            return stored

        return self._try(self.url_of(key), read)

    def head(self, key: str) -> ListedObject | None:
        """Ask for size and ETag of an object, or tell that there is none."""

        def ask() -> ListedObject | None:
            try:
                answer = self.client.head_object(Bucket=self.bucket, Key=self._full(key))
            except ClientError as error:
                if is_missing(error):
                    return None
                if error_code(error) == "400":
                    # It has no body to say why; the answer to a listing has, or is as good.
                    return next((item for item in self.list(key) if item.key == key), None)
                raise
            return ListedObject(
                key, answer["ContentLength"], answer["ETag"], answer["LastModified"]
            )

        return self._try(self.url_of(key), ask)

    def read_range(self, key: str, start: int, length: int, etag: str = "") -> Range | None:
        """Read `length` bytes from `start`, of the object with this ETag if one is given.

        Nothing in S3 or boto3 checks a ranged answer, so the caller must.

        Returns:
            None if there is no such object or it has fewer than `start` bytes.

        Raises:
            PreconditionFailed: the object has been replaced since the ETag was read.
        """

        def read() -> Range | None:
            full, asked = self._full(key), f"bytes={start}-{start + length - 1}"
            try:
                answer = (
                    self.client.get_object(Bucket=self.bucket, Key=full, Range=asked, IfMatch=etag)
                    if etag
                    else self.client.get_object(Bucket=self.bucket, Key=full, Range=asked)
                )
            except ClientError as error:
                if is_missing(error) or error_code(error) in {"InvalidRange", "416"}:
                    return None
                raise
            total = answer.get("ContentRange", "").rpartition("/")[2]
            whole = int(total) if total.isdecimal() else answer["ContentLength"]
            return Range(answer["Body"].read(), answer["ETag"], whole)

        return self._conditional(key, read)

    def put(
        self, key: str, body: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        """Write a small object in one request and return its ETag.

        Args:
            key: where.
            body: all of it.
            if_none_match: write only if there is no object yet.
            if_match: write only if the present object has this ETag.

        Raises:
            PreconditionFailed: the condition did not hold when the store looked; after a
                lost answer that may be because this very write succeeded.
        """

        def write() -> str:
            request = partial(
                self.client.put_object, Bucket=self.bucket, Key=self._full(key), Body=body
            )
            if self.is_single_writer:
                answer = request()
            elif if_none_match:
                answer = request(IfNoneMatch="*")
            else:
                answer = request() if if_match is None else request(IfMatch=if_match)
            self.connection.check_etag(answer["ETag"], body)
            return answer["ETag"]

        if self.is_single_writer and (if_none_match or if_match is not None):
            present = self.head(key)
            if (None if present is None else present.etag) != if_match:
                raise PreconditionFailed(self.url_of(key))
        return self._conditional(key, write)

    def list(self, prefix: str = "") -> Iterator[ListedObject]:
        """List every object whose key starts with the prefix, in the order of keys.

        A page at a time, each retried on its own.
        """
        full = self._full(prefix, is_prefix=True)
        cut = len(self.prefix) + 1 if self.prefix else 0
        after = ""
        while True:
            start_after = after
            page = self._try(
                self.url_of(prefix),
                lambda: self.client.list_objects_v2(
                    Bucket=self.bucket,
                    Prefix=full,
                    StartAfter=start_after,  # noqa: B023 - called before the next turn
                ),
            )
            found = page.get("Contents", [])
            for item in found:
                yield ListedObject(
                    item["Key"][cut:], item["Size"], item["ETag"], item["LastModified"]
                )
            if not page["IsTruncated"] or not found:
                return
            after = found[-1]["Key"]

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are already gone are no error."""
        full = [self._full(key) for key in keys]
        for start in range(0, len(full), DELETE_AT_ONCE):
            names = full[start : start + DELETE_AT_ONCE]
            self._try(self.url, lambda: self._delete(names))  # noqa: B023 - called before the next turn

    def _delete(self, names: Sequence[str]) -> None:
        if self.connection.checksums == "md5":
            # The SDK sends a list of names with a CRC32, whatever it is told.
            for name in names:
                self.client.delete_object(Bucket=self.bucket, Key=name)
            return
        wanted: DeleteTypeDef = {"Objects": [{"Key": name} for name in names], "Quiet": True}
        answer = self.client.delete_objects(Bucket=self.bucket, Delete=wanted)
        for problem in answer.get("Errors", []):  # the answer is 200 all the same
            raise ClientError({"Error": {"Code": problem.get("Code", "")}}, "DeleteObjects")

    def start_multipart(self, key: str) -> str:
        """Begin an upload in parts and return its id; it must be finished or abandoned."""
        asked = 0

        def start() -> str:
            nonlocal asked
            asked += 1
            answer = self.client.create_multipart_upload(Bucket=self.bucket, Key=self._full(key))
            return answer["UploadId"]

        upload = ""
        try:
            upload = self._try(self.url_of(key), start)
        finally:
            if asked > 1 or not upload:
                abandon_unknown(self, key, upload)
        return upload

    def put_part(self, key: str, upload: str, number: int, body: bytes) -> PutPart:
        """Send one part, counted from 1; `UploadLost` means to start the upload again."""

        def send() -> PutPart:
            request = partial(self.client.upload_part, Bucket=self.bucket, UploadId=upload)
            answer = unless_lost(lambda: request(Key=self._full(key), PartNumber=number, Body=body))
            self.connection.check_etag(answer["ETag"], body)
            return PutPart(number, len(body), answer["ETag"], answer.get("ChecksumCRC32", ""))

        return self._try(self.url_of(key), send)

    def copy_part(self, key: str, upload: str, number: int, origin: Span) -> PutPart:
        """Have the store copy one part from another object; nothing checks the copy.

        Where the upload was begun with a CRC32, not every store can finish it (`for_copies`).
        """

        def copy() -> PutPart:
            request = partial(self.client.upload_part_copy, Bucket=self.bucket, UploadId=upload)
            source: CopySourceTypeDef = {"Bucket": self.bucket, "Key": self._full(origin.key)}
            answer = unless_lost(
                lambda: request(
                    Key=self._full(key),
                    PartNumber=number,
                    CopySource=source,
                    CopySourceRange=str(origin),
                )
            )
            found = answer["CopyPartResult"]
            return PutPart(number, origin.size_bytes, found["ETag"], found.get("ChecksumCRC32", ""))

        return self._try(self.url_of(origin.key), copy)

    def finish_multipart(self, key: str, upload: str, parts: Sequence[PutPart]) -> None:
        """Turn the parts into the object, unconditionally.

        Never with a condition: SeaweedFS 4.48 let two conditional completes win in 30 of
        100 races.

        Raises:
            UploadLost: the store knows neither the upload nor an object of that size.
        """

        def finish() -> None:
            # Lost is also what a repeated request is told after a lost answer; so the size decides.
            # SeaweedFS 4.48 even agrees where somebody else has finished it with fewer parts.
            with suppress(UploadLost):
                unless_lost(
                    lambda: self.client.complete_multipart_upload(
                        Bucket=self.bucket,
                        Key=self._full(key),
                        UploadId=upload,
                        MultipartUpload={"Parts": [_completed(part) for part in parts]},
                    )
                )
            found = self.head(key)
            if found is None or found.size_bytes != sum(part.size_bytes for part in parts):
                raise UploadLost

        self._try(self.url_of(key), finish)

    def open_uploads(self, key: str) -> tuple[str, ...]:
        """List the ids of uploads to a key that are neither finished nor abandoned."""
        return tuple(each.upload_id for each in self.unfinished(key) if each.key == key)

    def abandon_multipart(self, key: str, upload: str) -> bool:
        """Drop the parts of an upload, and tell whether the store knew it."""

        def abandon() -> bool:
            request = partial(self.client.abort_multipart_upload, Bucket=self.bucket)
            try:
                unless_lost(lambda: request(Key=self._full(key), UploadId=upload))
            except UploadLost:
                return False
            return True

        return self._try(self.url_of(key), abandon)

    def unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        """List every upload in parts whose key starts with the prefix."""
        full = self._full(prefix, is_prefix=True)
        cut = len(self.prefix) + 1 if self.prefix else 0
        key_marker = upload_marker = ""
        while True:
            after = (key_marker, upload_marker)
            page = self._try(
                self.url,
                lambda: self.client.list_multipart_uploads(
                    Bucket=self.bucket,
                    Prefix=full,
                    KeyMarker=after[0],  # noqa: B023 - called before the next turn
                    UploadIdMarker=after[1],  # noqa: B023
                ),
            )
            for item in page.get("Uploads", []):
                # Not every store filters by prefix.
                if item["Key"].startswith(full):
                    yield Unfinished(item["Key"][cut:], item["UploadId"], item["Initiated"])
            if not page.get("IsTruncated"):
                return
            key_marker = page["NextKeyMarker"]
            upload_marker = page.get("NextUploadIdMarker", "")

    def _full(self, key: str, *, is_prefix: bool = False) -> str:
        if key and not self.is_foreign:
            check_key(key.removesuffix("/") if is_prefix else key)
        return f"{self.prefix}/{key}" if self.prefix else key

    def _conditional(self, key: str, request: Callable[[], T]) -> T:
        def ask() -> T:
            try:
                return request()
            except ClientError as error:
                if is_condition(error):
                    raise PreconditionFailed(self.url_of(key)) from error
                raise

        return self._try(self.url_of(key), ask)

    def _try(self, at: str, request: Callable[[], T]) -> T:
        return self.connection.repeat(at, request, self.retry_budget_seconds, self.stop)


def _completed(part: PutPart) -> "CompletedPartTypeDef":
    completed: CompletedPartTypeDef = {"PartNumber": part.number, "ETag": part.etag}
    if part.crc32:
        completed["ChecksumCRC32"] = part.crc32
    return completed
