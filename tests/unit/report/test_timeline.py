"""Where stages lie on the line of time."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from modelmill.report.compose import render
from modelmill.report.document import ReportDocument
from modelmill.report.facts import RunFacts
from modelmill.report.timeline import timeline


def test_every_segment_lies_on_the_line(document: ReportDocument) -> None:
    """No bar leaves the line, and a stage's pieces follow one another."""
    for lane in timeline(document).lanes:
        edges = [(each.left, each.left + each.width) for each in lane.segments]
        assert all(-0.01 <= left <= right <= 100.01 for left, right in edges)
        assert edges == sorted(edges)


def test_an_adopted_stage_has_no_bar(document: ReportDocument) -> None:
    """What another run did is named and takes none of this run's time."""
    lane = timeline(document).lanes[0]
    assert lane.segments == ()
    assert lane.note == "adopted from run yesterday"


def test_shares_add_up(document: ReportDocument) -> None:
    """Where the time went is all of the time."""
    shares = timeline(document).shares
    assert [share.part for share in shares] == ["pull", "load", "work", "save", "push"]
    assert sum(share.width for share in shares) == pytest.approx(100, abs=0.01)


def test_a_night_between_two_sittings_is_cut_out(small: RunFacts) -> None:
    """A run resumed a day later shows its work, not the night; the cut says how long."""
    late = [each.stage == "infer-gptq-2" for each in small.events]
    events = tuple(
        each.model_copy(update={"time": _later(each.time)}) if is_late else each
        for each, is_late in zip(small.events, late, strict=True)
    )
    document, _ = render(replace(small, events=events))
    drawn = timeline(document)
    assert [cut.label for cut in drawn.cuts] == ["24 h 00 min idle"]
    assert drawn.ticks == ()
    widths = {lane.stage: sum(each.width for each in lane.segments) for lane in drawn.lanes}
    assert widths["finetune"] > 30


def test_a_run_that_never_started_has_an_empty_line(
    small: RunFacts, change: Callable[..., RunFacts]
) -> None:
    """Without events there is nothing to draw and nothing to divide by."""
    drawn = timeline(render(replace(small, events=()))[0])
    assert all(lane.segments == () for lane in drawn.lanes)
    assert drawn.ticks == ()


def _later(time: str) -> str:
    return (datetime.fromisoformat(time) + timedelta(days=1)).isoformat()
