"""How a boto3 client for a store is set up: time limits, checksums, and no retries.

Makes no request.
"""

import base64
import hashlib
from typing import TYPE_CHECKING, Any, Literal

import boto3
from botocore.config import Config

from modelmill.spec.errors import Problem, SpecError
from modelmill.store.failures import FAILURES, translate

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Checksums = Literal["crc32", "md5"]
"""What lets the store notice damage on the way: the SDK's own CRC32 in both directions, or,
for stores that do not know those headers, an MD5 of what is sent and ETags of what comes back."""

CONNECTIONS = 16
"""More than any transfer uses at once, so that no thread waits for a connection."""

CONNECT_SECONDS = 5
READ_SECONDS = 60


def make_client(
    session: boto3.session.Session,
    url: str,
    checksums: Checksums = "crc32",
    read_seconds: float = READ_SECONDS,
) -> "S3Client":
    """Make a client from the AWS SDK's own environment and files.

    Args:
        session: has read them.
        url: the address it is for, for messages.
        checksums: what goes with every upload.
        read_seconds: how long an answer may be silent.

    Raises:
        PermissionRefused: the credentials' configuration cannot be used.
        SpecError: the endpoint is not a URL.
    """
    config = Config(
        # S3-compatible stores ignore the region; signing still needs one.
        region_name=session.region_name or "us-east-1",
        connect_timeout=CONNECT_SECONDS,
        read_timeout=read_seconds,
        tcp_keepalive=True,
        max_pool_connections=CONNECTIONS,
        # `Connection` owns retries; two layers would multiply.
        retries={"total_max_attempts": 1, "mode": "standard"},
        # Bare `when_required` makes stores accept damaged uploads in silence; the MD5 below
        # takes its place.
        request_checksum_calculation="when_supported" if checksums == "crc32" else "when_required",
        response_checksum_validation="when_supported" if checksums == "crc32" else "when_required",
    )
    try:
        client = session.client("s3", config=config)
    except FAILURES as error:
        raise translate(error, url, "AWS_ENDPOINT_URL", 0) from error
    except ValueError as error:
        raise SpecError("AWS_ENDPOINT_URL", [Problem("", str(error))]) from error
    if checksums == "md5":
        for operation in ("PutObject", "UploadPart"):
            client.meta.events.register(f"before-parameter-build.s3.{operation}", _add_md5)
    return client


def _add_md5(params: dict[str, Any], **_: object) -> None:
    digest = hashlib.md5(params["Body"], usedforsecurity=False).digest()
    params["ContentMD5"] = base64.b64encode(digest).decode()
