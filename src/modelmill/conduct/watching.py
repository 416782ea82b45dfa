"""Watch a run from afar, through what its conductor and its stages tell the store."""

import time
from typing import Final

from modelmill.conduct.clock import is_young
from modelmill.conduct.history import Watcher
from modelmill.conduct.standing import is_driven
from modelmill.spec.records import Progress, RunRecord
from modelmill.store.runs import event_names, read_event, read_progress, read_run
from modelmill.store.s3 import Store

LOOK_SECONDS: Final = 2.0


def is_over(store: Store, run: str) -> bool:
    """Tell whether nothing more is to be expected of a run.

    One in a cluster that nobody drives yet, or for a moment, is not over; a command on some
    machine that has died is.
    """
    record = read_run(store, run)
    return record is None or _has_ended(record) or not (record.owner or is_driven(record))


def watch_run(store: Store, run: str, watcher: Watcher) -> RunRecord | None:
    """Show what happens until the run has ended: what is going on, and what is new from now on.

    Returns:
        Its record at the end; None where it was removed.
    """
    known: set[str] = set()
    live: set[str] = set()
    is_news = False
    while True:
        # First, so that the last events are there when the end is.
        record = read_run(store, run)
        for name in event_names(store, run):
            if name in known:
                continue
            known.add(name)
            event = read_event(store, run, name)
            if is_news:
                watcher.happened(event)
            (live.add if event.event == "started" else live.discard)(event.stage)
        is_news = True
        if record is None or _has_ended(record):
            return record
        watcher.standing({}, {stage: _young_progress(store, run, stage) for stage in live})
        time.sleep(LOOK_SECONDS)


def _young_progress(store: Store, run: str, stage: str) -> Progress | None:
    progress = read_progress(store, run, stage)
    return progress if progress is not None and is_young(progress.time) else None


def _has_ended(record: RunRecord) -> bool:
    return record.exit_code is not None and not record.conductor
