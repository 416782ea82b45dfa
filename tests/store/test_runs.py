import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelmill.spec.errors import DataError, DigestMismatch, InputMissing
from modelmill.spec.records import Event, Progress, RunRecord
from modelmill.store.runs import (
    append_event,
    get_plan,
    list_logs,
    list_runs,
    put_log,
    put_plan,
    put_progress,
    read_events,
    read_log,
    read_progress,
    read_run,
    update_run,
)
from modelmill.store.s3 import Store
from tests.store.proxy import Proxy


def _count(record: RunRecord | None) -> RunRecord:
    present = record or RunRecord(name="r", created="now")
    return present.model_copy(update={"plans": (*present.plans, str(len(present.plans)))})


def test_update_run_by_many_at_once(store: Store) -> None:
    """Of changes made at the same moment none is lost."""
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(update_run, store, "r", _count) for _ in range(9)]:
            done.result()

    record = read_run(store, "r")
    assert record is not None
    assert record.plans == tuple(map(str, range(9)))
    assert list(list_runs(store)) == ["r"]


def test_update_run_when_the_answer_is_lost(store: Store, behind: Store, proxy: Proxy) -> None:
    """A change whose acknowledgement is lost is not made twice."""
    for expected in (("0",), ("0", "1")):
        proxy.plan("PUT", "lost answer")
        assert update_run(behind, "r", _count).plans == expected


def test_read_run_of_a_newer_version(store: Store) -> None:
    """A record with fields this version does not know is an error, not a guess."""
    store.put("runs/r/run.json", b'{"name":"r","created":"now","colour":"red"}')

    with pytest.raises(DataError, match="not a RunRecord"):
        read_run(store, "r")


def test_plan_round_trip(store: Store) -> None:
    """A plan is found by its digest, missing plans and changed ones are told apart."""
    sha256 = put_plan(store, "r", b'{"a":1}')
    assert get_plan(store, "r", sha256) == b'{"a":1}'

    with pytest.raises(InputMissing):
        get_plan(store, "r", "0" * 64)
    store.put(f"runs/r/plan-{sha256}.json", b'{"a":2}')
    with pytest.raises(DigestMismatch):
        get_plan(store, "r", sha256)


def test_events_in_order(store: Store) -> None:
    """Events come back in the order in which they happened."""
    events = tuple(Event(time=str(n), event="started", stage=f"s{n}") for n in range(5))
    for event in events:
        append_event(store, "r", event)

    assert read_events(store, "r") == events


def test_progress_is_overwritten(store: Store) -> None:
    """Only the last progress of a stage is kept."""
    assert read_progress(store, "r", "merge") is None
    for done in (1, 2):
        last = Progress(stage="merge", attempt="a", time="t", part="work", done=done)
        put_progress(store, "r", last)

    assert read_progress(store, "r", "merge") == last


def test_logs(store: Store) -> None:
    """Logs are found by stage and attempt."""
    put_log(store, "r", "infer-base", "a1", b"hello\n")
    put_log(store, "r", "infer", "a2", b"hello\n")

    assert list_logs(store, "r", "infer") == (("infer", "a2"),)
    assert set(list_logs(store, "r")) == {("infer", "a2"), ("infer-base", "a1")}
    assert read_log(store, "r", "infer", "a2") == b"hello\n"
    time.sleep(1.1)  # a store tells whole seconds
    put_log(store, "r", "fetch", "a0", b"hello\n")
    assert list_logs(store, "r")[-1] == ("fetch", "a0")
    assert read_log(store, "r", "infer", "a3") is None
