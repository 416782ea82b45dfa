"""Plays rounds of torture and judges what readers would find after each."""

import json
import os
import select
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from modelmill.spec.errors import ModelmillError
from modelmill.spec.names import COMMITTED, artifact_prefix
from modelmill.store.artifact import attempt_id, read_manifest
from modelmill.store.s3 import Store
from tests.store.scene import KEY, KIND, TWINS, Fate, Scene
from tests.store.writer import STAGED, Writer, compare, read_artifact

HUNG_SECONDS: Final = 600.0
GRACE_SECONDS: Final = 0.05
POLL_SECONDS: Final = 0.005


@dataclass(frozen=True)
class Result:
    """What a round showed."""

    violations: tuple[str, ...]
    kills: int
    seconds: float
    """How long a writer lived that nobody killed; 0 where there was none."""


@dataclass
class _Process:
    """A writer, seen from its parent."""

    attempt: str
    fate: Fate
    pid: int
    told: int
    go: int
    started: float
    ended: float = 0.0
    words: bytes = b""
    status: int = 0
    sent: int = 0

    @property
    def is_over(self) -> bool:
        return self.ended > 0

    @property
    def is_killed(self) -> bool:
        return self.is_over and os.WIFSIGNALED(self.status)

    @property
    def outcome(self) -> dict[str, Any]:
        """What it said last; empty where it died before it could."""
        last = self.words.strip().rpartition(b"\n")[2]
        return json.loads(last) if last.startswith(b"{") else {}


class Theatre:
    """Plays one round at a time, in a process without threads."""

    def __init__(self, calm: Store, stormy: Store, folder: Path) -> None:
        """Take what rounds need.

        Args:
            calm: for the reader that judges.
            stormy: through the proxy, for writers; never used in this process.
            folder: for files, of this process alone.
        """
        self._calm = calm
        self._stormy = stormy
        self._folder = folder

    def play(self, scene: Scene) -> Result:
        """Let twins write, then look at what a reader would find."""
        shutil.rmtree(self._folder, ignore_errors=True)
        calm = replace(self._calm, prefix=scene.name)
        stormy = replace(self._stormy, prefix=scene.name)
        attempts = tuple(attempt_id() for _ in range(TWINS + 1))

        def start(number: int, fate: Fate) -> _Process:
            folder = self._folder / str(number)
            return _start(Writer(scene, stormy, attempts, number, fate, folder))

        writers = [start(number, fate) for number, fate in enumerate(scene.fates)]
        _watch(writers, meets=scene.meets)
        first = _committed_sha256(calm)
        if not any("state" in each.outcome for each in writers):
            # A conductor would start another attempt.
            writers.append(start(TWINS, Fate()))
            _watch(writers[TWINS:], meets=False)
        spared = [each.ended - each.started for each in writers if not each.fate.signals]
        result = Result(
            (
                *_judge_ends(writers),
                *_judge_outcomes(writers, first, _committed_sha256(calm)),
                *self._judge_artifact(scene, calm, attempts),
                *_judge_uploads(writers, calm),
            ),
            sum(each.is_killed for each in writers),
            max(spared, default=0.0),
        )
        calm.delete(item.key for item in calm.list())
        return result

    def _judge_artifact(
        self, scene: Scene, store: Store, attempts: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Look for exactly one commit, all of its bytes, and no other's."""
        manifests = [item.key for item in store.list() if item.key.endswith(COMMITTED)]
        if manifests != [f"{artifact_prefix(KIND, KEY)}/{COMMITTED}"]:
            return (f"commits: {manifests}",)
        folder = self._folder / "judged"
        try:
            committed = read_manifest(store, KIND, KEY)
            assert committed is not None
            read_artifact(store, scene.protocol, committed, folder)
        except ModelmillError as error:
            return (f"a reader fails: {error}",)
        wrong = compare(scene, attempts, committed, folder)
        return (f"a reader finds {wrong}",) if wrong else ()


def _start(writer: Writer) -> _Process:
    output = writer.folder / "output"
    output.mkdir(parents=True)
    for path in writer.scene.sizes:
        (output / path).write_bytes(writer.scene.body(writer.number, path))
    told, telling = os.pipe()
    hearing, go = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        # Else it would hear itself and never that its parent has gone.
        os.close(go)
        writer.run(telling, hearing)
    os.close(telling)
    os.close(hearing)
    return _Process(writer.attempts[writer.number], writer.fate, pid, told, go, started)


def _watch(writers: list[_Process], *, meets: bool) -> None:
    """Kill who is to be killed, let them meet, and see all of them end."""
    waiting = list(writers)
    has_met = False
    while waiting:
        ready, _, _ = select.select([each.told for each in waiting], [], [], POLL_SECONDS)
        for writer in [each for each in waiting if each.told in ready]:
            words = os.read(writer.told, 65_536)
            writer.words += words
            if not words:
                waiting.remove(writer)
                writer.status = os.waitpid(writer.pid, 0)[1]
                writer.ended = time.monotonic()
                os.close(writer.told)
        if not has_met and (
            not meets or all(each.is_over or STAGED in each.words for each in writers)
        ):
            has_met = True
            for writer in writers:
                with suppress(BrokenPipeError):
                    os.write(writer.go, b"g")
                os.close(writer.go)
        for writer in waiting:
            _send_what_is_due(writer)


def _send_what_is_due(writer: _Process) -> None:
    """Send signals; it has not been waited for, so the id is still its own."""
    age = time.monotonic() - writer.started
    if age > HUNG_SECONDS:
        os.kill(writer.pid, signal.SIGKILL)
        return
    if writer.fate.point or writer.sent >= len(writer.fate.signals):
        return
    if age >= writer.fate.after_seconds + writer.sent * GRACE_SECONDS:
        os.kill(writer.pid, writer.fate.signals[writer.sent])
        writer.sent += 1


def _committed_sha256(store: Store) -> str:
    try:
        committed = read_manifest(store, KIND, KEY)
    except ModelmillError as error:
        return str(error)
    return "" if committed is None else committed.sha256


def _judge_ends(writers: list[_Process]) -> list[str]:
    """Find writers that ended as nobody made them end."""
    found = []
    for writer in writers:
        if writer.is_killed:
            if os.WTERMSIG(writer.status) not in writer.fate.signals:
                found.append(f"signal {os.WTERMSIG(writer.status)} ended a writer by itself")
            continue
        code = os.waitstatus_to_exitcode(writer.status)
        allowed = {0, 75} if signal.SIGTERM in writer.fate.signals else {0}
        if code not in allowed:
            found.append(f"a writer ended with {code}: {writer.outcome}")
    return found


def _judge_outcomes(writers: list[_Process], first: str, present: str) -> list[str]:
    """Find writers that believe what is not so."""
    found = []
    told = [each for each in writers if "state" in each.outcome]
    winners = [each for each in told if each.outcome["state"] == "won"]
    if len(winners) > 1 or (len(told) == len(writers) and not winners):
        found.append(f"{len(winners)} of {len(writers)} writers won")
    if first and first != present:
        found.append("what was committed has changed")
    for writer in told:
        if writer.outcome["sha256"] != present:
            found.append(f"a writer {writer.outcome['state']} what is not committed")
        is_own = writer.outcome["attempt"] == writer.attempt
        if is_own != (writer.outcome["state"] == "won"):
            found.append(f"a writer says {writer.outcome['state']}, own: {is_own}")
        if writer.outcome["read"]:
            found.append(f"a writer read {writer.outcome['read']}")
    return found


def _judge_uploads(writers: list[_Process], store: Store) -> list[str]:
    """Find uploads in parts that somebody has left who had the time to tidy up."""
    tidy = [each.attempt for each in writers if not each.is_killed]
    return [
        f"an upload is left open: {upload.key}"
        for upload in store.unfinished()
        if any(attempt in upload.key for attempt in tidy)
    ]
