"""The pulse of a stage that runs under a conductor: timed parts, progress, saves, the stop.

A background thread tells where the stage is, so that a long native call still shows life:
twice a second into a file for a conductor on the same machine, every 15 s into the store.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from modelmill.spec.errors import DeviceFault, Interrupted, ModelmillError
from modelmill.spec.figures import Part
from modelmill.spec.records import Progress
from modelmill.stages.keeper import CHECKPOINT_SECONDS, Commit, Keeper
from modelmill.stages.stop import STOPPED, Stop

FILE_SECONDS: Final = 0.5
STORE_SECONDS: Final = 15.0
SAVE_SECONDS: Final = 20.0
"""How much finished work a SIGKILL may cost."""


@dataclass(frozen=True)
class Told:
    """What the store is told."""

    progress: Callable[[Progress], None]
    commit: Commit
    """Commits the resume folder."""


@dataclass(frozen=True)
class Outlets:
    """Where a pulse goes."""

    file: Path | None
    """For a conductor on the same machine."""
    store: Told
    warn: Callable[[str], None]
    live: Callable[[], None] = lambda: None
    """Shows life to who watches whether the stage hangs."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    has_room: Callable[[int], bool] = lambda _: True
    """Tells whether `resume` can hold so many bytes without taking the output's room."""


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
        self.is_unsaved = False
        """Whether `resume` holds more than what is committed."""
        self.keeper = Keeper(
            self.outlets.store.commit,
            self.stop,
            self.outlets.checkpoint_seconds,
            self._note_down,
            self.outlets.has_room,
        )
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
        self.end()

    def end(self) -> None:
        """Tell no more; what is being told now is told when this returns."""
        self._over.set()
        self._thread.join()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of the stage."""
        self._check()
        self.outlets.live()
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
            self.outlets.live()
            with lock:
                self._bytes += moved_bytes
                self._done = self._bytes

        return count

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Tell how far the present part is."""
        self._check()
        self.outlets.live()
        if self._first is None:
            # What an earlier attempt did says nothing about the rate of this one.
            self._first = done
        self._done, self._total, self._unit, self._note = done, total, unit, note

    def save(self) -> None:
        """Commit the resume folder, if enough time has passed since the last time.

        What a store that is away does not take is tried again later: the work goes on without.
        """
        self.is_unsaved = True
        self._check()
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            try:
                self.commit()
            except ModelmillError as error:
                self.outlets.warn(f"What has been done could not be saved: {error.what}")
                self._saved = time.monotonic()

    def commit(self) -> None:
        """Commit the resume folder now, if it holds more than what is committed."""
        if self.is_unsaved:
            self.outlets.store.commit(lambda _: None, is_last=False)
            self.is_unsaved = False
            self._saved = time.monotonic()

    @contextmanager
    def steps(self) -> Iterator[None]:
        """Let a request to stop wait for the end of a step, which `is_due` and `keep` are at."""
        self.keeper.begin()
        with self.stop.patiently():
            yield
        self._check()

    def is_due(self) -> bool:
        """Tell, after a step, whether it is time to keep a state."""
        self.outlets.live()
        return self.keeper.is_due()

    def keep(self, size_bytes: int, write: Callable[[], None]) -> None:
        """Let a state be written into the resume folder, and commit it in the background."""
        self.keeper.keep(size_bytes, write)

    def warn(self, sentence: str) -> None:
        """Log a warning that the report must show as well."""
        self._check()
        self._note_down(sentence)

    def _note_down(self, sentence: str) -> None:
        self.warnings.append(sentence)
        self.outlets.warn(sentence)

    def _check(self) -> None:
        if self.stop.is_set and not self.stop.is_patient:
            raise Interrupted(STOPPED)

    def as_hung(self, seconds: float) -> DeviceFault:
        """Say that nothing has happened for so long, and where."""
        far = f", {self._done:,} of {self._total:,} {self._unit}" if self._total else ""
        return DeviceFault(
            f"No progress for {seconds:.0f} s in '{self._part}'{far}; "
            "the log has the stack of every thread",
            at=self.stage,
            fix="the conductor tries again; if the work is only slow, raise hung_after_seconds in "
            "the profile",
        )

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
