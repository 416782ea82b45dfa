"""What a conductor tells about a run, each thing once: events, and the logs of attempts.

Everything waits until `write`, because acting comes first: a request to the store between
two stages is time in which a GPU stands idle.  Decides nothing.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from modelmill.conduct.backend import Attempt
from modelmill.conduct.clock import now
from modelmill.conduct.decide import State
from modelmill.spec.errors import StoreUnreachable
from modelmill.spec.plan import Stage
from modelmill.spec.records import Event, Manifest, Progress
from modelmill.store.runs import append_event, put_log, read_events, read_run
from modelmill.store.s3 import Store

_SECOND: Final = len("2026-01-01T00:00:00")


class Watcher(Protocol):
    """Somebody who wants to see what goes on."""

    def happened(self, event: Event) -> None:
        """Hear of an event."""
        ...

    def standing(self, states: Mapping[str, State], live: Mapping[str, Progress | None]) -> None:
        """See where everything is; called several times a second."""
        ...


@dataclass
class History:
    """The history of one run, as one conductor writes it."""

    store: Store
    run: str
    watcher: Watcher
    log: Callable[[Attempt], bytes]
    """Reads what an attempt has printed."""
    _begun: set[str] = field(default_factory=set)
    _ended: set[str] = field(default_factory=set)
    _committed: set[str] = field(default_factory=set)
    _made: set[tuple[str, str]] = field(default_factory=set)
    """Stages and keys that this run has told of as committed."""
    _since: str = ""
    """When the run's sources were pinned: what was committed before is no news of it."""
    _skipped: set[str] = field(default_factory=set)
    _why: dict[str, str] = field(default_factory=dict)
    _unwritten: list[Callable[[], None]] = field(default_factory=list)

    def recall(self) -> None:
        """Read what an earlier process of this conductor has told already."""
        for event in read_events(self.store, self.run):
            match event.event:
                case "started":
                    self._begun.add(event.attempt)
                case "failed" | "stopped":
                    self._ended.add(event.attempt)
                case "committed":
                    self._committed.add(event.attempt)
                    self._made.add((event.stage, event.key))
        record = read_run(self.store, self.run)
        self._since = "" if record is None else record.pinned_at

    def hurry(self, budget_seconds: float) -> None:
        """Give up sooner from now on: the store may be what is gone."""
        self.store = replace(self.store, retry_budget_seconds=budget_seconds)

    def lives(self, attempt: Attempt) -> None:
        """Tell that an attempt runs, or why it does not yet."""
        if attempt.exit_code is not None and attempt.id not in self._ended:
            # Its process has ended and it will be gone in a moment, its log with it.
            self._ended.add(attempt.id)
            self._keep_log(attempt)
        if attempt.message:
            self.waits(attempt.stage, attempt.key, attempt.message)
        elif attempt.has_begun and attempt.id not in self._begun:
            self._begun.add(attempt.id)
            self._happened("started", attempt)

    def waits(self, stage: str, key: str, words: str) -> None:
        """Tell once what a stage waits for, and again when it waits for something else."""
        if self._why.get(stage) != words:
            self._why[stage] = words
            self._add(Event(time=now(), event="waiting", stage=stage, key=key, message=words))

    def ended(self, attempt: Attempt, *, was_asked_to: bool = False) -> bool:
        """Tell how an attempt ended; returns whether that is news."""
        if attempt.id in self._ended:
            return False
        self._ended.add(attempt.id)
        self._keep_log(attempt)
        if attempt.exit_code:
            self._happened("stopped" if was_asked_to else "failed", attempt)
        return True

    def stopped(self, attempt: Attempt) -> None:
        """Tell that an attempt was stopped, and is gone or going."""
        self._ended.add(attempt.id)
        self._keep_log(attempt)
        self._happened("stopped", attempt)

    def committed(self, attempt: Attempt) -> None:
        """Tell that an attempt has committed its stage."""
        if attempt.id not in self._committed:
            if attempt.id not in self._begun:
                # It has begun and ended between two looks.
                self._begun.add(attempt.id)
                self._happened("started", attempt)
            self._committed.add(attempt.id)
            self._made.add((attempt.stage, attempt.key))
            self._happened("committed", attempt)

    def found(self, stage: Stage, manifest: Manifest) -> None:
        """Tell that an attempt of this run has begun and committed while no conductor looked.

        One was replaced by the next: the first had not seen it begin, the next does not know it.
        """
        # Manifests say the second only.
        is_old = manifest.created[:_SECOND] < self._since[:_SECOND]
        if not is_old and (stage.name, stage.key) not in self._made:
            self.committed(Attempt(manifest.attempt, stage.name, stage.key, 0, is_live=False))

    def adopted(self, stage: str, from_run: str) -> None:
        """Tell that another run has committed a stage."""
        self._add(Event(time=now(), event="adopted", stage=stage, from_run=from_run))

    def broken(self, stage: Stage, exit_code: int, words: str) -> None:
        """Tell that the commit of a stage does not count any more."""
        self._add(
            Event(
                time=now(),
                event="failed",
                stage=stage.name,
                key=stage.key,
                exit_code=exit_code,
                message=words,
            )
        )

    def skipped(self, stage: str) -> None:
        """Tell that a stage is not even begun."""
        if stage not in self._skipped:
            self._skipped.add(stage)
            self._add(Event(time=now(), event="skipped", stage=stage))

    def write(self) -> None:
        """Write down everything that was told, in its order.

        Raises:
            StoreUnreachable: the store did not answer in time.
        """
        while self._unwritten:
            self._unwritten.pop(0)()

    def put_log(self, attempt: Attempt) -> None:
        """Write down what an attempt has printed so far."""
        # The log also lies where the backend has it: losing the copy must not end a run.
        log = self.log(attempt)
        if log:
            with contextlib.suppress(StoreUnreachable):
                put_log(self.store, self.run, attempt.stage, attempt.id, log)

    def _keep_log(self, attempt: Attempt) -> None:
        self._unwritten.append(lambda: self.put_log(attempt))

    def _happened(self, kind: str, attempt: Attempt) -> None:
        self._add(
            Event.model_validate(
                {
                    "time": now(),
                    "event": kind,
                    "stage": attempt.stage,
                    "key": attempt.key,
                    "attempt": attempt.id,
                    "exit_code": attempt.exit_code,
                    "message": attempt.message,
                }
            )
        )

    def _add(self, event: Event) -> None:
        def put() -> None:
            append_event(self.store, self.run, event)
            self.watcher.happened(event)

        self._unwritten.append(put)
