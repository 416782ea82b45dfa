"""When each stage ran and where its time went, as places on one line.

Knows spans and parts.  Must not know HTML: places are percentages, and time in which
nothing ran for long is cut out and marked, so that a run resumed a day later stays legible.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from modelmill.report import words
from modelmill.report.document import ReportDocument, Span, StageEntry
from modelmill.report.panels import Tick

PARTS: Final = ("start", "pull", "load", "work", "save", "push")
"""`start` is what passes before the first part: a process, its imports, the checks."""
_LONGEST_GAP_SECONDS: Final = 60.0
_GAP_SHARE: Final = 0.03
"""Of the busy time, for the width of a cut."""

_ROUND_SECONDS: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)
"""Distances between ticks that read well."""
_SHOWN_SECONDS: Final = 0.05
"""What would read `0.0 s` is left out."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Segment:
    """A coloured piece of a bar; places in percent."""

    part: str
    left: float
    width: float
    text: str


@dataclass(frozen=True)
class Lane:
    """One stage's row."""

    stage: str
    status: str
    duration: str
    memory: str
    traffic: str
    segments: tuple[Segment, ...]
    text: str
    """The same in words."""
    note: str


@dataclass(frozen=True)
class Timeline:
    """The whole run."""

    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]
    cuts: tuple[Tick, ...]
    shares: tuple[Segment, ...]
    """Where the time of all stages together went."""
    total: str
    has_lost_attempts: bool
    """Whether some attempt ended without a commit."""


@dataclass(frozen=True)
class _Clock:
    """Maps seconds since the run's start to percent, with long gaps cut short."""

    busy: tuple[Interval, ...]
    gap_seconds: float

    def place(self, second: float) -> float:
        length = self._length()
        return round(100 * self._shown(second) / length, 3) if length else 0.0

    def cuts(self) -> tuple[Tick, ...]:
        pairs = zip(self.busy, self.busy[1:], strict=False)
        return tuple(
            Tick(self.place(before[1]), f"{words.duration(after[0] - before[1])} idle")
            for before, after in pairs
        )

    def ticks(self) -> tuple[Tick, ...]:
        """Label the time that has passed, where nothing is cut out."""
        if len(self.busy) != 1:
            return ()
        end = self.busy[0][1]
        step = next((each for each in _ROUND_SECONDS if 6 * each >= end), int(end))
        return tuple(
            Tick(self.place(second), _passed(second)) for second in range(0, int(end) + 1, step)
        )

    def _length(self) -> float:
        return sum(end - start for start, end in self.busy) + self.gap_seconds * (
            len(self.busy) - 1
        )

    def _shown(self, second: float) -> float:
        shown = 0.0
        for index, (start, end) in enumerate(self.busy):
            if second < start:
                break
            shown += (self.gap_seconds if index else 0.0) + min(second, end) - start
        return shown


def timeline(document: ReportDocument) -> Timeline:
    """Lay out every stage of a run."""
    starts = [_moment(span.started) for stage in document.stages for span in stage.spans]
    origin = min(starts, default=0.0)
    busy = _merged(
        [
            (_moment(span.started) - origin, _end(span, stage) - origin)
            for stage in document.stages
            for span in stage.spans
        ]
    )
    busy_seconds = sum(end - start for start, end in busy)
    clock = _Clock(busy=busy, gap_seconds=_GAP_SHARE * busy_seconds)
    return Timeline(
        lanes=tuple(_lane(stage, clock, origin) for stage in document.stages),
        ticks=clock.ticks(),
        cuts=clock.cuts(),
        shares=_shares(document.stages),
        total=words.duration(busy_seconds) if busy else words.NOTHING,
        has_lost_attempts=any(
            span.outcome in ("failed", "stopped")
            for stage in document.stages
            for span in stage.spans
        ),
    )


def _lane(stage: StageEntry, clock: _Clock, origin: float) -> Lane:
    segments: list[Segment] = []
    for span in stage.spans:
        start, end = _moment(span.started) - origin, _end(span, stage) - origin
        segments.extend(_segments(stage, span, (start, end), clock))
    return Lane(
        stage=stage.stage,
        status=stage.status,
        duration=words.duration(stage.seconds),
        memory=words.memory(stage.peak_rss_bytes, stage.peak_gpu_bytes),
        traffic=_traffic(stage),
        segments=tuple(segments),
        text=", ".join(
            f"{part.name} {words.duration(part.seconds)}"
            for part in stage.parts
            if part.seconds >= _SHOWN_SECONDS
        ),
        note=_note(stage),
    )


def _segments(stage: StageEntry, span: Span, place: Interval, clock: _Clock) -> list[Segment]:
    start, end = place
    if span.outcome != "committed":
        return [_segment(span.outcome, start, end, clock, f"attempt {span.outcome}")]
    total = sum(part.seconds for part in stage.parts)
    scale = min(1.0, (end - start) / total) if total else 1.0
    begin = end - total * scale
    pieces = [_segment("start", start, begin, clock, f"start {words.duration(begin - start)}")]
    for part in stage.parts:
        text = f"{part.name} {words.duration(part.seconds)}"
        pieces.append(_segment(part.name, begin, begin + part.seconds * scale, clock, text))
        begin += part.seconds * scale
    return pieces


def _segment(part: str, start: float, end: float, clock: _Clock, text: str) -> Segment:
    left, right = clock.place(start), clock.place(max(start, end))
    return Segment(part=part, left=left, width=round(right - left, 3), text=text)


def _traffic(stage: StageEntry) -> str:
    if stage.bytes_in is None or stage.bytes_out is None:
        return ""
    return f"{words.size(stage.bytes_in)} in, {words.size(stage.bytes_out)} out"


def _note(stage: StageEntry) -> str:
    if stage.status == "adopted":
        return f"adopted from run {stage.adopted_from}"
    if stage.status == "done":
        return f"{stage.attempts} attempts" if stage.attempts > 1 else ""
    return stage.status


def _shares(stages: Sequence[StageEntry]) -> tuple[Segment, ...]:
    spent: dict[str, float] = {}
    for stage in stages:
        if stage.status == "done":
            for part in stage.parts:
                spent[part.name] = spent.get(part.name, 0.0) + part.seconds
    total = sum(spent.values())
    segments: list[Segment] = []
    left = 0.0
    for name, seconds in sorted(spent.items(), key=lambda item: _rank(item[0])):
        width = round(100 * seconds / total, 3) if total else 0.0
        text = f"{name} {words.duration(seconds)} ({width:.0f} %)"
        segments.append(Segment(part=name, left=round(left, 3), width=width, text=text))
        left += width
    return tuple(segments)


def _rank(part: str) -> tuple[int, str]:
    return (PARTS.index(part) if part in PARTS else len(PARTS), part)


def _passed(seconds: int) -> str:
    """Label a tick in the largest unit that leaves no rest."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds and seconds % length == 0:
            return f"{seconds // length} {unit}"
    return f"{seconds} s" if seconds else "0"


def _merged(spans: list[Interval]) -> tuple[Interval, ...]:
    """Join spans that overlap or have only a short gap between them."""
    joined: list[Interval] = []
    for start, end in sorted(spans):
        if joined and start - joined[-1][1] <= _LONGEST_GAP_SECONDS:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return tuple(joined)


def _end(span: Span, stage: StageEntry) -> float:
    if span.ended:
        return _moment(span.ended)
    return _moment(span.started) + (stage.seconds or 0.0)


def _moment(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
