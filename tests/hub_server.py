"""A hub on loopback, as huggingface_hub knows one: repositories, commits, large files, gates.

It speaks what `HfApi.repo_info`, `HfApi.list_repo_tree` and `hf_hub_download` expect, and has a
second address that plays the CDN: large files are led there, and a token must not go along.
Faults can be planned for the next requests.
"""

import hashlib
import json
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, Literal, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from .hub_writes import Uploads, answer_write, needs_token

Kind = Literal["model", "dataset"]
Fault = Literal["503", "429", "cut", "flip", "whole", "drop"]
"""`whole`: a range is not honoured.  `drop`: the connection is closed without an answer."""

LARGE_BYTES = 1000
"""From here on a file is kept as a large one, with a SHA-256."""
TOKEN = "hf_canary7c0ffee5deadbeef"
"""The token of somebody who may see everything."""


def git_blob(content: bytes) -> str:
    """Name a content as git does."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's


@dataclass
class Repository:
    """A repository: branches and tags name commits, commits name files."""

    kind: Kind
    name: str
    is_private: bool = False
    is_gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Replace what a branch holds, and return the new commit."""
        names = json.dumps([len(self.commits), self.name, sorted(files)])
        commit = hashlib.sha1(names.encode()).hexdigest()  # noqa: S324 - git's
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit

    def find(self, revision: str) -> str | None:
        """Resolve a branch, a tag or a commit."""
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    range: str
    has_token: bool


class HubServer:
    """Serves repositories; use as a context manager."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.tokens = {TOKEN}
        self.writers = {TOKEN}
        self.uploads = Uploads()
        self.page_entries = 1000
        self.faults: list[tuple[str, Fault]] = []
        self.seen: list[Seen] = []
        self.retry_after_seconds = 1
        self._front = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(_Front))
        self._cdn = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(_Cdn))
        self.url = f"http://127.0.0.1:{self._front.server_address[1]}"
        self.cdn_url = f"http://localhost:{self._cdn.server_address[1]}"

    def __enter__(self) -> Self:
        for server in (self._front, self._cdn):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self._front, self._cdn):
            server.shutdown()
            server.server_close()

    def _handler(self, kind: type["_Handler"]) -> type["_Handler"]:
        return type(kind.__name__, (kind,), {"hub": self})

    def repository(self, kind: Kind, name: str, files: dict[str, bytes]) -> Repository:
        """Make a repository with one commit on its default branch."""
        made = Repository(kind, name)
        made.commit(files)
        self.repositories[kind, name] = made
        return made

    def plan(self, fault: Fault, path: str, times: int = 1) -> None:
        """Let the next requests whose path matches go wrong."""
        self.faults += [(path, fault)] * times

    def take(self, path: str) -> Fault | None:
        """Use up a planned fault."""
        for index, (pattern, fault) in enumerate(self.faults):
            if re.search(pattern, path):
                del self.faults[index]
                return fault
        return None

    def paths(self, part: str) -> list[str]:
        """List the requests whose path has a part."""
        return [seen.path for seen in self.seen if part in seen.path]


class _Handler(BaseHTTPRequestHandler, ABC):
    protocol_version = "HTTP/1.1"
    hub: ClassVar[HubServer]
    body: bytes

    def handle_request(self) -> None:
        """Answer, with a planned fault or without."""
        token = self.headers.get("Authorization", "")
        asked = self.headers.get("Range", "")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.hub.seen.append(Seen(self.command, self.path, asked, bool(token)))
        fault = self.hub.take(self.path)
        match fault:
            case "drop":
                self.close_connection = True
            case "503":
                self.fail(HTTPStatus.SERVICE_UNAVAILABLE)
            case "429":
                wait = str(self.hub.retry_after_seconds)
                self.fail(HTTPStatus.TOO_MANY_REQUESTS, headers={"Retry-After": wait})
            case _:
                self.answer(fault)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815 - http.server's names

    @abstractmethod
    def answer(self, fault: Fault | None) -> None:
        """Answer a request that is not spoilt altogether."""

    def send(
        self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None
    ) -> None:
        """Send an answer whose body may be spoilt."""
        if fault == "flip":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        self.close_connection = self.close_connection or fault == "cut"

    def fail(
        self, status: int, code: str = "", words: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Refuse as the hub does: the reason is in headers."""
        reasons = {"X-Error-Code": code, "X-Error-Message": words}
        body = json.dumps({"error": words}).encode()
        sent = {name: value for name, value in reasons.items() if value}
        self.send(status, body, {"Content-Type": "application/json", **sent, **(headers or {})})

    def send_content(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        """Send a file, or the part of it that is asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked.group(1)) if asked and fault != "whole" else 0
        if start and start >= len(content):
            self.fail(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        if start:
            headers = {
                **headers,
                "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}",
            }
        status = HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK
        self.send(status, content[start:], headers, fault)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


class _Cdn(_Handler):
    """Serves contents by their SHA-256 to whoever knows the signed address."""

    def answer(self, fault: Fault | None) -> None:
        """Send a large file."""
        if self.headers.get("Authorization"):
            self.fail(HTTPStatus.BAD_REQUEST, words="a token came along")
            return
        if self.command == "PUT":
            tag = self.hub.uploads.put(urlsplit(self.path), self.body)
            self.send(HTTPStatus.OK, b"", {"ETag": tag})
            return
        wanted = urlsplit(self.path).path.removeprefix("/")
        for repository in self.hub.repositories.values():
            for files in repository.commits.values():
                for content in files.values():
                    if hashlib.sha256(content).hexdigest() == wanted:
                        self.send_content(content, {"ETag": f'"{wanted}"'}, fault)
                        return
        self.fail(HTTPStatus.NOT_FOUND)


class _Front(_Handler):
    """Serves the API and the addresses of files."""

    def answer(self, fault: Fault | None) -> None:
        """Find the route."""
        url = urlsplit(self.path)
        if url.path == "/api/whoami-v2":
            self._whoami()
        elif route := _INFO.fullmatch(url.path):
            self._info(route)
        elif route := _TREE.fullmatch(url.path):
            self._tree(route, {name: values[0] for name, values in parse_qs(url.query).items()})
        elif route := _RESOLVE.fullmatch(url.path):
            self._resolve(route, fault)
        elif needs_token(self.command, url.path) and self._token() not in self.hub.writers:
            self.fail(HTTPStatus.FORBIDDEN, words="this token may not write")
        elif self.command == "POST":
            answer = answer_write(self.hub, url.path, self.body)
            if answer is None:
                self.fail(HTTPStatus.NOT_FOUND, words="no such route")
            else:
                self._send_json(answer.document, status=answer.status)
        else:
            self.fail(HTTPStatus.NOT_FOUND, words="no such route")

    def _whoami(self) -> None:
        if self._token() not in self.hub.tokens:
            self.fail(HTTPStatus.UNAUTHORIZED, words="Invalid username or password.")
            return
        self._send_json({"name": "somebody", "type": "user"})

    def _info(self, route: re.Match[str]) -> None:
        repository = self._repository(route)
        if repository is None:
            return
        commit = self._commit(repository, unquote(route["revision"] or "main"))
        if commit is not None:
            siblings = [{"rfilename": path} for path in repository.commits[commit]]
            about = {"id": repository.name, "sha": commit, "private": repository.is_private}
            self._send_json({**about, "siblings": siblings})

    def _tree(self, route: re.Match[str], query: dict[str, str]) -> None:
        repository = self._repository(route)
        if repository is None:
            return
        if repository.is_gated and not self._may_see():
            self._refuse_gated()
            return
        commit = self._commit(repository, unquote(route["revision"]))
        if commit is None:
            return
        folder = unquote(route["path"] or "")
        files = repository.commits[commit]
        entries = list(_entries(files, folder, is_deep=query.get("recursive") == "true"))
        if folder and not entries:
            self.fail(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{folder} does not exist")
            return
        start = int(query.get("cursor", "0"))
        end = start + self.hub.page_entries
        link = f"{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={end}"
        more = {"Link": f'<{link}>; rel="next"'} if end < len(entries) else {}
        self._send_json(entries[start:end], more)

    def _resolve(self, route: re.Match[str], fault: Fault | None) -> None:
        repository = self._repository(route)
        if repository is None:
            return
        if repository.is_gated and not self._may_see():
            self._refuse_gated()
            return
        commit = self._commit(repository, unquote(route["revision"]))
        if commit is None:
            return
        content = repository.commits[commit].get(unquote(route["path"]))
        if content is None:
            self.fail(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": commit}
        if len(content) < LARGE_BYTES:
            self.send_content(content, {**headers, "ETag": f'"{git_blob(content)}"'}, fault)
            return
        sha256 = hashlib.sha256(content).hexdigest()
        self.send(
            HTTPStatus.FOUND,
            b"",
            {
                **headers,
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{sha256}"',
                "Location": f"{self.hub.cdn_url}/{sha256}?Signature=signed{quote(TOKEN[:6])}",
            },
        )

    def _repository(self, route: re.Match[str]) -> Repository | None:
        """Find a repository; one that may not be seen is as good as not there."""
        kind = "dataset" if (route["kind"] or "").startswith("datasets") else "model"
        found = self.hub.repositories.get((kind, route["name"]))
        if self._token() and not self._may_see():
            words = "Invalid credentials in Authorization header"
            self.fail(HTTPStatus.UNAUTHORIZED, words=words)
            return None
        if found is not None and (not found.is_private or self._may_see()):
            return found
        status = HTTPStatus.NOT_FOUND if self._may_see() else HTTPStatus.UNAUTHORIZED
        words = "Repository not found" if self._may_see() else "Invalid username or password."
        self.fail(status, "RepoNotFound", words)
        return None

    def _refuse_gated(self) -> None:
        words = "Access to this resource is restricted. You must be authenticated to access it."
        self.fail(HTTPStatus.UNAUTHORIZED, "GatedRepo", words)

    def _commit(self, repository: Repository, revision: str) -> str | None:
        commit = repository.find(revision)
        if commit is None:
            words = f"Invalid rev id: {revision}"
            self.fail(HTTPStatus.NOT_FOUND, "RevisionNotFound", words)
        return commit

    def _may_see(self) -> bool:
        return self._token() in self.hub.tokens

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _send_json(
        self,
        document: object,
        headers: dict[str, str] | None = None,
        status: int = HTTPStatus.OK,
    ) -> None:
        body = json.dumps(document).encode()
        self.send(status, body, {"Content-Type": "application/json", **(headers or {})})


_NAME = r"(?P<name>[^/]+/[^/]+)"
_INFO = re.compile(rf"/api/(?P<kind>models|datasets)/{_NAME}(/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(
    rf"/api/(?P<kind>models|datasets)/{_NAME}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?"
)
_RESOLVE = re.compile(rf"/(?P<kind>datasets/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


def _entries(files: dict[str, bytes], folder: str, *, is_deep: bool) -> Iterator[dict[str, object]]:
    prefix = f"{folder}/" if folder else ""
    folders: set[str] = set()
    for path, content in files.items():
        if not path.startswith(prefix):
            continue
        inner = path.removeprefix(prefix)
        for depth in range(1, len(inner.split("/"))):
            name = prefix + "/".join(inner.split("/")[:depth])
            if name not in folders and (is_deep or depth == 1):
                folders.add(name)
                yield {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
        if is_deep or "/" not in inner:
            yield _entry(path, content)


def _entry(path: str, content: bytes) -> dict[str, object]:
    if len(content) < LARGE_BYTES:
        return {"type": "file", "oid": git_blob(content), "size": len(content), "path": path}
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize "
    pointer += f"{len(content)}\n"
    lfs = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
    return {
        "type": "file",
        "oid": git_blob(pointer.encode()),
        "size": len(content),
        "path": path,
        "lfs": lfs,
    }
