"""Requests that are repeated until they succeed, cannot, or have taken too long.

Knows what a failure says about the place: that credentials have been renewed in the mounted
file, which the SDK reads once, or that the store does not know the SDK's checksums.  Knows
nothing about buckets and keys.
"""

import hashlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import boto3
from botocore.exceptions import CredentialRetrievalError, FlexibleChecksumError
from botocore.parsers import ResponseParserError

from modelmill.store.client import READ_SECONDS, Checksums, make_client
from modelmill.store.failures import (
    FAILURES,
    error_code,
    is_about_checksums,
    is_about_credentials,
    is_expiry,
    is_transient,
    retry_after_seconds,
    translate,
)

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0

TOKEN_FILE = "AWS_WEB_IDENTITY_TOKEN_FILE"  # noqa: S105 - a name
"""Where a pod's identity is that an STS exchanges for keys."""

_MD5 = re.compile(r"[0-9a-f]{32}")

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """A transfer that is being abandoned must not start another attempt."""


class Connection:
    """The present client of a store; safe to share between threads, and by copies of a store.

    Attributes:
        client: what to make requests with; ask for it anew for every request.
        checksums: what protects them.
    """

    def __init__(
        self,
        url: str,
        read_seconds: float = READ_SECONDS,
        longest_pause_seconds: float = LONGEST_PAUSE_SECONDS,
        checksums: Checksums = "crc32",
    ) -> None:
        """Read credentials and endpoint; makes no request."""
        self._url = url
        self._read_seconds = read_seconds
        self._longest_pause_seconds = longest_pause_seconds
        self._changing = threading.Lock()
        self._session = boto3.session.Session()
        self._has_worked = False
        self._refused_with = ""
        self._is_settled = checksums == "md5"
        self.checksums = checksums
        self.client = self._make_client()

    @property
    def endpoint(self) -> str:
        """The address of the store, for messages."""
        return self.client.meta.endpoint_url

    def repeat(
        self, at: str, request: Callable[[], T], budget_seconds: float, stop: threading.Event
    ) -> T:
        """Repeat an idempotent request until it succeeds, cannot, or the budget is spent.

        Raises:
            Stopped: the event was set meanwhile.
            ModelmillError: of the class that says why it cannot succeed.
        """
        started = time.monotonic()
        pause = FIRST_PAUSE_SECONDS
        while True:
            used = self.client
            try:
                answer = _readable(request)
            except FAILURES as error:
                if self._adapt(error, used):
                    continue
                elapsed = time.monotonic() - started
                # Jitter keeps many clients from coming back at the same moment.
                wait = max(pause * random.uniform(0.5, 1.0), retry_after_seconds(error))  # noqa: S311
                is_hopeless = not (is_transient(error) or self._expects_renewal(error))
                if is_hopeless or elapsed + wait > budget_seconds:
                    raise translate(error, at, self.endpoint, elapsed) from error
                if stop.wait(wait):
                    raise Stopped from error
                pause = min(pause * 2, self._longest_pause_seconds)
            else:
                self._note_success(used)
                return answer

    def without_crc32(self) -> "Connection":
        """Make another, for uploads of which the store copies parts.

        A copied part has no CRC32 in some stores, and an upload that was begun with CRC32 cannot
        be finished then (minio/minio#20649).
        """
        return Connection(self._url, self._read_seconds, self._longest_pause_seconds, "md5")

    def check_etag(self, etag: str, body: bytes) -> None:
        """Compare an ETag with the bytes it is about, where no CRC32 has been compared.

        Raises:
            FlexibleChecksumError: they differ, so the request should be repeated.
        """
        found = etag.strip('"')
        # Of an upload in parts it is no MD5, and does not look like one.
        is_all_there_is = self.checksums == "md5" and self._refused_with
        if is_all_there_is and _MD5.fullmatch(found):
            expected = hashlib.md5(body, usedforsecurity=False).hexdigest()
            if found != expected:
                raise FlexibleChecksumError(
                    error_msg=f"the ETag is {found}, the MD5 of the bytes is {expected}"
                )

    def _adapt(self, error: Exception, used: "S3Client") -> bool:
        """Make another client where this one cannot succeed, and tell whether there is one."""
        with self._changing:
            if self.client is not used:
                return True
            if is_about_credentials(error) and self._read_credentials_again():
                logger.info("The credentials have been renewed")
            elif is_about_checksums(error) and not self._refused_with:
                self._refused_with = error_code(error)
                self.checksums = "md5"
            elif is_about_checksums(error) and self.checksums == "md5" and not self._is_settled:
                # It was about something else; what it was is in this error as well.
                self.checksums = "crc32"
                self.client = self._make_client()
                return False
            else:
                return False
            self.client = self._make_client()
            return True

    def _note_success(self, used: "S3Client") -> None:
        self._has_worked = True
        if self._refused_with and not self._is_settled and self.client is used:
            self._is_settled = True
            logger.info(
                "The store at %s refuses the checksums of the SDK (%s): MD5 is used instead",
                self.endpoint,
                self._refused_with,
            )

    def _expects_renewal(self, error: Exception) -> bool:
        """Tell whether to wait for somebody to renew what has worked and is used up.

        A mounted Secret changes up to two minutes after the cluster's; a variable never.
        """
        found = self._session.get_credentials()
        return is_expiry(error) and self._has_worked and found is not None and found.method != "env"

    def _read_credentials_again(self) -> bool:
        session = boto3.session.Session()
        if _frozen(session) in {None, _frozen(self._session)}:
            return False
        self._session = session
        return True

    def _make_client(self) -> "S3Client":
        return make_client(self._session, self._url, self.checksums, self._read_seconds)


def _readable(request: Callable[[], T]) -> T:
    """Make a request, and call it damage on the way if its answer cannot be parsed."""
    try:
        return request()
    except OSError as error:
        # The SDK opens the file for every exchange, and has no words for its absence.
        if error.filename is None or error.filename != os.environ.get(TOKEN_FILE):
            raise
        raise CredentialRetrievalError(provider=TOKEN_FILE, error_msg=str(error)) from error
    except (ResponseParserError, ValueError) as error:
        raise FlexibleChecksumError(error_msg=f"the answer cannot be read: {error}") from error


def _frozen(session: boto3.session.Session) -> "ReadOnlyCredentials | None":
    try:
        found = session.get_credentials()
        return None if found is None else found.get_frozen_credentials()
    except FAILURES:
        # A file that is being written at this moment, or a token whose time is over.
        return None
