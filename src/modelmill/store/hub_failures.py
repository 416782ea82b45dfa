"""What huggingface_hub and its HTTP client raise, in the words and exit codes of modelmill.

Makes no request.  Repeats nothing a server has said: an address may be a signed one.
"""

import re
from http import HTTPStatus
from typing import Final

from httpx2 import (
    ConnectError,
    HTTPError,
    InvalidURL,
    LocalProtocolError,
    TransportError,
    UnsupportedProtocol,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from modelmill.spec.errors import (
    HubUnreachable,
    InputMissing,
    InternalError,
    ModelmillError,
    PermissionRefused,
    Problem,
    SpecError,
)
from modelmill.spec.sources import HubAddress

FAILURES = (HTTPError, InvalidURL, OfflineModeIsEnabled)
"""Everything they raise that is not a defect of the caller."""

HOW_TO_GIVE_ONE: Final = (
    "set HF_TOKEN to a token that may read it; on a cluster, put one into a Secret and name it "
    "in profile.hub.token_secret"
)

_RESET: Final = re.compile(r"\bt=(\d+)")
"""In a `RateLimit` header: seconds until there may be requests again."""


def is_transient(error: Exception) -> bool:
    """Tell whether the same request may succeed a little later."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        is_busy = status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
        is_down = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return is_busy or (is_down and status != HTTPStatus.NOT_IMPLEMENTED)
    if isinstance(error, UnsupportedProtocol | LocalProtocolError):
        return False
    return isinstance(error, TransportError) and not _is_untrusted(error)


def retry_after_seconds(error: Exception) -> float:
    """Read how long the hub asks to be left alone; 0 where it does not say."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    headers = error.response.headers
    asked = headers.get("retry-after", "").strip()
    if asked.isdecimal():
        return float(asked)
    is_limited = error.response.status_code == HTTPStatus.TOO_MANY_REQUESTS
    reset = _RESET.search(headers.get("ratelimit", ""))
    return float(reset.group(1)) if is_limited and reset is not None else 0.0


def offline(variable: str, at: str) -> ModelmillError:
    """Say that the environment forbids to ask the hub."""
    return InputMissing(
        f"{variable} is set, so the hub may not be asked",
        at=at,
        fix=f"unset {variable}, or name a local folder or an s3:// address",
    )


def translate(
    error: Exception,
    asked: HubAddress | None,
    endpoint: str,
    *,
    has_token: bool,
    tried_seconds: float,
) -> ModelmillError:
    """Find the class and the words for a failure that will not be retried any more.

    Args:
        error: one of `FAILURES`.
        asked: what the request was about; None for the hub itself.
        endpoint: where the hub is supposed to listen.
        has_token: whether a token was sent.
        tried_seconds: how long it was tried.
    """
    at = str(asked or endpoint)
    if is_transient(error):
        return _unreachable(error, at, endpoint, tried_seconds)
    if asked is not None and (words := _not_there(error, asked, endpoint, has_token=has_token)):
        return words
    match error:
        case HfHubHTTPError():
            return _refused(error, at, endpoint, has_token=has_token)
        case UnsupportedProtocol() | InvalidURL():
            return SpecError("HF_ENDPOINT", [Problem("", f"'{endpoint}' is no http(s) address")])
        case _ if _is_untrusted(error):
            return PermissionRefused(
                f"The certificate of {endpoint} is not trusted here",
                at=at,
                fix="set SSL_CERT_FILE to the file of the authority that signed it; on a cluster, "
                "profile.ca_bundle",
            )
        case OfflineModeIsEnabled():
            return offline("HF_HUB_OFFLINE", at)
        case _:
            return InternalError(
                f"The hub at {endpoint} was asked wrongly ({type(error).__name__})",
                at=at,
                fix="see whether HF_ENDPOINT is a hub of this version's protocol",
            )


def _not_there(
    error: Exception, asked: HubAddress, endpoint: str, *, has_token: bool
) -> ModelmillError | None:
    """Say what of an address the hub has not, or not for us."""
    at = str(asked)
    match error:
        case GatedRepoError():
            ask = f"ask for access at {endpoint}/{_page(asked)}"
            return PermissionRefused(
                f"The hub gives {asked.repository} only to whom its owners have granted access",
                at=at,
                fix=f"{ask} as the token's user" if has_token else f"{ask}; {HOW_TO_GIVE_ONE}",
            )
        case RepositoryNotFoundError():
            return _no_repository(asked, has_token=has_token)
        case RevisionNotFoundError():
            return InputMissing(
                f"{asked.repository} has no revision '{asked.revision}'",
                at=at,
                fix="correct it; where a pinned one is gone, say --repin to take the present one",
            )
        case RemoteEntryNotFoundError():
            return InputMissing(f"{asked.repository} has nothing there", at=at, fix="correct it")
        case _:
            return None


def _unreachable(error: Exception, at: str, endpoint: str, tried_seconds: float) -> ModelmillError:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        wait = retry_after_seconds(error)
        return HubUnreachable(
            f"The hub at {endpoint} has had too many requests from here"
            + (f" and asks to wait {wait:.0f} s" if wait else ""),
            at=at,
            fix="run the same command again later; with HF_TOKEN set the limits are wider",
        )
    reason = f"HTTP {status}" if status is not None else type(error).__name__
    return HubUnreachable(
        f"The hub at {endpoint} gave no usable answer for {tried_seconds:.0f} s ({reason})",
        at=at,
        fix="check the way there (HTTPS_PROXY, HF_ENDPOINT), then run the same command again: "
        "finished stages are kept",
    )


def _no_repository(at: HubAddress, *, has_token: bool) -> ModelmillError:
    kind = "data set" if at.kind == "dataset" else "model"
    if has_token:
        return InputMissing(
            f"The hub has no {kind} {at.repository} that this token may see",
            at=str(at),
            fix="correct the name, or use a token of somebody who may read it",
        )
    return InputMissing(
        f"The hub has no {kind} {at.repository} for somebody without a token",
        at=str(at),
        fix=f"correct the name; if it is private, {HOW_TO_GIVE_ONE}",
    )


def _refused(error: HfHubHTTPError, at: str, endpoint: str, *, has_token: bool) -> ModelmillError:
    status = error.response.status_code
    if status == HTTPStatus.UNAUTHORIZED and has_token:
        return PermissionRefused(
            "The hub does not accept the token",
            at=at,
            fix="make another one; it may have expired or been revoked",
        )
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return PermissionRefused(
            f"The hub refuses to show this ({status})", at=at, fix=HOW_TO_GIVE_ONE
        )
    return InternalError(
        f"The hub at {endpoint} refused a request (HTTP {status})",
        at=at,
        fix="see whether HF_ENDPOINT is a hub",
    )


def _page(at: HubAddress) -> str:
    return f"datasets/{at.repository}" if at.kind == "dataset" else at.repository


def _is_untrusted(error: Exception) -> bool:
    return isinstance(error, ConnectError) and "CERTIFICATE_VERIFY_FAILED" in str(error)
