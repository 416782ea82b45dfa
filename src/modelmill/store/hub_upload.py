"""A parcel on its way to a hub: a repository, large files by their digests, and one commit.

The commit is what makes the files appear, all at once; contents that the hub has already are not
sent again.  Large files go by Git LFS in its basic and multipart forms, to addresses that are
signed: the token stays behind.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from huggingface_hub import get_session, hf_raise_for_status
from pydantic import BaseModel, Field, ValidationError

from modelmill.spec.errors import InputMissing, PermissionRefused
from modelmill.spec.records import FileRecord
from modelmill.spec.sources import HubAddress
from modelmill.store.crew import PART_BYTES
from modelmill.store.hub import open_hub
from modelmill.store.hub_client import SILENCE_SECONDS, Hub
from modelmill.store.hub_failures import HOW_TO_GIVE_ONE
from modelmill.store.parcel import SUMS, Destination, Item, Made, Parcel, brought
from modelmill.store.s3 import Store

if TYPE_CHECKING:
    from httpx2 import Response

M = TypeVar("M", bound=BaseModel)

BRANCH: Final = "main"
SAMPLE_BYTES: Final = 512
"""Of each file, by which a hub tells text from weights."""
LONGEST_SUMS_BYTES: Final = 2**20

_MADE_BY_HUB: Final = ".gitattributes"
_JSON: Final = {"content-type": "application/json"}
_LFS: Final = {
    "accept": "application/vnd.git-lfs+json",
    "content-type": "application/vnd.git-lfs+json",
}


class _Mode(BaseModel):
    path: str
    mode: str = Field(alias="uploadMode")


class _Modes(BaseModel):
    files: tuple[_Mode, ...]


class _Action(BaseModel):
    href: str
    header: Mapping[str, str | int] = {}


class _Actions(BaseModel):
    upload: _Action
    verify: _Action | None = None


class _Object(BaseModel):
    oid: str
    actions: _Actions | None = None
    """None for what the hub has."""


class _Batch(BaseModel):
    objects: tuple[_Object, ...] = ()


@dataclass(frozen=True)
class Wishes:
    """What whoever exports accepts."""

    is_public: bool
    """A new repository is for everybody."""
    is_forced: bool
    """Files of the same name may be replaced; the hub's history keeps them."""


def into_hub(store: Store, parcel: Parcel, address: HubAddress, work: Path, wishes: Wishes) -> None:
    """Bring a parcel into a repository, file by file through this machine, and commit it.

    Args:
        store: where the files are.
        parcel: what leaves.
        address: the repository, made if need be.
        work: a folder for one file at a time.
        wishes: who may see it, and what may be replaced.

    Raises:
        PermissionRefused: there is no token, it may not write there, or everybody sees the
            repository and this is to be private.
        WouldBeLost: something else is there.
        ModelmillError: the hub does not answer.
    """
    hub = _open(address, store)
    with _writing(address):
        sending = _Sending(hub, address.at(BRANCH), store, work)
        sending.make(is_public=wishes.is_public)
        destination = _look(hub, address)
        stale = parcel.check(destination, is_forced=wishes.is_forced)
        if destination.sums != parcel.sums:
            sending.send(parcel, stale)


def look_into_hub(store: Store, address: HubAddress, *, is_public: bool) -> Destination:
    """See what a repository holds; nothing where there is none that is to be seen.

    Makes none: what is to go there may prove to be nothing that can.

    Raises:
        PermissionRefused: there is no token, or everybody sees the repository and this is to be
            private.
        ModelmillError: the hub does not answer.
    """
    hub = _open(address, store)
    with _writing(address):
        try:
            if not is_public:
                _check_private(hub, address)
            return _look(hub, address)
        except InputMissing:
            return Destination(str(address), {}, None)


def _open(address: HubAddress, store: Store) -> Hub:
    hub = open_hub(address, store.retry_budget_seconds)
    if not hub.token:
        raise PermissionRefused(
            "There is no token for the hub here", at=str(address), fix=_token(address)
        )
    return hub


def _check_private(hub: Hub, address: HubAddress) -> None:
    if not hub.is_private(address):
        raise PermissionRefused(
            f"{address.repository} is a repository that everybody sees",
            at=str(address),
            fix="say --public if everybody may see the model; or choose another name",
        )


def _look(hub: Hub, address: HubAddress) -> Destination:
    at = address.at(BRANCH)
    files = {file.path: file.size_bytes for file in hub.listing(at) if file.path != _MADE_BY_HUB}
    sums = hub.beginning(at, SUMS, LONGEST_SUMS_BYTES) if SUMS in files else None
    return Destination(str(address), files, sums)


@dataclass(frozen=True)
class _Sending:
    """One repository that files go to."""

    hub: Hub
    at: HubAddress
    store: Store
    work: Path

    def make(self, *, is_public: bool) -> None:
        """Make the repository unless it is there, and see that no more see it than shall."""
        organization, _, name = self.at.repository.partition("/")
        visibility = "public" if is_public else "private"
        asked = {"name": name, "organization": organization, "visibility": visibility}

        def create() -> None:
            answer = self._post(f"{self.hub.endpoint}/api/repos/create", _json(asked))
            if answer.status_code != HTTPStatus.CONFLICT:
                hf_raise_for_status(answer)

        self.hub.repeat(self.at, create)
        # Whoever has made it, and whatever a hub makes of what it is asked.
        if not is_public:
            _check_private(self.hub, self.at)

    def send(self, parcel: Parcel, stale: Sequence[str]) -> None:
        """Send what the hub has not, then commit everything at once."""
        modes = self._modes(parcel.items)
        large = [item for item in parcel.items if modes.get(item.record.path) == "lfs"]
        self._send_large(large)
        words = {**parcel.words, SUMS: parcel.sums}
        for item in parcel.items:
            if item not in large:
                with brought(self.store, item, self.work) as file:
                    words[item.record.path] = file.read_bytes()
        lines: list[Mapping[str, object]] = [
            {"key": "header", "value": {"summary": "Export a model", "description": ""}},
            *({"key": "deletedFile", "value": {"path": path}} for path in stale),
            *({"key": "file", "value": _small(path, body)} for path, body in words.items()),
            *({"key": "lfsFile", "value": _pointer(item.record)} for item in large),
        ]
        self._ask(
            f"{self.hub.api(self.at)}/commit/{BRANCH}",
            b"".join(_json(line) + b"\n" for line in lines),
            {"content-type": "application/x-ndjson"},
        )

    def _modes(self, items: Sequence[Item | Made]) -> Mapping[str, str]:
        """Ask which files are large in the hub's eyes."""
        asked = [
            {
                "path": item.record.path,
                "size": item.record.size_bytes,
                "sample": base64.b64encode(self._sample(item)).decode(),
            }
            for item in items
        ]
        answer = self._ask(f"{self.hub.api(self.at)}/preupload/{BRANCH}", _json({"files": asked}))
        return {each.path: each.mode for each in self._parsed(_Modes, answer).files}

    def _sample(self, item: Item | Made) -> bytes:
        if isinstance(item, Made):
            with item.file.open("rb") as file:
                return file.read(SAMPLE_BYTES)
        found = self.store.read_range(item.key, 0, SAMPLE_BYTES) if item.record.size_bytes else None
        return b"" if found is None else found.body

    def _send_large(self, items: Sequence[Item | Made]) -> None:
        asked = {
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "hash_algo": "sha256",
            "ref": {"name": BRANCH},
            "objects": [_object(item.record) for item in items],
        }
        url = f"{self.hub.endpoint}/{self.at.repository}.git/info/lfs/objects/batch"
        batch = self._parsed(_Batch, self._ask(url, _json(asked), _LFS)) if items else _Batch()
        actions = {each.oid: each.actions for each in batch.objects}
        for item in items:
            action = actions.get(item.record.sha256)
            if action is not None:
                with brought(self.store, item, self.work) as file:
                    self._send_file(item.record, file, action)

    def _send_file(self, record: FileRecord, file: Path, actions: _Actions) -> None:
        upload = actions.upload
        chunk_bytes = int(upload.header.get("chunk_size", 0))
        if not chunk_bytes:
            self._put(upload.href, file, 0, record.size_bytes)
        else:
            urls = {int(name): str(url) for name, url in upload.header.items() if name.isdigit()}
            parts = [
                {
                    "partNumber": number,
                    "etag": self._put(urls[number], file, (number - 1) * chunk_bytes, chunk_bytes),
                }
                for number in sorted(urls)
            ]
            self._ask(upload.href, _json({"oid": record.sha256, "parts": parts}), _LFS)
        if actions.verify is not None:
            self._ask(actions.verify.href, _json(_object(record)))

    def _put(self, url: str, file: Path, start: int, length: int) -> str:
        """Send bytes of a file to a signed address and return its ETag for them."""
        count = min(length, file.stat().st_size - start)

        def put() -> str:
            answer = get_session().put(
                url,
                content=_bytes_of(file, start, count),
                headers={"content-length": str(count)},
                timeout=SILENCE_SECONDS,
            )
            hf_raise_for_status(answer)
            return str(answer.headers.get("etag", ""))

        return self.hub.repeat(self.at, put)

    def _ask(self, url: str, body: bytes, headers: Mapping[str, str] = _JSON) -> bytes:
        def ask() -> bytes:
            answer = self._post(url, body, headers)
            hf_raise_for_status(answer)
            return answer.content

        return self.hub.repeat(self.at, ask)

    def _post(self, url: str, body: bytes, headers: Mapping[str, str] = _JSON) -> "Response":
        # The hub says where to go on; a token goes nowhere else.
        is_ours = url.startswith(f"{self.hub.endpoint}/")
        own = self.hub.headers() if is_ours else {}
        return get_session().post(
            url, content=body, headers={**own, **headers}, timeout=SILENCE_SECONDS
        )

    def _parsed(self, model: type[M], answer: bytes) -> M:
        try:
            return model.model_validate_json(answer)
        except ValidationError as error:
            raise self.hub.not_a_hub() from error


@contextmanager
def _writing(address: HubAddress) -> Iterator[None]:
    """Say of a refusal that it is about writing.

    Raises:
        PermissionRefused: the hub has refused.
    """
    try:
        yield
    except PermissionRefused as error:
        if error.fix != HOW_TO_GIVE_ONE:
            raise
        raise PermissionRefused(
            f"The hub does not let this token write to {address.repository}",
            at=str(address),
            fix=_token(address),
        ) from error


def _token(address: HubAddress) -> str:
    organization = address.repository.partition("/")[0]
    return f"set HF_TOKEN to a token that may write to repositories of {organization}"


def _bytes_of(file: Path, start: int, count: int) -> Iterator[bytes]:
    with file.open("rb") as opened:
        opened.seek(start)
        while count:
            body = opened.read(min(count, PART_BYTES))
            count -= len(body)
            yield body


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value).encode()


def _object(record: FileRecord) -> Mapping[str, object]:
    return {"oid": record.sha256, "size": record.size_bytes}


def _pointer(record: FileRecord) -> Mapping[str, object]:
    return {"path": record.path, "algo": "sha256", **_object(record)}


def _small(path: str, body: bytes) -> Mapping[str, object]:
    return {"path": path, "content": base64.b64encode(body).decode(), "encoding": "base64"}
