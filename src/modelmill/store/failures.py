"""What botocore raises, in the words and exit codes of modelmill.

Knows error codes of S3 and its look-alikes; makes no request and reads no environment.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

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
        "InvalidPart",
        "MalformedXML",
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
"""The first six mean that bytes were damaged on the way; botocore retries none of them."""

_NOT_FOUND = 404
_PRECONDITION_FAILED = 412
_FIRST_SERVER_STATUS = 500
_NOT_IMPLEMENTED = 501
_TOO_MANY_REQUESTS = 429

_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})

_ABOUT_CREDENTIALS = _EXPIRED | {
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "400",
    "401",
    "403",
}
"""The last three: an answer to HEAD has no body to say more."""

_ABOUT_CHECKSUMS = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "BadRequest",
        "InvalidArgument",
        "InvalidRequest",
        "MissingContentMD5",
        "NotImplemented",
        "SignatureDoesNotMatch",
    }
)
"""What stores that do not know the SDK's checksum headers have been seen to answer."""

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

_EXCHANGE = "AssumeRoleWithWebIdentity"
"""Asked of an STS, which lies elsewhere than the store."""

_FIX_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_FIX_REFUSED = {
    "AuthorizationHeaderMalformed": "set AWS_REGION to the bucket's region",
    "ExpiredToken": "get new credentials and run the same command again",
    "ExpiredTokenException": "get new credentials and run the same command again",
    "TokenRefreshRequired": "get new credentials and run the same command again",
    "AccessDenied": "ask for read, write, list and delete below this address",
    "403": "ask for read, write, list and delete below this address",
}


_TLS = (
    *(
        (
            words,
            "The certificate of {} is for another host",
            "name the host of the certificate in AWS_ENDPOINT_URL",
        )
        for words in ("Hostname mismatch", "IP address mismatch", "doesn't match")
    ),
    (
        "certificate has expired",
        "The certificate of {} has expired",
        "renew it, or correct this machine's clock",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "The certificate of {} is not trusted here",
        "set AWS_CA_BUNDLE to the file of the authority that signed it",
    ),
    (
        "No such file or directory",
        "There is no file at AWS_CA_BUNDLE to know {} by",
        "correct AWS_CA_BUNDLE",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "There is no TLS at {}",
        "write http:// in AWS_ENDPOINT_URL if the network is one to trust",
    ),
)
"""What OpenSSL and urllib3 say, and what that means; of several, the first.

Whatever else goes wrong with TLS may be better next time."""


def error_code(error: Exception) -> str:
    """Name the S3 error code, or nothing where the request got no answer."""
    return error.response["Error"].get("Code", "") if isinstance(error, ClientError) else ""


def is_missing(error: Exception) -> bool:
    """Tell whether the object, not the bucket or an upload to it, is absent.

    By the status: a bit may have flipped in the words.
    """
    return (
        isinstance(error, ClientError)
        and (_status(error) == _NOT_FOUND or error_code(error) == "NoSuchKey")
        and error_code(error) not in {"NoSuchBucket", "NoSuchUpload"}
    )


def is_upload_missing(error: Exception) -> bool:
    """Tell whether the store does not know an upload in parts."""
    return isinstance(error, ClientError) and (
        error_code(error) == "NoSuchUpload"
        or (_status(error) == _NOT_FOUND and error_code(error) != "NoSuchBucket")
    )


def is_condition(error: Exception) -> bool:
    """Tell whether a conditional write lost.

    A conflict (409) may mean a race that is still going on or, on some stores, a lost
    one; both are settled by reading the object back.
    """
    return isinstance(error, ClientError) and (
        _status(error) == _PRECONDITION_FAILED
        or error_code(error) in {"ConditionalRequestConflict", "409"}
    )


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
        return not any(words in str(error) for words, *_ in _TLS)
    return isinstance(
        error,
        BotoConnectionError
        | HTTPClientError
        | IncompleteReadError
        | ResponseStreamingError
        | FlexibleChecksumError,
    )


def is_expiry(error: Exception) -> bool:
    """Tell whether the credentials were good until their time was over."""
    return error_code(error) in _EXPIRED


def is_about_credentials(error: Exception) -> bool:
    """Tell whether other credentials may do better."""
    return error_code(error) in _ABOUT_CREDENTIALS


def is_about_checksums(error: Exception) -> bool:
    """Tell whether the same request may succeed without the SDK's checksum headers."""
    return error_code(error) in _ABOUT_CHECKSUMS


def retry_after_seconds(error: Exception) -> float:
    """Read how long the store asks to be left alone; 0 where it does not say."""
    headers = _headers(error)
    asked = headers.get("retry-after", "")
    if asked.isdecimal():
        return float(asked)
    try:
        # By the clock of whoever sent the date, where it tells.
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max(0.0, (parsedate_to_datetime(asked) - now).total_seconds())
    except (TypeError, ValueError):
        return 0.0


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
        return _translate_tls(error, at, endpoint)
    if isinstance(error, ClientError) and error.operation_name == _EXCHANGE:
        return PermissionRefused(
            f"The cloud does not give keys for the identity of this process ({_reason(error)})",
            at=at,
            fix="compare AWS_ROLE_ARN, the role's trust policy and the ServiceAccount",
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


def _translate_tls(error: SSLError, at: str, endpoint: str) -> ModelmillError:
    what, fix = next((what, fix) for words, what, fix in _TLS if words in str(error))
    return PermissionRefused(f"{what.format(endpoint)} ({_reason(error)})", at=at, fix=fix)


def _headers(error: Exception) -> Mapping[str, str]:
    if not isinstance(error, ClientError):
        return {}
    return error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if not isinstance(error, ClientError) else str(error)
