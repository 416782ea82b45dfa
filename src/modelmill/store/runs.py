"""What belongs to one run and not to the cache: its record, plans, events, progress, logs.

`run.json` changes by compare-and-swap, plans never change, events are one object each, and
progress and logs are overwritten in place.  Knows nothing about who reads them.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from modelmill.spec.canonical import canonical_json
from modelmill.spec.errors import DataError, DigestMismatch, InputMissing
from modelmill.spec.names import run_prefix
from modelmill.spec.records import Event, Progress, Record, RunRecord
from modelmill.spec.values import Values
from modelmill.store.crew import THREADS
from modelmill.store.s3 import PreconditionFailed, Store

R = TypeVar("R", bound=BaseModel)


def read_run(store: Store, run: str) -> RunRecord | None:
    """Read the record of a run, if there is such a run."""
    key = _run_key(run)
    stored = store.get(key)
    return None if stored is None else _parse(RunRecord, store, key, stored.body)


def update_run(
    store: Store, run: str, change: Callable[[RunRecord | None], RunRecord]
) -> RunRecord:
    """Change the record of a run so that no one else's change is lost.

    Args:
        store: where it is.
        run: its name.
        change: makes the new record from the present one, None for a new run; called
            again if somebody else was faster, so it must have no other effect.  (If our
            answer is lost and somebody else changes the record before we look, it is
            applied twice: at least once, never not at all.)

    Returns:
        The record as it is stored now.
    """
    key = _run_key(run)
    mine = secrets.token_hex(8)
    while True:
        stored = store.get(key)
        present = None if stored is None else _parse(RunRecord, store, key, stored.body)
        if present is not None and present.change == mine:
            # Our own put had succeeded and only its answer was lost.
            return present
        record = change(present).model_copy(update={"change": mine})
        try:
            if stored is None:
                store.put(key, _document(record), if_none_match=True)
            else:
                store.put(key, _document(record), if_match=stored.etag)
        except PreconditionFailed:
            continue
        return record


def list_runs(store: Store) -> Iterator[str]:
    """List the names of all runs."""
    for item in store.list("runs/"):
        match item.key.split("/"):
            case [_, run, "run.json"]:
                yield run
            case _:
                continue


def put_plan(store: Store, run: str, body: bytes) -> str:
    """Keep a plan for ever under its SHA-256, and return that."""
    sha256 = hashlib.sha256(body).hexdigest()
    store.put(_plan_key(run, sha256), body)
    return sha256


def get_plan(store: Store, run: str, sha256: str) -> bytes:
    """Read a plan and make sure that it is the one that is named.

    Raises:
        InputMissing: there is none of that name.
        DigestMismatch: its bytes have changed.
    """
    key = _plan_key(run, sha256)
    stored = store.get(key)
    if stored is None:
        raise InputMissing(
            f"Run {run} has no such plan",
            at=store.url_of(key),
            fix="start the run again: modelmill run FILE",
        )
    if hashlib.sha256(stored.body).hexdigest() != sha256:
        raise DigestMismatch(
            "The stored plan is not the one its name promises",
            at=store.url_of(key),
            fix="start the run again: modelmill run FILE",
        )
    return stored.body


def put_values(store: Store, run: str, values: Values) -> None:
    """Overwrite what a run was last asked to be, for a conductor that nothing else tells."""
    store.put(_values_key(run), canonical_json(values.model_dump(mode="json")))


def read_values(store: Store, run: str) -> Values:
    """Read what a run was last asked to be.

    Raises:
        InputMissing: nobody has submitted it.
    """
    key = _values_key(run)
    stored = store.get(key)
    if stored is None:
        raise InputMissing(
            f"Nobody has submitted run '{run}' to a project",
            at=store.url_of(key),
            fix="modelmill submit --backend cml FILE",
        )
    return _parse(Values, store, key, stored.body)


def append_event(store: Store, run: str, event: Event) -> None:
    """Add one event to a run's history."""
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}.json"
    store.put(f"{_events(run)}{name}", _document(event))


def read_events(store: Store, run: str) -> tuple[Event, ...]:
    """Read a run's history, oldest first."""
    with ThreadPoolExecutor(THREADS) as pool:
        return tuple(pool.map(lambda name: read_event(store, run, name), event_names(store, run)))


def event_names(store: Store, run: str) -> tuple[str, ...]:
    """List the events of a run, oldest first."""
    return tuple(item.key.rpartition("/")[2] for item in store.list(_events(run)))


def read_event(store: Store, run: str, name: str) -> Event:
    """Read one event.

    Raises:
        InputMissing: the run has been removed in between.
    """
    key = f"{_events(run)}{name}"
    stored = store.get(key)
    if stored is None:
        raise InputMissing(
            f"An event of run {run} is gone", at=store.url_of(key), fix="modelmill list"
        )
    return _parse(Event, store, key, stored.body)


def drop_run(store: Store, run: str) -> None:
    """Remove a run's record, plans, events, logs and reports; what its stages made stays."""
    keys = [item.key for item in store.list(f"{run_prefix(run)}/")]
    store.delete(key for key in keys if key != _run_key(run))
    # Last, so that an interrupted removal can be asked for again.
    store.delete([_run_key(run)])


def put_progress(store: Store, run: str, progress: Progress) -> None:
    """Overwrite where a stage is."""
    store.put(_progress_key(run, progress.stage), _document(progress))


def read_progress(store: Store, run: str, stage: str) -> Progress | None:
    """Read where a stage was when it last told."""
    key = _progress_key(run, stage)
    stored = store.get(key)
    return None if stored is None else _parse(Progress, store, key, stored.body)


def put_log(store: Store, run: str, stage: str, attempt: str, body: bytes) -> None:
    """Overwrite the log of an attempt."""
    store.put(_log_key(run, stage, attempt), body)


def read_log(store: Store, run: str, stage: str, attempt: str) -> bytes | None:
    """Read the log of an attempt as far as it has been sent."""
    stored = store.get(_log_key(run, stage, attempt))
    return None if stored is None else stored.body


def list_logs(store: Store, run: str, stage: str = "") -> tuple[tuple[str, str], ...]:
    """List stage and attempt of every log, the one that ended first in front."""
    prefix = f"{run_prefix(run)}/logs/"
    found = []
    for item in store.list(f"{prefix}{stage}/" if stage else prefix):
        owner, _, name = item.key.removeprefix(prefix).partition("/")
        found.append((item.last_modified, owner, name.removesuffix(".log")))
    # On a cluster an attempt is called like its pod's UID, which says nothing about time.
    return tuple((owner, name) for _, owner, name in sorted(found))


def _events(run: str) -> str:
    return f"{run_prefix(run)}/events/"


def _run_key(run: str) -> str:
    return f"{run_prefix(run)}/run.json"


def _plan_key(run: str, sha256: str) -> str:
    return f"{run_prefix(run)}/plan-{sha256}.json"


def _progress_key(run: str, stage: str) -> str:
    return f"{run_prefix(run)}/progress/{stage}.json"


def _values_key(run: str) -> str:
    return f"{run_prefix(run)}/values.json"


def _log_key(run: str, stage: str, attempt: str) -> str:
    return f"{run_prefix(run)}/logs/{stage}/{attempt}.log"


def _document(record: Record) -> bytes:
    return canonical_json(record.model_dump(mode="json"))


def _parse(model: type[R], store: Store, key: str, body: bytes) -> R:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise DataError(
            f"The document is not a {model.__name__} ({error.errors()[0]['msg']})",
            at=store.url_of(key),
            fix="it was written by a newer modelmill or by hand; use that version, or remove it",
        ) from error
