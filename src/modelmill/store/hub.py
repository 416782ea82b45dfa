"""Models and data sets on a hub that speaks Hugging Face's protocol.

The only module that makes requests to it.  huggingface_hub finds the endpoint and the token
(`HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, a login), keeps connections and names errors.
Retries and time limits are ours, as they are for S3: the library's own waits know no budget, and
its listing may be waited for without end.  So is downloading, which through the library would
leave a cache and say nothing about digests.
"""

import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, BinaryIO, Final, TypeVar
from urllib.parse import quote, unquote_plus

from huggingface_hub import constants, get_session, get_token, hf_hub_url, hf_raise_for_status
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from modelmill.spec.errors import DataError, DigestMismatch, HubUnreachable
from modelmill.spec.records import FileRecord
from modelmill.spec.settings import Pin
from modelmill.spec.sources import HubAddress, parse_hub
from modelmill.store.hub_failures import (
    FAILURES,
    is_transient,
    offline,
    retry_after_seconds,
    translate,
)
from modelmill.store.hub_files import HubFile, digest_of, folder_to_list, wanted_files
from modelmill.store.keys import check_paths
from modelmill.store.transfer import OnBytes, final_name, no_progress, sink_of

T = TypeVar("T")

SILENCE_SECONDS: Final = 60.0
"""Without a byte, a request has failed."""
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 10.0
THREADS: Final = 4
CHUNK_BYTES: Final = 1024 * 1024

_PARTIAL: Final = 206
_NO_SUCH_RANGE: Final = 416


class _Repository(BaseModel):
    """What is read of the hub's answer about a repository."""

    sha: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


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


def pin_hub(address: str, retry_budget_seconds: float) -> Pin:
    """Find out the commit that an address stands for now, and what the hub says of its files.

    Raises:
        ModelmillError: it is not there, not for us, or the hub does not answer.
    """
    asked = parse_hub(address)
    hub = _open(asked, retry_budget_seconds)
    present = asked.at(hub.commit(asked))
    return Pin(address=str(present), digest=digest_of(hub.files(present)))


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
    hub = _open(pinned, retry_budget_seconds)
    files = hub.files(pinned)
    if digest_of(files) != pin.digest:
        raise DataError(
            "The hub lists other files under this commit than when the run was pinned to it",
            at=pin.address,
            fix="accept the present ones: modelmill run FILE --repin",
        )
    check_paths(file.path for file in files)
    return hub.download(pinned, files, destination, on_bytes)


def _open(at: HubAddress, retry_budget_seconds: float) -> "Hub":
    """Read endpoint and token from where huggingface_hub's own commands find them."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").upper() in constants.ENV_VARS_TRUE_VALUES:
            raise offline(variable, at)
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    return Hub(endpoint.rstrip("/"), get_token() or "", retry_budget_seconds)


@dataclass(frozen=True)
class Hub:
    """A hub as somebody sees it; safe to share between threads."""

    endpoint: str
    token: str = field(repr=False)
    retry_budget_seconds: float
    stop: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def commit(self, address: HubAddress) -> str:
        """Resolve a revision."""
        revision = f"/revision/{quote(address.revision, safe='')}" if address.revision else ""
        return self._try(address, lambda: self._repository(self._api(address) + revision)).sha

    def files(self, address: HubAddress) -> tuple[HubFile, ...]:
        """List what is wanted of a commit."""
        folder, is_deep = folder_to_list(address)
        url = f"{self._api(address)}/tree/{address.revision}"
        listing: list[HubFile] = []
        parameters: Mapping[str, str] = {"recursive": str(is_deep).lower()}
        url += f"/{quote(folder)}" if folder else ""
        while parameters:
            now = parameters
            page, parameters = self._try(address, lambda: self._page(url, now))  # noqa: B023
            listing += page
        return wanted_files(address, listing)

    def download(
        self,
        address: HubAddress,
        files: Sequence[HubFile],
        destination: Path,
        on_bytes: OnBytes = no_progress,
    ) -> tuple[FileRecord, ...]:
        """Download files side by side; each gets its name only when all of it is right."""
        telling = threading.Lock()

        def tell(count: int) -> None:
            with telling:
                on_bytes(count)

        def fetch(file: HubFile) -> FileRecord:
            return _Download(self, address, file, tell).into(destination / file.path)

        with ThreadPoolExecutor(THREADS) as pool:
            waiting = [pool.submit(fetch, file) for file in files]
            try:
                for future in as_completed(waiting):
                    future.result()
            except BaseException:
                self.stop.set()
                for future in waiting:
                    future.cancel()
                raise
        return tuple(future.result() for future in waiting)

    def headers(self) -> dict[str, str]:
        """Say who asks; the client drops the token where it is led to another host."""
        agent = f"modelmill/{version('modelmill')}; hf_hub/{version('huggingface_hub')}"
        # Ranges count bytes as they are stored.
        headers = {"user-agent": agent, "accept-encoding": "identity"}
        return {**headers, "authorization": f"Bearer {self.token}"} if self.token else headers

    def _api(self, address: HubAddress) -> str:
        return f"{self.endpoint}/api/{address.kind}s/{address.repository}"

    def _repository(self, url: str) -> _Repository:
        answer = get_session().get(url, headers=self.headers(), timeout=SILENCE_SECONDS)
        hf_raise_for_status(answer)
        try:
            return _Repository.model_validate_json(answer.content)
        except ValidationError as error:
            raise self._not_a_hub() from error

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
            raise self._not_a_hub() from error
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

    def _not_a_hub(self) -> HubUnreachable:
        return HubUnreachable(
            "What answers there is not a hub",
            at=self.endpoint,
            fix="correct HF_ENDPOINT; a proxy may have answered in its place",
        )

    def _try(self, at: HubAddress, request: Callable[[], T]) -> T:
        """Repeat a request until it succeeds, cannot, or the budget is spent."""
        patience = Patience(self, at)
        while True:
            try:
                return request()
            except FAILURES as error:
                patience.wait_after(error)


class Patience:
    """Decides whether a failure is worth another try, and waits before it."""

    def __init__(self, hub: Hub, at: HubAddress) -> None:
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


class Stopped(Exception):
    """A download that is being abandoned must not go on."""


class _Download:
    """One file on its way: goes on where a connection broke, and is hashed as it comes."""

    def __init__(self, hub: Hub, address: HubAddress, file: HubFile, tell: OnBytes) -> None:
        self._hub = hub
        self._address = address
        self._file = file
        self._tell = tell
        self._url = hf_hub_url(
            address.repository,
            file.path,
            repo_type=address.kind,
            revision=address.revision,
            endpoint=hub.endpoint,
        )
        self._start_over()

    def into(self, path: Path) -> FileRecord:
        """Write the file, from its start once more if its digest is wrong the first time."""
        with final_name(path) as target:
            self._read(target)
            if not self._is_right():
                self._start_over(target)
                self._read(target)
            if not self._is_right():
                raise self._mismatch()
        return FileRecord(
            path=self._file.path, size_bytes=self._done, sha256=self._sha256.hexdigest()
        )

    def _start_over(self, target: BinaryIO | None = None) -> None:
        if target is not None:
            target.truncate(0)
            self._tell(-self._done)
        self._done: int = 0
        self._sha256 = hashlib.sha256()
        # Git's name for a content; it is compared with what git has, and protects nothing else.
        self._git = hashlib.sha1(b"blob %d\0" % self._file.size_bytes, usedforsecurity=False)

    def _read(self, target: BinaryIO) -> None:
        """Read to the end of what comes, however often the connection breaks."""
        patience = Patience(self._hub, self._address)
        while True:
            before = self._done
            try:
                self._go_on(target)
            except FAILURES as error:
                if self._done > before:
                    patience.renew()
                patience.wait_after(error)
            else:
                return

    def _go_on(self, target: BinaryIO) -> None:
        sink, headers = sink_of(target), self._hub.headers()
        if self._done:
            headers["range"] = f"bytes={self._done}-"
        request = get_session().stream("GET", self._url, headers=headers, timeout=SILENCE_SECONDS)
        with request as answer:
            if self._done and answer.status_code == _NO_SUCH_RANGE:
                return
            hf_raise_for_status(answer)
            if self._done and answer.status_code != _PARTIAL:
                self._start_over(target)
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                if self._hub.stop.is_set():
                    raise Stopped
                sink(self._done, chunk)
                self._take(chunk)
                if self._done > self._file.size_bytes:
                    return

    def _take(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self._git.update(chunk)
        self._done += len(chunk)
        self._tell(len(chunk))

    def _is_right(self) -> bool:
        stated = self._file.sha256
        found = self._sha256.hexdigest() if stated else self._git.hexdigest()
        return self._done == self._file.size_bytes and found == (stated or self._file.git_blob)

    def _mismatch(self) -> DigestMismatch:
        return DigestMismatch(
            f"{self._file.path} is not what the hub says it is: {self._done:,} bytes with the "
            f"SHA-256 {self._sha256.hexdigest()} came, {self._file.size_bytes:,} bytes with "
            + (f"{self._file.sha256}" if self._file.sha256 else f"git's {self._file.git_blob}")
            + " were stated",
            at=str(self._address),
            fix="run the same command again; if it stays, tell who keeps the hub or its mirror",
        )
