"""What is told to another system when a run has ended, and how that system knows who tells it.

Pure.  Follows the Standard Webhooks specification 1.0 (standardwebhooks.com): a closed envelope of
type, time and data, and an HMAC over its id, its time and its bytes.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Final, Literal

from modelmill.spec.records import Record

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what every secret begins with
SHORTEST_SECRET_BYTES: Final = 24
"""The specification asks for 24 to 64."""


class FailedStage(Record):
    """A stage that has finally failed; its last words stay in the store, they may name data."""

    stage: str
    exit_code: int
    meaning: str


class EndedModel(Record):
    """One model of the run."""

    model: str
    verdict: str
    """Of the gate; empty where there is none."""


class EndedRun(Record):
    """How a run came out."""

    run: str
    exit_code: int
    meaning: str
    plan_sha256: str
    report: str
    """URI of the committed report; empty where there is none."""
    gate: str
    """Its outcome; empty without one."""
    models: tuple[EndedModel, ...]
    failures: tuple[FailedStage, ...]


class Notice(Record):
    """The body of the request."""

    type: Literal["run.ended"]
    timestamp: str
    """UTC, ISO 8601."""
    data: EndedRun


def notice_bytes(notice: Notice) -> bytes:
    """Write the body that is signed and sent."""
    return notice.model_dump_json().encode()


def signing_key(secret: str) -> bytes:
    """Read the key out of a secret of the form `whsec_<base64>`.

    Raises:
        ValueError: it has another form or is too short.
    """
    try:
        key = base64.b64decode(secret.strip().removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if len(key) < SHORTEST_SECRET_BYTES:
        raise ValueError(
            f"must be {SECRET_PREFIX} and at least {SHORTEST_SECRET_BYTES} bytes in base64"
        )
    return key


def headers_of(body: bytes, notice_id: str, seconds: int, key: bytes | None) -> Mapping[str, str]:
    """Make the headers by which the other side knows sender, age and repetition.

    Args:
        body: what is sent.
        notice_id: the same for every try of one notice.
        seconds: since 1970, when it is sent.
        key: None where nothing is signed.
    """
    headers = {
        "content-type": "application/json",
        "webhook-id": notice_id,
        "webhook-timestamp": str(seconds),
    }
    if key is not None:
        signed = f"{notice_id}.{seconds}.".encode() + body
        digest = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        headers["webhook-signature"] = f"v1,{digest}"
    return headers
