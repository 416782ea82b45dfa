"""What lies in a store, added up by what it belongs to: one listing of everything.

Knows how keys are laid out; knows nothing about who needs what.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from modelmill.spec.names import COMMITTED, KINDS, WITHDRAWN, Kind, report_key
from modelmill.spec.records import Live
from modelmill.store.checkpoint import read_live
from modelmill.store.objects import ListedObject, Unfinished
from modelmill.store.s3 import Store
from modelmill.store.whole import removal_mark

Name = tuple[Kind, str]
"""Kind and key of an artifact."""


@dataclass
class Heap:
    """Some objects together."""

    newest: datetime
    files: int = 0
    size_bytes: int = 0

    def add(self, item: ListedObject) -> None:
        """Count one more."""
        self.files += 1
        self.size_bytes += item.size_bytes
        self.newest = max(self.newest, item.last_modified)


@dataclass
class Place:
    """What lies where something is, was, or may one day be committed."""

    committed: datetime | None = None
    withdrawn: datetime | None = None
    attempts: dict[str, Heap] = field(default_factory=dict)

    @property
    def heap(self) -> Heap:
        """All attempts together."""
        times = [time for time in (self.committed, self.withdrawn) if time is not None]
        newest = max([*times, *(each.newest for each in self.attempts.values())])
        files = sum(each.files for each in self.attempts.values())
        return Heap(newest, files, sum(each.size_bytes for each in self.attempts.values()))


@dataclass
class Survey:
    """Everything in a store that can become garbage."""

    artifacts: dict[Name, Place] = field(default_factory=dict)
    """Reports too."""
    checkpoints: dict[str, Heap] = field(default_factory=dict)
    """By key, with the word of who works on it."""
    sources: dict[str, Place] = field(default_factory=dict)
    """By digest; a source has one attempt, whose name is empty."""
    probes: dict[str, Heap] = field(default_factory=dict)
    runs: dict[str, Heap] = field(default_factory=dict)
    recorded: set[str] = field(default_factory=set)
    """Runs that have a record."""
    unfinished: tuple[Unfinished, ...] = ()
    live: Mapping[str, Live] = field(default_factory=dict)
    """By key: who said last that it works on it."""


def take_survey(store: Store) -> Survey:
    """List the store, and read who says to be at work."""
    # Uploads first: one that is finished in between shows as what it has become.
    found = Survey(unfinished=tuple(store.unfinished()))
    said = []
    for folder in ("artifacts/", "checkpoints/", "sources/", "probes/", "runs/"):
        for item in store.list(folder):
            _sort_in(found, item)
            if item.key.endswith("/LIVE.json"):
                said.append(item.key.split("/")[1])
    read = {key: read_live(store, key) for key in said}
    found.live = {key: live for key, live in read.items() if live is not None}
    return found


def _sort_in(found: Survey, item: ListedObject) -> None:
    match item.key.split("/"):
        case ["artifacts", kind, key, *rest] if kind in KINDS:
            name: Name = (KINDS[KINDS.index(kind)], key)
            _sort_into(found.artifacts.setdefault(name, Place()), rest, item)
        case ["runs", run, "reports", digest, *rest]:
            name = ("report", report_key(run, digest))
            _heap(found.runs, run, item)
            _sort_into(found.artifacts.setdefault(name, Place()), rest, item)
        case ["checkpoints", key, *_]:
            _heap(found.checkpoints, key, item)
        case ["sources", folder, *rest]:
            digest = folder.removesuffix(_MARK)
            _sort_into(found.sources.setdefault(digest, Place()), ["attempts", "", *rest], item)
        case ["probes", name_, *_]:
            _heap(found.probes, name_, item)
        case ["runs", run, *rest]:
            if rest == ["run.json"]:
                found.recorded.add(run)
            _heap(found.runs, run, item)
        case _:
            pass


def _sort_into(place: Place, rest: list[str], item: ListedObject) -> None:
    match rest:
        case [name] | ["attempts", "", name] if name == COMMITTED:
            place.committed = item.last_modified
        case [name] | ["attempts", "", name] if name == WITHDRAWN:
            place.withdrawn = item.last_modified
        case ["attempts", attempt, *_]:
            _heap(place.attempts, attempt.removesuffix(_MARK), item)
        case _:
            pass


def _heap(heaps: dict[str, Heap], name: str, item: ListedObject) -> None:
    heaps.setdefault(name, Heap(item.last_modified)).add(item)


_MARK: Final = removal_mark("")
