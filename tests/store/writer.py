"""A process that publishes one artifact, as a stage does or as it should not, and may die of it."""

import hashlib
import json
import os
import signal
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from modelmill.spec.canonical import canonical_json
from modelmill.spec.names import COMMITTED, MEASUREMENTS, artifact_prefix
from modelmill.spec.records import Device, FileRecord, Manifest
from modelmill.stages.entrypoint import as_failure
from modelmill.stages.pulse import Stop
from modelmill.store.artifact import (
    Committed,
    Published,
    attempt_prefix,
    commit,
    pull,
    read_manifest,
    stage_bytes,
    stage_files,
)
from modelmill.store.s3 import Store
from modelmill.store.transfer import download_many
from tests.store.scene import KEY, KIND, Fate, Protocol, Scene

STAGED = b"staged\n"


@dataclass(frozen=True)
class Writer:
    """One of a round; lives in a process of its own."""

    scene: Scene
    store: Store
    attempts: tuple[str, ...]
    """Of all writers of the round."""
    number: int
    fate: Fate
    folder: Path
    """Holds `output`, and what is read back."""

    def run(self, telling: int, hearing: int) -> NoReturn:
        """Publish, tell how it ended, and end the process; never returns to the parent's code."""
        code = 70
        try:
            try:
                Stop().install()
                arm(self.store, self.fate)
                outcome, code = self._publish_and_read(telling, hearing), 0
            except BaseException as error:  # noqa: BLE001 - as the entrypoint does
                failure = as_failure(error)
                code = failure.exit_code
                trace = traceback.format_exception(error) if code == 70 else []
                outcome = {"words": str(failure), "trace": "".join(trace)[-2000:]}
            os.write(telling, b"\n" + json.dumps(outcome).encode() + b"\n")
        finally:
            os._exit(code)

    def _publish_and_read(self, telling: int, hearing: int) -> dict[str, str]:
        published = self._publish(telling, hearing)
        found = published.committed
        read_artifact(self.store, self.scene.protocol, found, self.folder / "read")
        return {
            "state": published.state,
            "attempt": found.manifest.attempt,
            "sha256": found.sha256,
            "read": compare(self.scene, self.attempts, found, self.folder / "read"),
        }

    def _publish(self, telling: int, hearing: int) -> Published:
        present = read_manifest(self.store, KIND, KEY)
        if present is not None:
            return Published("adopted", present)
        attempt = self.attempts[self.number]
        output = self.folder / "output"
        if self.scene.protocol == "manifest first":
            _meet(telling, hearing)
            published = commit(self.store, make_manifest(attempt, _records(output)))
            self._stage(output)
            return published
        files = self._stage(output)
        _meet(telling, hearing)
        manifest = make_manifest(attempt, files)
        if self.scene.protocol == "no condition":
            body = canonical_json(manifest.model_dump(mode="json"))
            self.store.put(f"{artifact_prefix(KIND, KEY)}/{COMMITTED}", body)
            return Published("won", Committed(manifest, hashlib.sha256(body).hexdigest()))
        return commit(self.store, manifest)

    def _stage(self, output: Path) -> tuple[FileRecord, ...]:
        prefix = prefix_of(self.scene.protocol, self.attempts[self.number])
        files = stage_files(self.store, prefix, output)
        if self.scene.protocol == "manifest first":
            return files
        return (*files, stage_bytes(self.store, prefix, MEASUREMENTS, b"{}"))


def arm(store: Store, fate: Fate) -> None:
    """Let the process kill itself at the point of its fate, from within its own request."""
    when, _, what = fate.point.partition(" ")
    if not when:
        return
    operation = "PutObject" if what == "commit" else what
    at = threading.local()
    left = [fate.nth]

    def is_due() -> bool:
        if what == "commit" and not at.url.endswith(COMMITTED):
            return False
        left[0] -= 1
        return left[0] == 0

    def before(request: Any, **_: object) -> None:
        at.url = request.url.partition("?")[0]
        if when == "before" and is_due():
            os.kill(os.getpid(), signal.SIGKILL)

    def after(**_: object) -> None:
        if when == "after" and is_due():
            os.kill(os.getpid(), signal.SIGKILL)

    store.client.meta.events.register(f"before-send.s3.{operation}", before)
    store.client.meta.events.register(f"response-received.s3.{operation}", after)


def make_manifest(attempt: str, files: tuple[FileRecord, ...]) -> Manifest:
    """Describe an artifact of a stage that has nothing else to say."""
    return Manifest(
        kind=KIND,
        key=KEY,
        stage=KIND,
        run="torture",
        attempt=attempt,
        created="2026-01-01T00:00:00Z",
        settings={},
        inputs={},
        versions={},
        device=Device(accelerator="cpu", name="test"),
        files=files,
    )


def prefix_of(protocol: Protocol, attempt: str) -> str:
    """Name the folder of an artifact's files."""
    if protocol == "final keys":
        return artifact_prefix(KIND, KEY)
    return attempt_prefix(KIND, KEY, attempt)


def read_artifact(store: Store, protocol: Protocol, committed: Committed, folder: Path) -> None:
    """Read what is committed as any reader does, every byte checked."""
    if protocol != "final keys":
        pull(store, committed, folder)
        return
    prefix = prefix_of(protocol, committed.manifest.attempt)
    files = committed.manifest.files
    download_many(store, [(file, f"{prefix}/{file.path}", folder / file.path) for file in files])


def compare(scene: Scene, attempts: tuple[str, ...], committed: Committed, folder: Path) -> str:
    """Say how a folder differs from what the committed attempt wrote; nothing if it does not."""
    writer = attempts.index(committed.manifest.attempt)
    expected: Mapping[str, bytes] = {path: scene.body(writer, path) for path in scene.sizes}
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    found.pop(MEASUREMENTS, None)
    if found.keys() != expected.keys():
        return f"{sorted(found)} instead of {sorted(expected)}"
    wrong = [path for path, body in expected.items() if found[path] != body]
    return f"wrong bytes in {wrong}" if wrong else ""


def _records(output: Path) -> tuple[FileRecord, ...]:
    return tuple(
        FileRecord(
            path=path.name,
            size_bytes=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(output.iterdir())
    )


def _meet(telling: int, hearing: int) -> None:
    os.write(telling, STAGED)
    os.read(hearing, 1)
