"""The pulse of a stage that runs under a conductor: timed parts, progress, saves, the stop.

A background thread tells where the stage is, so that a long native call still shows life:
twice a second into a file for a conductor on the same machine, every 15 s into the store.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from modelmill.spec.errors import Interrupted, ModelmillError
from modelmill.spec.figures import Part
from modelmill.spec.records import Progress

FILE_SECONDS: Final = 0.5
STORE_SECONDS: Final = 15.0
SAVE_SECONDS: Final = 20.0
"""How much finished work a SIGKILL may cost."""


class StopRequested(BaseException):
    """Raised out of a signal handler; not an Exception, so that no library swallows it."""


@dataclass
class Stop:
    """Whether the process has been asked to stop."""

    is_set: bool = False

    def install(self) -> None:
        """Let SIGTERM and SIGINT interrupt whatever the main thread is doing, once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, _number: int, _frame: object) -> None:
        if not self.is_set:
            self.is_set = True
            raise StopRequested


def end_with(parent_pid: int) -> None:
    """Stop this process soon after its parent has gone.

    Nobody would see, or stop, what goes on here; and a conductor's embedded store goes with
    it, so that the stage would only wait for it.
    """

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(FILE_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@dataclass(frozen=True)
class Told:
    """What the store is told."""

    progress: Callable[[Progress], None]
    save: Callable[[], None]
    """Commits the resume folder."""


@dataclass(frozen=True)
class Outlets:
    """Where a pulse goes."""

    file: Path | None
    """For a conductor on the same machine."""
    store: Told
    warn: Callable[[str], None]


@dataclass
class LivePulse:
    """Keeps time and tells about it; use as a context manager around the stage's work."""

    stage: str
    attempt: str
    outlets: Outlets
    stop: Stop
    parts: list[Part] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start outside any part."""
        self._part = "start"
        self._part_started = time.monotonic()
        self._done = self._total = self._bytes = 0
        self._first: int | None = None
        self._unit = self._note = ""
        self._saved = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        """Begin to tell."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell no more."""
        self._over.set()
        self._thread.join()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of the stage."""
        self._check()
        self._part, self._part_started = name, time.monotonic()
        self._done = self._total = self._bytes = 0
        self._first = None
        self._unit = self._note = ""
        try:
            yield
        finally:
            seconds = time.monotonic() - self._part_started
            self.parts.append(Part(name=name, seconds=round(seconds, 3), bytes=self._bytes))
            self._part = "between"
        self._check()

    def moving(self, total_bytes: int) -> Callable[[int], None]:
        """Count the bytes of the present part as its progress; call it from any thread."""
        self._total, self._unit = total_bytes, "B"
        lock = threading.Lock()

        def count(moved_bytes: int) -> None:
            with lock:
                self._bytes += moved_bytes
                self._done = self._bytes

        return count

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Tell how far the present part is."""
        self._check()
        if self._first is None:
            # What an earlier attempt did says nothing about the rate of this one.
            self._first = done
        self._done, self._total, self._unit, self._note = done, total, unit, note

    def save(self) -> None:
        """Commit the resume folder, if enough time has passed since the last time."""
        self._check()
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.outlets.store.save()
            self._saved = time.monotonic()

    def warn(self, sentence: str) -> None:
        """Log a warning that the report must show as well."""
        self._check()
        self.warnings.append(sentence)
        self.outlets.warn(sentence)

    def _check(self) -> None:
        if self.stop.is_set:
            raise Interrupted("Asked to stop")

    def _now(self) -> Progress:
        seconds = max(time.monotonic() - self._part_started, 1e-3)
        return Progress(
            stage=self.stage,
            attempt=self.attempt,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            part=self._part,
            done=self._done,
            total=self._total,
            unit=self._unit,
            rate=round((self._done - (self._first or 0)) / seconds, 3),
            note=self._note,
        )

    def _beat(self) -> None:
        told = 0.0
        while not self._over.wait(FILE_SECONDS):
            now = self._now()
            if self.outlets.file is not None:
                _write(self.outlets.file, now)
            if time.monotonic() - told >= STORE_SECONDS:
                told = time.monotonic()
                try:
                    self.outlets.store.progress(now)
                except ModelmillError as error:
                    # Progress is a courtesy; the stage's own transfers report a lost store.
                    self.outlets.warn(f"Progress could not be told: {error.what}")


def _write(path: Path, progress: Progress) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(progress.model_dump_json(), encoding="utf-8")
    aside.replace(path)
