"""What goes, and when: decisions about a survey, without a store."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from modelmill.conduct.garbage import LATER, Garbage, Known, find_garbage
from modelmill.spec.records import Live
from modelmill.store.objects import Unfinished
from modelmill.store.survey import Heap, Place, Survey

NOW = datetime(2026, 1, 31, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
WEEK = 7 * DAY


def _steps(found: Survey, needed: set[str] = frozenset(), **known: object) -> list[str]:  # type: ignore[assignment]
    asked = Known(needed_keys=needed, needed_sources=set(), attempts={("merge", "k"): "won"})
    rows = find_garbage(found, replace(asked, **known), NOW, WEEK)  # type: ignore[arg-type]
    return [f"{row.step} {row.what} {' '.join(row.names)}" for row in rows]


def _live(age: timedelta, attempt: str = "a") -> Mapping[str, Live]:
    return {"k": Live(run="r", attempt=attempt, time=(NOW - age).isoformat())}


def _merge(
    committed: timedelta | None = None, withdrawn: timedelta | None = None, **attempts: timedelta
) -> Survey:
    place = Place(
        None if committed is None else NOW - committed,
        None if withdrawn is None else NOW - withdrawn,
        {name: Heap(NOW - age, 1, 10) for name, age in attempts.items()},
    )
    return Survey(artifacts={("merge", "k"): place})


def test_files_of_a_dead_attempt_go_at_once() -> None:
    """Whether or not another was committed; those of one that may live stay."""
    assert _steps(_merge(a=5 * MINUTE)) == ["remove attempt merge k a"]
    assert _steps(_merge(a=MINUTE)) == []
    assert _steps(_merge(committed=HOUR, won=HOUR, a=HOUR), {"k"}) == ["remove attempt merge k a"]

    alive = replace(_merge(a=HOUR), live=_live(MINUTE))
    assert _steps(alive) == []
    assert _steps(replace(alive, live=_live(5 * MINUTE))) == ["remove attempt merge k a"]


def test_of_two_attempts_at_a_live_key_only_the_last_word_is_known() -> None:
    """So the other one stays for a day."""
    assert _steps(replace(_merge(b=HOUR), live=_live(MINUTE))) == []
    assert _steps(replace(_merge(b=2 * DAY), live=_live(MINUTE))) == ["remove attempt merge k b"]


def test_artifact_that_no_run_needs_goes_in_two_steps() -> None:
    """A week, then a day; what was made anew or is needed again comes back."""
    assert _steps(_merge(committed=6 * DAY, won=6 * DAY)) == []
    assert _steps(_merge(committed=8 * DAY, won=8 * DAY)) == ["withdraw artifact merge k"]
    assert _steps(_merge(committed=8 * DAY, won=8 * DAY), {"k"}) == []
    assert _steps(replace(_merge(committed=8 * DAY, won=8 * DAY), live=_live(MINUTE))) == []

    assert _steps(_merge(withdrawn=HOUR, won=9 * DAY)) == []
    assert _steps(_merge(withdrawn=2 * DAY, won=9 * DAY)) == ["remove artifact merge k won"]
    assert _steps(_merge(withdrawn=2 * DAY, won=9 * DAY), {"k"}) == ["restore artifact merge k"]
    anew = _merge(committed=HOUR, withdrawn=2 * DAY, won=9 * DAY)
    assert _steps(anew) == ["restore artifact merge k"]


def test_report_belongs_to_its_run() -> None:
    """It stays, whatever its age; only what a dead report stage left goes, a day later."""
    place = Place(NOW - 90 * DAY, None, {"a": Heap(NOW - 90 * DAY), "b": Heap(NOW - HOUR)})
    found = Survey(artifacts={("report", "r.d"): place})
    assert _steps(found, attempts={("report", "r.d"): "a"}) == []
    place.attempts["b"].newest = NOW - 2 * DAY
    assert _steps(found, attempts={("report", "r.d"): "a"}) == ["remove attempt report r.d b"]


def test_uploads_in_parts() -> None:
    """Whose writer is gone they are aborted; a laptop's may take a day."""

    def found(key: str, age: timedelta, live: Mapping[str, Live] | None = None) -> Survey:
        return Survey(unfinished=(Unfinished(key, "u", NOW - age),), live=live or {})

    for key in ("artifacts/merge/k/attempts/a/model.safetensors", "checkpoints/k/a/000001/x"):
        assert _steps(found(key, 5 * MINUTE)) == [f"abort upload {key} u"]
        assert _steps(found(key, MINUTE)) == []
        assert _steps(found(key, HOUR, _live(MINUTE))) == []
        assert _steps(found(key, HOUR, _live(MINUTE, "b"))) == [f"abort upload {key} u"]
    assert _steps(found("sources/s/model.safetensors", HOUR)) == []
    assert _steps(found("sources/s/model.safetensors", 2 * DAY)) != []


def test_checkpoints() -> None:
    """They are for an attempt to come, so they go with the need for one."""
    saved = {"k": Heap(NOW - HOUR, 3, 10)}
    committed = replace(_merge(committed=HOUR, won=HOUR), checkpoints=saved)
    assert _steps(committed, {"k"}) == ["remove checkpoint k"]
    assert _steps(replace(committed, live=_live(MINUTE)), {"k"}) == []
    assert _steps(Survey(checkpoints=saved)) == []
    old = {"k": Heap(NOW - 8 * DAY, 3, 10)}
    assert _steps(Survey(checkpoints=old)) == ["remove checkpoint k"]
    assert _steps(Survey(checkpoints=old), {"k"}) == []


def test_sources() -> None:
    """A week without a run, then a day; an upload that was cut off goes after a day."""

    def found(committed: timedelta | None, withdrawn: timedelta | None, age: timedelta) -> Survey:
        return Survey(
            sources=_merge(committed, withdrawn, a=age).artifacts
            and {"s": _merge(committed, withdrawn, a=age).artifacts["merge", "k"]}
        )

    needed = {"needed_sources": {"s"}}
    assert _steps(found(8 * DAY, None, 8 * DAY)) == ["withdraw source s"]
    assert _steps(found(8 * DAY, None, 8 * DAY), **needed) == []
    assert _steps(found(6 * DAY, None, 6 * DAY)) == []
    assert _steps(found(None, HOUR, 9 * DAY)) == []
    assert _steps(found(None, HOUR, 9 * DAY), **needed) == ["restore source s"]
    assert _steps(found(None, 2 * DAY, 9 * DAY)) == ["remove source s"]
    assert _steps(found(None, None, HOUR)) == []
    assert _steps(found(None, None, 2 * DAY)) == ["remove source s"]


def test_left_overs_of_runs_and_probes() -> None:
    """What a forgotten run's stage told late, and what a killed doctor tried with."""
    heap = Heap(NOW - 2 * DAY, 1, 10)
    found = Survey(runs={"r": heap, "s": heap}, recorded={"s"}, probes={"p": heap})
    assert _steps(found) == ["remove run r", "remove probe p"]


@given(
    times=st.tuples(st.none() | st.integers(0, 30), st.none() | st.integers(0, 30)),
    ages=st.dictionaries(st.sampled_from("abc"), st.integers(0, 30 * 24 * 60), min_size=1),
    live=st.none() | st.tuples(st.integers(0, 10), st.sampled_from("abc")),
    is_needed=st.booleans(),
    winner=st.sampled_from("abc"),
)
def test_what_may_be_read_or_is_being_written_never_goes(
    times: tuple[int | None, int | None],
    ages: dict[str, int],
    live: tuple[int, str] | None,
    is_needed: bool,
    winner: str,
) -> None:
    """Whatever lies there: not a committed attempt, nor a live one, nor what a run needs."""
    committed, withdrawn = times
    found = _merge(
        None if committed is None else committed * DAY,
        None if withdrawn is None else withdrawn * DAY,
        **{name: age * MINUTE for name, age in ages.items()},
    )
    if live is not None:
        found.live = _live(live[0] * MINUTE, live[1])
    known = Known(
        needed_keys={"k"} if is_needed else set(),
        needed_sources=set(),
        attempts={("merge", "k"): winner},
    )
    rows = find_garbage(found, known, NOW, WEEK)
    gone = {name for row in rows if row.step == "remove" for name in row.names[2:]}
    if committed is not None or (withdrawn is not None and withdrawn * DAY < LATER):
        assert winner not in gone
    if live is not None and live[0] * MINUTE < 2 * MINUTE:
        assert live[1] not in gone
    if is_needed:
        assert not _has(rows, "withdraw")
        assert not [row for row in rows if row.what == "artifact" and row.step == "remove"]


def _has(rows: tuple[Garbage, ...], step: str) -> bool:
    return any(row.step == step for row in rows)
