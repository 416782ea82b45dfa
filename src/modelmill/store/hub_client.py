"""Requests to a hub that speaks Hugging Face's protocol, with retries and time limits.

huggingface_hub keeps connections and names errors.  Retries and limits are ours, as they are for
S3: the library's own waits know no budget, and its listing may be waited for without end.
"""

import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Final, TypeVar
from urllib.parse import quote, unquote_plus

from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from modelmill.spec.errors import HubUnreachable
from modelmill.spec.sources import HubAddress
from modelmill.store.connection import Stopped
from modelmill.store.hub_failures import FAILURES, is_transient, retry_after_seconds, translate
from modelmill.store.hub_files import HubFile, folder_to_list, wanted_files

T = TypeVar("T")

SILENCE_SECONDS: Final = 60.0
"""Without a byte, a request has failed."""
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 10.0


class _Repository(BaseModel):
    """What is read of the hub's answer about a repository."""

    sha: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    private: bool = False


class _Lfs(BaseModel):
    oid: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    """What is read of one line of a listing."""

    type: str
    path: str
    oid: str
    size: int = 0
    lfs: _Lfs | None = None


_LISTING: Final = TypeAdapter(list[_Entry])


@dataclass(frozen=True)
class Hub:
    """A hub as somebody sees it; safe to share between threads."""

    endpoint: str
    token: str = field(repr=False)
    retry_budget_seconds: float
    stop: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def whoami(self) -> None:
        """Let the hub look at the token."""

        def ask() -> None:
            url = f"{self.endpoint}/api/whoami-v2"
            answer = get_session().get(url, headers=self.headers(), timeout=SILENCE_SECONDS)
            hf_raise_for_status(answer)

        self.repeat(None, ask)

    def commit(self, address: HubAddress) -> str:
        """Resolve a revision."""
        revision = f"/revision/{quote(address.revision, safe='')}" if address.revision else ""
        return self.repeat(address, lambda: self._repository(self.api(address) + revision)).sha

    def is_private(self, address: HubAddress) -> bool:
        """Tell whether only some may see a repository."""
        return self.repeat(address, lambda: self._repository(self.api(address))).private

    def files(self, address: HubAddress) -> tuple[HubFile, ...]:
        """List what is wanted of a commit."""
        return wanted_files(address, self.listing(address, *folder_to_list(address)))

    def listing(
        self, address: HubAddress, folder: str = "", is_deep: bool = True
    ) -> tuple[HubFile, ...]:
        """List all files of a revision, or of a folder in it."""
        url = f"{self.api(address)}/tree/{address.revision}"
        listing: list[HubFile] = []
        parameters: Mapping[str, str] = {"recursive": str(is_deep).lower()}
        url += f"/{quote(folder)}" if folder else ""
        while parameters:
            now = parameters
            page, parameters = self.repeat(address, lambda: self._page(url, now))  # noqa: B023
            listing += page
        return tuple(listing)

    def beginning(self, address: HubAddress, path: str, length: int) -> bytes:
        """Read the first bytes of a file, and no more where the hub would send all of it."""
        if not length:
            return b""
        url = hf_hub_url(
            address.repository,
            path,
            repo_type=address.kind,
            revision=address.revision,
            endpoint=self.endpoint,
        )
        headers = {**self.headers(), "range": f"bytes=0-{length - 1}"}

        def read() -> bytes:
            got = b""
            with get_session().stream(
                "GET", url, headers=headers, timeout=SILENCE_SECONDS
            ) as answer:
                hf_raise_for_status(answer)
                for chunk in answer.iter_bytes():
                    got += chunk
                    if len(got) >= length:
                        break
            return got[:length]

        return self.repeat(address, read)

    def headers(self) -> dict[str, str]:
        """Say who asks; the client drops the token where it is led to another host."""
        agent = f"modelmill/{version('modelmill')}; hf_hub/{version('huggingface_hub')}"
        # Ranges count bytes as they are stored.
        headers = {"user-agent": agent, "accept-encoding": "identity"}
        return {**headers, "authorization": f"Bearer {self.token}"} if self.token else headers

    def api(self, address: HubAddress) -> str:
        """Name where the hub is asked about a repository."""
        return f"{self.endpoint}/api/{address.kind}s/{address.repository}"

    def _repository(self, url: str) -> _Repository:
        answer = get_session().get(url, headers=self.headers(), timeout=SILENCE_SECONDS)
        hf_raise_for_status(answer)
        try:
            return _Repository.model_validate_json(answer.content)
        except ValidationError as error:
            raise self.not_a_hub() from error

    def _page(
        self, url: str, parameters: Mapping[str, str]
    ) -> tuple[list[HubFile], Mapping[str, str]]:
        """Read a page of a listing, and what to ask for the next one; nothing at the end."""
        answer = get_session().get(
            url, headers=self.headers(), params=dict(parameters), timeout=SILENCE_SECONDS
        )
        hf_raise_for_status(answer)
        try:
            entries = _LISTING.validate_json(answer.content)
        except ValidationError as error:
            raise self.not_a_hub() from error
        files = [
            HubFile(each.path, each.size, each.oid, each.lfs.oid if each.lfs else "")
            for each in entries
            if each.type == "file"
        ]
        # Not the link itself: it leads wherever it says, and the token would go along.
        link = answer.links.get("next", {}).get("url", "")
        cursor = re.search(r"[?&]cursor=([^&]+)", link)
        if cursor is None:
            return files, {}
        return files, {**parameters, "cursor": unquote_plus(cursor.group(1))}

    def not_a_hub(self) -> HubUnreachable:
        """Say that an answer was none of a hub."""
        return HubUnreachable(
            "What answers there is not a hub",
            at=self.endpoint,
            fix="correct HF_ENDPOINT; a proxy may have answered in its place",
        )

    def repeat(self, at: HubAddress | None, request: Callable[[], T]) -> T:
        """Repeat a request until it succeeds, cannot, or the budget is spent."""
        patience = Patience(self, at)
        while True:
            try:
                return request()
            except FAILURES as error:
                patience.wait_after(error)


class Patience:
    """Decides whether a failure is worth another try, and waits before it."""

    def __init__(self, hub: Hub, at: HubAddress | None) -> None:
        """Start with the whole budget."""
        self._hub = hub
        self._at = at
        self.renew()

    def renew(self) -> None:
        """Start again with the whole budget: something has come of the last try."""
        self._started = time.monotonic()
        self._pause = FIRST_PAUSE_SECONDS

    def wait_after(self, error: Exception) -> None:
        """Wait as long as the hub asks for, or a little longer each time.

        Raises:
            ModelmillError: trying again would be useless, or the budget would be overdrawn.
            Stopped: the transfer is being abandoned.
        """
        elapsed = time.monotonic() - self._started
        wait = max(self._pause * random.uniform(0.5, 1.0), retry_after_seconds(error))  # noqa: S311
        if not is_transient(error) or elapsed + wait > self._hub.retry_budget_seconds:
            has_token = bool(self._hub.token)
            raise translate(
                error, self._at, self._hub.endpoint, has_token=has_token, tried_seconds=elapsed
            ) from error
        if self._hub.stop.wait(wait):
            raise Stopped from error
        self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)
