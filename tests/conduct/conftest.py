"""A real store, runs that are prepared on it, and backends to drive them with."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from modelmill.conduct.backend import Attempt, Order
from modelmill.conduct.conductor import Conducted
from modelmill.conduct.local import LocalBackend, Place
from modelmill.conduct.prepare import Asked, prepare
from modelmill.spec.loading import load_run
from modelmill.spec.names import Kind
from modelmill.spec.plan import Stage
from modelmill.spec.profile import Profile
from modelmill.spec.records import Device, Manifest, Progress
from modelmill.store.address import open_store
from modelmill.store.artifact import (
    attempt_id,
    attempt_prefix,
    commit,
    read_manifest,
    record_input,
    stage_bytes,
)
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.s3 import Store

from ..workshop import Workshop, write_rows

GRACE_SECONDS = 3.0


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Lay out a run whose environments are stand-ins, and keep its store open."""
    workshop = Workshop(tmp_path_factory.mktemp("conduct"))
    workshop.lay_out()
    with (
        EmbeddedStore(workshop.home / "store") as embedded,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in embedded.environment.items():
            patch.setenv(name, value)
        yield workshop


@pytest.fixture(scope="module")
def store(workshop: Workshop) -> Store:
    """Open the same store in the test."""
    return open_store(EmbeddedStore.url)


Preparer = Callable[..., Conducted]


@pytest.fixture(scope="module")
def prepared(workshop: Workshop, store: Store) -> Preparer:
    """Make runs ready to be driven; each with test rows, and so keys, of its own."""

    def make(name: str, profile: Profile = Profile(), **changes: int | str) -> Conducted:  # noqa: B008
        rows = write_rows(workshop.folder / f"{name}.jsonl", 8)
        overrides = [f"{key}={value}" for key, value in changes.items()]
        spec = load_run(workshop.folder / "run.yaml", [f"data.test={rows.name}", *overrides])
        return prepare(store, spec, profile, Asked(name, workshop.folder))

    return make


@dataclass
class ScriptedBackend:
    """Plays stages in memory: every attempt ends the way the script says, commits are real."""

    given: Conducted
    script: dict[str, list[int | None]]
    """By stage, the exit codes of its attempts in turn; None lives until it is stopped;
    stages that are not named succeed."""
    on_start: Callable[[Order], None] = lambda _: None
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    _attempts: list[Attempt] = field(default_factory=list)
    _codes: dict[str, int | None] = field(default_factory=dict)

    def attempts(self) -> tuple[Attempt, ...]:
        """List them as they are, then let those end that have been seen alive."""
        seen = tuple(self._attempts)
        for index, attempt in enumerate(self._attempts):
            code = self._codes[attempt.id]
            if attempt.is_live and code is not None:
                self._attempts[index] = self._end(attempt, code)
        return seen

    def start(self, order: Order) -> Attempt:
        """Start an attempt that will end as the script says."""
        attempt = Attempt(attempt_id(), order.stage, order.key, order.number, is_live=True)
        codes = self.script.get(order.stage, [])
        self._codes[attempt.id] = codes.pop(0) if codes else 0
        self._attempts.append(attempt)
        self.started.append(f"{order.stage} {order.number}")
        self.on_start(order)
        return attempt

    @property
    def newest(self) -> str:
        """Name the attempt that was started last."""
        return self._attempts[-1].id

    def stop(self, attempt: Attempt) -> None:
        """End it as an interrupted stage does."""
        self.stopped.append(attempt.stage)
        self._codes[attempt.id] = 75

    def finish(self, stage: str) -> None:
        """Let an attempt end with 0 although it has committed nothing."""
        self._attempts = [
            replace(each, is_live=False, exit_code=0) if each.stage == stage else each
            for each in self._attempts
        ]

    def log(self, attempt: Attempt) -> bytes:
        """Say something."""
        return f"{attempt.stage} {attempt.number}\n".encode()

    def progress(self, attempt: Attempt) -> Progress | None:
        """Say nothing."""

    def wait(self, seconds: float) -> None:
        """Hurry."""
        time.sleep(seconds / 10)

    def is_wanted(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Stop everything."""
        for attempt in self._attempts:
            if attempt.is_live:
                self.stop(attempt)
        self.attempts()

    def _end(self, attempt: Attempt, code: int) -> Attempt:
        if code == 0:
            publish(self.given, attempt.stage, attempt.key, attempt.id, self.given.run)
        words = f"{attempt.stage} says {code}" if code else ""
        return replace(attempt, is_live=False, exit_code=code, message=words)


def publish(given: Conducted, stage: str, key: str, attempt: str, run: str) -> None:
    """Commit a small artifact as a stage does."""
    planned: Stage | None = None if stage == "report" else given.plan.stage(stage)
    kind: Kind = "report" if planned is None else planned.kind
    inputs = {}
    for each in planned.inputs if planned is not None else ():
        committed = read_manifest(given.store, each.kind, each.key)
        assert committed is not None
        inputs[each.role] = record_input(committed)
    file = stage_bytes(given.store, attempt_prefix(kind, key, attempt), "result", b"done")
    commit(
        given.store,
        Manifest(
            kind=kind,
            key=key,
            stage=stage,
            run=run,
            attempt=attempt,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            settings={},
            inputs=inputs,
            versions={},
            device=Device(accelerator="cpu", name="test"),
            files=(file,),
        ),
    )


@pytest.fixture(scope="module")
def fetched(workshop: Workshop, prepared: Preparer) -> Conducted:
    """Commit the model and the rows that every attempt at an infer stage reads."""
    given = prepared("fetched")
    backend = LocalBackend(given.run, Place(workshop.home, given.store.url, {}))
    for stage in given.plan.stages:
        if stage.kind != "infer":
            backend.start(Order(stage.name, stage.key, "light", 1, given.plan_sha256))
    wait_until(lambda: not any(attempt.is_live for attempt in backend.attempts()))
    assert [attempt.exit_code for attempt in backend.attempts()] == [0, 0, 0]
    return given


def wait_until(is_true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
