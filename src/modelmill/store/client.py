"""How a boto3 client for a store is set up: time limits, checksums, and no retries.

Makes no request.
"""

from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

from modelmill.spec.errors import Problem, SpecError
from modelmill.store.failures import FAILURES, translate

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECTIONS = 16
"""More than any transfer uses at once, so that no thread waits for a connection."""


def make_client(url: str) -> "S3Client":
    """Make a client from the AWS SDK's own environment and files.

    Args:
        url: the address it is for, for messages.

    Raises:
        PermissionRefused: the credentials' configuration cannot be used.
        SpecError: the endpoint is not a URL.
    """
    session = boto3.session.Session()
    config = Config(
        # S3-compatible stores ignore the region; signing still needs one.
        region_name=session.region_name or "us-east-1",
        connect_timeout=5,
        read_timeout=60,
        tcp_keepalive=True,
        max_pool_connections=CONNECTIONS,
        # `Store` owns retries; two layers would multiply.
        retries={"total_max_attempts": 1, "mode": "standard"},
        # Bare `when_required` makes stores accept damaged uploads in silence.
        request_checksum_calculation="when_supported",
        response_checksum_validation="when_supported",
    )
    try:
        return session.client("s3", config=config)
    except FAILURES as error:
        raise translate(error, url, "AWS_ENDPOINT_URL", 0) from error
    except ValueError as error:
        raise SpecError("AWS_ENDPOINT_URL", [Problem("", str(error))]) from error
