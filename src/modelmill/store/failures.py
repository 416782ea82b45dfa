"""What botocore raises, in the words and exit codes of modelmill.

Knows error codes of S3 and its look-alikes; makes no request and reads no environment.
"""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSLError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)

from modelmill.spec.errors import (
    InputMissing,
    InternalError,
    ModelmillError,
    PermissionRefused,
    StoreUnreachable,
)

FAILURES = (BotoCoreError, ClientError)
"""Everything botocore raises that is not a defect of the caller."""

_TRANSIENT_CODES = frozenset(
    {
        "BadDigest",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
"""The first four mean that bytes were damaged on the way; botocore retries none of them."""

_FIRST_SERVER_STATUS = 500
_NOT_IMPLEMENTED = 501
_TOO_MANY_REQUESTS = 429

_REFUSED = {
    "InvalidAccessKeyId": "The store does not know this access key",
    "SignatureDoesNotMatch": "The secret key does not belong to the access key",
    "ExpiredToken": "The credentials have expired",
    "ExpiredTokenException": "The credentials have expired",
    "TokenRefreshRequired": "The credentials have expired",
    "InvalidToken": "The session token is not valid",
    "AuthorizationHeaderMalformed": "The request was signed for another region",
    "AccessDenied": "The credentials do not allow this",
    "AllAccessDisabled": "The credentials do not allow this",
    "Forbidden": "The credentials do not allow this",
    "Unauthorized": "The store wants credentials",
    "401": "The store wants credentials",
    "403": "The credentials do not allow this",
}

_FIX_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_FIX_REFUSED = {
    "AuthorizationHeaderMalformed": "set AWS_REGION to the bucket's region",
    "ExpiredToken": "get new credentials and run the same command again",
    "ExpiredTokenException": "get new credentials and run the same command again",
    "TokenRefreshRequired": "get new credentials and run the same command again",
    "AccessDenied": "ask for read, write, list and delete below this address",
    "403": "ask for read, write, list and delete below this address",
}


def error_code(error: Exception) -> str:
    """Name the S3 error code, or nothing where the request got no answer."""
    return error.response["Error"].get("Code", "") if isinstance(error, ClientError) else ""


def is_missing(error: Exception) -> bool:
    """Tell whether the object, not the bucket, is absent."""
    return error_code(error) in {"NoSuchKey", "404", "NotFound"}


def is_condition(error: Exception) -> bool:
    """Tell whether a conditional write lost.

    A conflict (409) may mean a race that is still going on or, on some stores, a lost
    one; both are settled by reading the object back.
    """
    return error_code(error) in {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


def is_transient(error: Exception) -> bool:
    """Tell whether the same request may succeed a little later."""
    if isinstance(error, ClientError):
        status = _status(error)
        return (
            error_code(error) in _TRANSIENT_CODES
            or status == _TOO_MANY_REQUESTS
            or (status >= _FIRST_SERVER_STATUS and status != _NOT_IMPLEMENTED)
        )
    if isinstance(error, SSLError):
        return not _is_untrusted(error)
    return isinstance(
        error,
        BotoConnectionError
        | HTTPClientError
        | IncompleteReadError
        | ResponseStreamingError
        | FlexibleChecksumError,
    )


def retry_after_seconds(error: Exception) -> float:
    """Read how long the store asks to be left alone; 0 where it does not say."""
    if not isinstance(error, ClientError):
        return 0.0
    asked = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get("retry-after", "")
    return float(asked) if asked.isdecimal() else 0.0


def translate(error: Exception, at: str, endpoint: str, tried_seconds: float) -> ModelmillError:
    """Find the class and the words for a failure that will not be retried any more.

    Args:
        error: one of `FAILURES`.
        at: the address the request was about.
        endpoint: where the store is supposed to listen.
        tried_seconds: how long it was tried.
    """
    code = error_code(error)
    if is_transient(error):
        return StoreUnreachable(
            f"The store at {endpoint} gave no usable answer for {tried_seconds:.0f} s "
            f"({_reason(error)})",
            at=at,
            fix="check that it runs and that AWS_ENDPOINT_URL names it, "
            "then run the same command again: finished stages are kept",
        )
    if isinstance(error, SSLError):
        return PermissionRefused(
            f"The certificate of {endpoint} is not trusted here ({_reason(error)})",
            at=at,
            fix="set AWS_CA_BUNDLE to the file of the authority that signed it",
        )
    if code == "RequestTimeTooSkewed":
        return PermissionRefused(
            "The clock here and the store's clock differ too much for a signed request",
            at=at,
            fix="set this machine's clock (NTP), then run the same command again",
        )
    if code in _REFUSED:
        return PermissionRefused(
            f"{_REFUSED[code]} ({code})", at=at, fix=_FIX_REFUSED.get(code, _FIX_CREDENTIALS)
        )
    if isinstance(
        error,
        NoCredentialsError | PartialCredentialsError | CredentialRetrievalError | ProfileNotFound,
    ):
        return PermissionRefused(
            f"No credentials for the store ({error})", at=at, fix=_FIX_CREDENTIALS
        )
    if code in {"NoSuchBucket", "InvalidBucketName"}:
        return InputMissing(
            f"The store at {endpoint} has no such bucket",
            at=at,
            fix="create the bucket, or correct the address",
        )
    if is_missing(error):
        return InputMissing("There is nothing at this address", at=at, fix="correct the address")
    return InternalError(
        f"The store at {endpoint} refused a request ({_reason(error)})",
        at=at,
        fix="see whether the store supports the operation that is named",
    )


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"].get("HTTPStatusCode", 0)


def _is_untrusted(error: SSLError) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error) or "WRONG_VERSION_NUMBER" in str(error)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if not isinstance(error, ClientError) else str(error)
