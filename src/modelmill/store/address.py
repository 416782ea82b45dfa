"""Where a store is: `s3://bucket/prefix`, ours or somebody else's.

Credentials and endpoint come from the AWS SDK's own names (`AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, the shared files, ...) and from nowhere else.
"""

import os

from modelmill.spec.errors import Problem, SpecError
from modelmill.spec.names import ENV_SINGLE_WRITER
from modelmill.store.connection import Connection
from modelmill.store.keys import check_key
from modelmill.store.s3 import RETRY_BUDGET_SECONDS, Store


def open_store(url: str, *, retry_budget_seconds: float = RETRY_BUDGET_SECONDS) -> Store:
    """Open `s3://bucket[/prefix]`; makes no request yet.

    Raises:
        SpecError: the address is not of that form, or its prefix is outside the grammar.
    """
    bucket, prefix = _split(url)
    if prefix:
        check_key(prefix)
    return Store(
        bucket,
        prefix,
        Connection(url),
        retry_budget_seconds,
        is_single_writer=bool(os.environ.get(ENV_SINGLE_WRITER)),
    )


def open_source(
    url: str, *, retry_budget_seconds: float = RETRY_BUDGET_SECONDS
) -> tuple[Store, str]:
    """Open the bucket of `s3://bucket/key-or-prefix` and return it with the rest.

    The bucket is somebody else's: its keys are not held to our grammar.
    """
    bucket, key = _split(url)
    return Store(bucket, "", Connection(url), retry_budget_seconds, is_foreign=True), key


def _split(url: str) -> tuple[str, str]:
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise SpecError(url, [Problem("", "is not an address of the form s3://bucket/prefix")])
    return bucket, key.removesuffix("/")
