"""Real stages that are asked to stop, or killed, in every phase of what they do with the store."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import pytest

from modelmill.conduct.conductor import Conducted
from modelmill.spec.names import (
    ENV_PLAN_SHA256,
    ENV_RUN,
    ENV_STAGE,
    ENV_STORE,
    ENV_TERMINATION,
    ENV_WORK,
)
from modelmill.store.artifact import read_manifest, verify
from modelmill.store.kept import KEPT
from tests.store.proxy import Fault, Proxy, Request

from ..workshop import Workshop
from .conftest import Preparer

STAGE = "fetch-test"
"""It reads a source and publishes rows: all there is to do with a store, without a model."""

HOLD_SECONDS = 1.0


@dataclass
class Held:
    """Holds the first request of a phase until the stage has been asked to stop."""

    phase: str
    is_there: Event = field(default_factory=Event)
    may_go: Event = field(default_factory=Event)

    def __call__(self, request: Request) -> Fault | None:
        """Choose for a proxy."""
        if not self.is_there.is_set() and self._is_it(request):
            self.is_there.set()
            self.may_go.wait(60)
        return None

    def _is_it(self, request: Request) -> bool:
        match self.phase:
            case "pull":
                return request.operation == "GetObject" and request.path.endswith(".jsonl")
            case "push":
                return request.operation == "PutObject" and "/attempts/" in request.path
            case _:
                return request.operation == "PutObject" and request.path.endswith("COMMITTED.json")


@pytest.fixture
def proxy(workshop: Workshop) -> Iterator[Proxy]:
    """Stand between the stage and its store."""
    with closing(Proxy(dict(os.environ))) as between:
        yield between


def _start(given: Conducted, folder: Path, endpoint: str) -> "subprocess.Popen[str]":
    folder.mkdir()
    environment = {
        "AWS_ENDPOINT_URL_S3": endpoint,
        ENV_STORE: given.store.url,
        ENV_RUN: given.run,
        ENV_STAGE: STAGE,
        ENV_PLAN_SHA256: given.plan_sha256,
        ENV_WORK: str(folder),
        ENV_TERMINATION: str(folder / "termination"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "modelmill.stages"],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(given: Conducted, folder: Path) -> None:
    """Let another attempt do it, and read every byte of what there is then."""
    with _start(given, folder, os.environ["AWS_ENDPOINT_URL_S3"]) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    stage = given.plan.stage(STAGE)
    committed = read_manifest(given.store, stage.kind, stage.key)
    assert committed is not None
    assert verify(given.store, committed) == ()


@pytest.mark.parametrize("phase", ["pull", "push", "commit"])
def test_stage_that_is_asked_to_stop(
    prepared: Preparer, proxy: Proxy, tmp_path: Path, phase: str
) -> None:
    """It ends with 75 and words, leaves nothing half, and another attempt finishes."""
    given = prepared(f"stop-{phase}")
    held = Held(phase)
    proxy.choose = held
    with _start(given, tmp_path / "first", proxy.url) as process:
        assert held.is_there.wait(60)
        process.send_signal(signal.SIGTERM)
        # In the middle of a commit it may be done all the same: never half, and found later.
        proxy.wait(HOLD_SECONDS)
        held.may_go.set()
        _, said = process.communicate()

    assert process.returncode == 75, said
    ending = json.loads((tmp_path / "first" / "termination").read_text(encoding="utf-8"))
    assert ending["exit_code"] == 75
    assert "Asked to stop" in ending["message"]
    left = {path.name for path in (tmp_path / "first").iterdir()}
    # Its own folder is gone; what it has fetched is there for the next attempt.
    assert left <= {"termination", ".modelmill-lock", KEPT}
    _finish(given, tmp_path / "second")


@pytest.mark.parametrize("phase", ["pull", "push", "commit"])
def test_stage_that_is_killed_after_a_short_grace(
    prepared: Preparer, proxy: Proxy, tmp_path: Path, phase: str
) -> None:
    """SIGTERM and SIGKILL a moment later: another attempt finishes."""
    given = prepared(f"kill-{phase}")
    held = Held(phase)
    proxy.choose = held
    with _start(given, tmp_path / "first", proxy.url) as process:
        assert held.is_there.wait(60)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        held.may_go.set()

    assert process.returncode == -signal.SIGKILL
    _finish(given, tmp_path / "second")
