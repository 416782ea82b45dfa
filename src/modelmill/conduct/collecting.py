"""Collect garbage: look, show, and do one step with everything that is due.

A run writes down which keys it needs before it looks whether they are committed; here what
is withdrawn is looked for among the needed once more afterwards.  Whoever is faster, either
the run sees that it has to compute, or what it adopted comes back.
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from modelmill.conduct.garbage import Garbage, Known, Step, find_garbage, needed_sources
from modelmill.conduct.removing import manifests_of, records_of
from modelmill.spec.names import KINDS, Kind, artifact_prefix, source_prefix
from modelmill.spec.records import Record
from modelmill.store.artifact import Committed, read_manifest
from modelmill.store.checkpoint import drop_checkpoints
from modelmill.store.removal import (
    remove_artifact,
    remove_attempt,
    remove_source,
    restore,
    restore_source,
    withdraw,
    withdrawn_attempt,
)
from modelmill.store.runs import drop_run
from modelmill.store.s3 import Store
from modelmill.store.survey import Name, take_survey


class Due(Record):
    """What is due, and what was done about it."""

    garbage: tuple[Garbage, ...]
    is_done: bool = False


def find_due(store: Store, now: datetime, kept: timedelta) -> Due:
    """Find out what is due; nothing is changed."""
    # Before the records: what a run starts to need from here on shows there.
    found = take_survey(store)
    keys, sources, attempts = _needed(store)
    for name, place in found.artifacts.items():
        if name in attempts:
            continue
        if place.withdrawn is not None:
            attempts[name] = withdrawn_attempt(store, artifact_prefix(*name))
        elif (report := read_manifest(store, *name)) is not None:
            attempts[name] = report.manifest.attempt
    known = Known(needed_keys=keys, needed_sources=sources, attempts=attempts)
    return Due(garbage=find_garbage(found, known, now, kept))


def collect(store: Store, due: Due) -> Due:
    """Do the step of everything that is due.

    Interrupted, it can be asked for again.
    """
    for each in due.garbage:
        _step(store, each)
    keys, sources, _ = _needed(store)
    for each in due.garbage:
        if each.step == "withdraw" and each.names[-1] in (*keys, *sources):
            _step(store, each.model_copy(update={"step": "restore"}))
    return due.model_copy(update={"is_done": True})


def _step(store: Store, garbage: Garbage) -> None:
    names = garbage.names
    match garbage.what:
        case "artifact":
            _step_of_artifact(store, garbage.step, _kind(names[0]), *names[1:])
        case "attempt":
            remove_attempt(store, _kind(names[0]), *names[1:])
        case "checkpoint":
            drop_checkpoints(store, names[0])
        case "probe":
            store.delete([f"probes/{names[0]}"])
        case "run":
            drop_run(store, names[0])
        case "source":
            _step_of_source(store, garbage.step, names[0])
        case "upload":
            store.abandon_multipart(*names)


def _step_of_artifact(store: Store, step: Step, kind: Kind, key: str, *attempts: str) -> None:
    match step:
        case "withdraw":
            withdraw(store, artifact_prefix(kind, key))
        case "restore":
            restore(store, kind, key)
        case _:
            remove_artifact(store, kind, key, attempts)


def _step_of_source(store: Store, step: Step, digest: str) -> None:
    match step:
        case "withdraw":
            withdraw(store, source_prefix(digest))
        case "restore":
            restore_source(store, digest)
        case _:
            remove_source(store, digest)


def _needed(store: Store) -> tuple[set[str], set[str], dict[Name, str]]:
    """Read the keys and sources that runs need, and which attempt every artifact is."""
    manifests = manifests_of(store)
    keys: set[str] = set()
    sources: set[str] = set()
    for record in records_of(store):
        keys |= set(record.keys.values())
        sources |= set(needed_sources(record.pins))
    attempts = {name: each.manifest.attempt for name, each in manifests.items()}
    return made_into(manifests, keys), sources, attempts


def made_into(manifests: Mapping[Name, Committed], keys: Collection[str]) -> set[str]:
    """Add to some keys those of everything that their artifacts were made from."""
    inputs_of: dict[str, set[str]] = {}
    for (_, key), committed in manifests.items():
        given = committed.manifest.inputs.values()
        inputs_of.setdefault(key, set()).update(each.key for each in given)
    needed: set[str] = set()
    left = list(keys)
    while left:
        key = left.pop()
        if key not in needed:
            needed.add(key)
            left += inputs_of.get(key, ())
    return needed


def _kind(name: str) -> Kind:
    return KINDS[KINDS.index(name)]
