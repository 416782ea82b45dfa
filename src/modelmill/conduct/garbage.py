"""Decide what in a store nobody needs any more.  Pure: a survey in, what to do out.

What may still be wanted goes in two steps with a day between them; what nobody can ever read
goes at once.  Knows ages, references and signs of life; touches nothing.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

from modelmill.conduct.clock import YOUNG
from modelmill.spec.records import Record
from modelmill.spec.settings import Pin
from modelmill.store.objects import Unfinished
from modelmill.store.survey import Heap, Name, Place, Survey

LATER: Final = timedelta(days=1)
"""Between withdrawing and removing: whoever has just adopted it can read it to its end."""

What = Literal["artifact", "attempt", "checkpoint", "probe", "run", "source", "upload"]
Step = Literal["abort", "remove", "restore", "withdraw"]


class Garbage(Record):
    """One thing that is to go, or its next step on the way."""

    what: What
    step: Step
    at: str
    """Its place in the store."""
    reason: str
    files: int = 0
    size_bytes: int = 0
    names: tuple[str, ...]
    """What its place is made of: kind, key and attempt, or a digest, or an upload's id."""


@dataclass(frozen=True)
class Known:
    """What records and manifests tell about what a survey found."""

    needed_keys: Collection[str]
    """Of every run's live plan, and of everything those were made from."""
    needed_sources: Collection[str]
    """Digests."""
    attempts: Mapping[Name, str] = field(default_factory=dict)
    """Which attempt is committed, or was withdrawn."""


def needed_sources(pins: Mapping[str, Pin]) -> Iterator[str]:
    """List the digests of the uploaded sources among a run's pins."""
    yield from (pin.digest for pin in pins.values() if pin.address.startswith("sources/"))


def find_garbage(
    found: Survey, known: Known, now: datetime, kept: timedelta
) -> tuple[Garbage, ...]:
    """List everything that can take its next step, in an order in which it may.

    Args:
        found: what lies in the store.
        known: what is needed.
        now: the present time.
        kept: how long what no run needs stays, for a run that may want it again.
    """
    judge = _Judge(found, known, now, kept)
    return (
        *judge.uploads(),
        *(each for item in found.artifacts.items() for each in judge.artifact(*item)),
        *judge.checkpoints(),
        *(each for item in found.sources.items() for each in judge.source(*item)),
        *judge.left_by_runs(),
        *judge.probes(),
    )


@dataclass(frozen=True)
class _Judge:
    found: Survey
    known: Known
    now: datetime
    kept: timedelta

    def uploads(self) -> Iterator[Garbage]:
        """An upload in parts has no readers, so only its writer is asked about."""
        for upload in self.found.unfinished:
            if self._is_left(upload):
                names = (upload.key, upload.upload_id)
                row = _row("upload", "abort", names, self._reason("abort"), Heap(upload.initiated))
                yield row.model_copy(update={"at": upload.key})

    def _is_left(self, upload: Unfinished) -> bool:
        match upload.key.split("/"):
            case ["artifacts", _, key, "attempts", attempt, *_]:
                pass
            case ["checkpoints", key, attempt, *_]:
                pass
            case _:
                # A laptop that sends a source says nothing while it does.
                return self._is_older(upload.initiated, LATER)
        return not self._lives(key, attempt) and self._is_older(upload.initiated, YOUNG)

    def artifact(self, name: Name, place: Place) -> Iterator[Garbage]:
        """Judge a commit, and every attempt that is none."""
        kind, key = name
        step = self._step_of_artifact(name, place)
        if step is not None:
            names = (kind, key, *(place.attempts if step == "remove" else ()))
            yield _row("artifact", step, names, self._reason(step), place.heap)
        if step is not None or place.withdrawn is not None:
            return
        for attempt, heap in place.attempts.items():
            if attempt != self.known.attempts.get(name) and self._is_dead(name, attempt, heap):
                reason = "never committed, and not at work"
                yield _row("attempt", "remove", (kind, key, attempt), reason, heap)

    def _step_of_artifact(self, name: Name, place: Place) -> Step | None:
        kind, key = name
        is_needed = kind == "report" or key in self.known.needed_keys or self._is_live(key)
        if place.withdrawn is not None and (is_needed or place.committed is not None):
            return "restore"
        if place.withdrawn is not None:
            return "remove" if self._is_older(place.withdrawn, LATER) else None
        if place.committed is None or is_needed:
            return None
        return "withdraw" if self._is_older(place.committed, self.kept) else None

    def _reason(self, step: Step) -> str:
        return {
            "restore": "needed again",
            "remove": "withdrawn a day ago, and nobody has missed it",
            "withdraw": f"no run has needed it for {self.kept.days} days",
            "abort": "its writer is gone",
        }[step]

    def checkpoints(self) -> Iterator[Garbage]:
        """A saved state is for an attempt to come, if its key is still wanted."""
        committed = {key for (_, key), place in self.found.artifacts.items() if place.committed}
        for key, heap in self.found.checkpoints.items():
            if self._is_live(key) or not self._is_older(heap.newest, YOUNG):
                continue
            if key in committed:
                reason = "its artifact is committed"
            elif key not in self.known.needed_keys and self._is_older(heap.newest, self.kept):
                reason = self._reason("withdraw")
            else:
                continue
            yield _row("checkpoint", "remove", (key,), reason, heap)

    def source(self, digest: str, place: Place) -> Iterator[Garbage]:
        """Judge an upload: it is needed for as long as a run is pinned to it."""
        if digest in self.known.needed_sources:
            if place.withdrawn is not None:
                yield _row("source", "restore", (digest,), self._reason("restore"), place.heap)
            return
        if place.committed is not None:
            if self._is_older(place.committed, self.kept):
                reason = self._reason("withdraw")
                yield _row("source", "withdraw", (digest,), reason, place.heap)
        elif self._is_older(place.withdrawn or place.heap.newest, LATER):
            is_torso = place.withdrawn is None
            reason = "its upload was never finished" if is_torso else self._reason("remove")
            yield _row("source", "remove", (digest,), reason, place.heap)

    def left_by_runs(self) -> Iterator[Garbage]:
        """A stage that outlived its forgotten run may have told once more how it is."""
        for run, heap in self.found.runs.items():
            if run not in self.found.recorded and self._is_older(heap.newest, LATER):
                yield _row("run", "remove", (run,), "the run is forgotten", heap)

    def probes(self) -> Iterator[Garbage]:
        """What a look at the store has left because it was killed."""
        for name, heap in self.found.probes.items():
            if self._is_older(heap.newest, LATER):
                yield _row("probe", "remove", (name,), "whoever tried the store is gone", heap)

    def _is_older(self, time: datetime, age: timedelta) -> bool:
        return self.now - time > age

    def _is_live(self, key: str) -> bool:
        live = self.found.live.get(key)
        return live is not None and not self._is_older(datetime.fromisoformat(live.time), YOUNG)

    def _lives(self, key: str, attempt: str) -> bool:
        return self._is_live(key) and self.found.live[key].attempt == attempt

    def _is_dead(self, name: Name, attempt: str, heap: Heap) -> bool:
        kind, key = name
        if self._lives(key, attempt):
            return False
        # Of two attempts at one key only the last word is kept; and a report says nothing.
        is_unsure = self._is_live(key) or kind == "report"
        return self._is_older(heap.newest, LATER if is_unsure else YOUNG)


def _row(what: What, step: Step, names: tuple[str, ...], reason: str, heap: Heap) -> Garbage:
    return Garbage(
        what=what,
        step=step,
        at=" ".join(names[:3]),
        reason=reason,
        files=heap.files,
        size_bytes=heap.size_bytes,
        names=names,
    )
