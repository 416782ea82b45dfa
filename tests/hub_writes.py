"""What a hub on loopback does with requests that write: repositories, large files, commits.

As the hub does, it keeps contents by their SHA-256, believes none that it has not hashed itself,
and commits only what it has.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qs

if TYPE_CHECKING:
    from .hub_server import HubServer


@dataclass
class Uploads:
    """Large contents, whole and in parts."""

    contents: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    chunk_bytes: int = 0
    """Larger contents are asked for in parts; 0 for never."""
    is_deaf: bool = False
    """Every repository is for everybody, whatever was asked for."""

    def put(self, url: SplitResult, body: bytes) -> str:
        """Take a content, or a part of one, at its signed address."""
        oid = url.path.removeprefix("/")
        part = parse_qs(url.query).get("part")
        if part is None:
            self.keep(oid, body)
        else:
            self.parts.setdefault(oid, {})[int(part[0])] = body
        return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'

    def keep(self, oid: str, body: bytes) -> None:
        """Keep a content, under its own digest whatever it was called."""
        del oid
        self.contents[hashlib.sha256(body).hexdigest()] = body


@dataclass(frozen=True)
class Written:
    """An answer to a request that writes."""

    document: Any
    status: int = HTTPStatus.OK


def needs_token(method: str, path: str) -> bool:
    """Tell what not everybody may ask; where parts are put together the address is signed."""
    return method == "POST" and _COMPLETE.fullmatch(path) is None


def answer_write(hub: "HubServer", path: str, body: bytes) -> Written | None:
    """Answer a request that writes; None where there is no such route."""
    if path == "/api/repos/create":
        return _create(hub, json.loads(body))
    if route := _PREUPLOAD.fullmatch(path):
        return _preupload(json.loads(body))
    if route := _BATCH.fullmatch(path):
        return _batch(hub, json.loads(body))
    if route := _COMPLETE.fullmatch(path):
        return _complete(hub, route["oid"], json.loads(body))
    if path == "/verify":
        asked = json.loads(body)
        known = len(hub.uploads.contents.get(asked["oid"], b"")) == asked["size"]
        return Written({}, HTTPStatus.OK if known else HTTPStatus.UNPROCESSABLE_ENTITY)
    if route := _COMMIT.fullmatch(path):
        return _commit(hub, route["name"], [json.loads(line) for line in body.splitlines()])
    return None


def _create(hub: "HubServer", asked: dict[str, Any]) -> Written:
    name = f"{asked['organization']}/{asked['name']}"
    if ("model", name) in hub.repositories:
        return Written({"error": "You already created this model repo"}, HTTPStatus.CONFLICT)
    made = hub.repository("model", name, {".gitattributes": b"*.safetensors filter=lfs\n"})
    made.is_private = asked["visibility"] == "private" and not hub.uploads.is_deaf
    return Written({"url": f"{hub.url}/{name}"})


def _preupload(asked: dict[str, Any]) -> Written:
    files = [
        {
            "path": each["path"],
            "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
            "shouldIgnore": False,
        }
        for each in asked["files"]
        if base64.b64decode(each["sample"]) is not None
    ]
    return Written({"files": files})


def _batch(hub: "HubServer", asked: dict[str, Any]) -> Written:
    objects = []
    for each in asked["objects"]:
        upload: dict[str, Any] = {"href": f"{hub.cdn_url}/{each['oid']}"}
        chunk = hub.uploads.chunk_bytes
        if chunk and each["size"] > chunk:
            count = -(-each["size"] // chunk)
            urls = {str(n): f"{hub.cdn_url}/{each['oid']}?part={n}" for n in range(1, count + 1)}
            upload = {
                "href": f"{hub.url}/complete/{each['oid']}",
                "header": {"chunk_size": str(chunk), **urls},
            }
        actions = {"upload": upload, "verify": {"href": f"{hub.url}/verify"}}
        known = each["oid"] in hub.uploads.contents
        objects.append({**each, **({} if known else {"actions": actions})})
    return Written({"transfer": "basic", "objects": objects})


def _complete(hub: "HubServer", oid: str, asked: dict[str, Any]) -> Written:
    parts = hub.uploads.parts.pop(oid)
    assert [each["partNumber"] for each in asked["parts"]] == sorted(parts)
    assert all(each["etag"] for each in asked["parts"])
    hub.uploads.keep(oid, b"".join(parts[number] for number in sorted(parts)))
    return Written({})


def _commit(hub: "HubServer", name: str, lines: list[dict[str, Any]]) -> Written:
    repository = hub.repositories["model", name]
    files = dict(repository.commits[repository.branches["main"]])
    for line in lines:
        value = line["value"]
        match line["key"]:
            case "deletedFile":
                del files[value["path"]]
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                content = hub.uploads.contents.get(value["oid"])
                if content is None or len(content) != value["size"]:
                    return Written({"error": "no such object"}, HTTPStatus.BAD_REQUEST)
                files[value["path"]] = content
    commit = repository.commit(files)
    return Written(
        {"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/{name}/commit/{commit}"}
    )


_NAME = r"(?P<name>[^/]+/[^/]+)"
_PREUPLOAD = re.compile(rf"/api/models/{_NAME}/preupload/main")
_COMMIT = re.compile(rf"/api/models/{_NAME}/commit/main")
_BATCH = re.compile(rf"/{_NAME}\.git/info/lfs/objects/batch")
_COMPLETE = re.compile(r"/complete/(?P<oid>[0-9a-f]{64})")
