"""Models and data sets on a hub that speaks Hugging Face's protocol: pin them, pull them.

Endpoint and token are found where huggingface_hub finds them: `HF_ENDPOINT`, `HF_TOKEN`,
`HF_TOKEN_PATH`, a login.
"""

import os
from pathlib import Path

from huggingface_hub import constants, get_token

from modelmill.spec.errors import DataError, PermissionRefused
from modelmill.spec.records import FileRecord
from modelmill.spec.settings import Pin
from modelmill.spec.sources import HubAddress, parse_hub
from modelmill.store.beginning import DistantFile
from modelmill.store.crew import OnBytes, no_progress
from modelmill.store.hub_client import Hub
from modelmill.store.hub_download import download
from modelmill.store.hub_failures import HOW_TO_GIVE_ONE, offline
from modelmill.store.hub_files import digest_of
from modelmill.store.keys import check_paths


def pin_hub(address: str, retry_budget_seconds: float) -> Pin:
    """Find out the commit that an address stands for now, and what the hub says of its files.

    Raises:
        ModelmillError: it is not there, not for us, or the hub does not answer.
    """
    asked = parse_hub(address)
    hub = open_hub(asked, retry_budget_seconds)
    present = asked.at(hub.commit(asked))
    return Pin(address=str(present), digest=digest_of(hub.files(present)))


def hub_bytes(pin: Pin, retry_budget_seconds: float) -> int:
    """Say how many bytes `pull_hub` would download.

    Raises:
        ModelmillError: as for `pin_hub`.
    """
    pinned = parse_hub(pin.address)
    return sum(file.size_bytes for file in open_hub(pinned, retry_budget_seconds).files(pinned))


def look_hub(pin: Pin, retry_budget_seconds: float) -> tuple[DistantFile, ...]:
    """List what was pinned, to read how its files begin.

    Raises:
        ModelmillError: as for `pin_hub`.
    """
    pinned = parse_hub(pin.address)
    hub = open_hub(pinned, retry_budget_seconds)

    def distant(path: str, size_bytes: int) -> DistantFile:
        return DistantFile(path, size_bytes, lambda length: hub.beginning(pinned, path, length))

    return tuple(distant(file.path, file.size_bytes) for file in hub.files(pinned))


def pull_hub(
    pin: Pin, destination: Path, retry_budget_seconds: float, on_bytes: OnBytes = no_progress
) -> tuple[FileRecord, ...]:
    """Download what was pinned; every byte is compared with the digests that the hub states.

    Raises:
        DataError: the hub states other files than when it was pinned.
        DigestMismatch: what arrives is not what the hub states, twice.
        ModelmillError: as for `pin_hub`.
    """
    pinned = parse_hub(pin.address)
    hub = open_hub(pinned, retry_budget_seconds)
    files = hub.files(pinned)
    if digest_of(files) != pin.digest:
        raise DataError(
            "The hub lists other files under this commit than when the run was pinned to it",
            at=pin.address,
            fix="accept the present ones: modelmill run FILE --repin",
        )
    check_paths(file.path for file in files)
    return download(hub, pinned, files, destination, on_bytes)


def check_token(retry_budget_seconds: float) -> None:
    """Prove with one request that the hub is there and takes the token.

    Raises:
        ModelmillError: there is none, it is refused, or the hub does not answer.
    """
    hub = open_hub(None, retry_budget_seconds)
    if not hub.token:
        raise PermissionRefused(
            "There is no token for the hub here", at=hub.endpoint, fix=HOW_TO_GIVE_ONE
        )
    hub.whoami()


def open_hub(at: HubAddress | None, retry_budget_seconds: float) -> Hub:
    """Read endpoint and token from where huggingface_hub's own commands find them."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").upper() in constants.ENV_VARS_TRUE_VALUES:
            raise offline(variable, str(at or "the hub"))
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    return Hub(endpoint.rstrip("/"), get_token() or "", retry_budget_seconds)
