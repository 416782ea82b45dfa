"""Show a run while it works: a bar per stage on a terminal, plain lines elsewhere.

All of it is talk and goes to stderr.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final

import click

from modelmill.cli.options import output_is_plain
from modelmill.cli.show import bytes_text, seconds_text
from modelmill.conduct.words import event_words

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from modelmill.conduct.decide import State
    from modelmill.conduct.history import Watcher
    from modelmill.spec.records import Event, Progress

LINE_SECONDS: Final = 15.0
"""Between two lines about the same stage where there is no terminal."""


@contextmanager
def watcher() -> Iterator["Watcher"]:
    """Choose how to show a run by where stderr goes, and who listens."""
    if not _has_bars():
        yield PlainWatcher()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[words]}"),
        console=Console(stderr=True),
        transient=False,
    ) as bars:
        yield BarWatcher(bars)


def _has_bars() -> bool:
    """Tell whether stderr is a terminal that can move its cursor, for somebody who looks."""
    is_able = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return is_able and not output_is_plain()


def progress_words(progress: "Progress") -> str:
    """Say where a stage is, how fast, and when this part will be over."""
    words = progress.part
    if progress.total:
        is_bytes = progress.unit == "B"
        done = bytes_text(progress.done) if is_bytes else str(progress.done)
        total = bytes_text(progress.total) if is_bytes else f"{progress.total} {progress.unit}"
        words += f" {done}/{total}"
        if progress.rate > 0:
            rate = f"{bytes_text(round(progress.rate))}/s" if is_bytes else _rate(progress)
            left = max(progress.total - progress.done, 0) / progress.rate
            words += f"  {rate}  ETA {seconds_text(left)}"
    return f"{words}  {progress.note}".rstrip()


def _rate(progress: "Progress") -> str:
    if progress.rate >= 1:
        return f"{progress.rate:.1f} {progress.unit}/s"
    return f"{1 / progress.rate:.1f} s each"


class PlainWatcher:
    """Writes a line when something happens, and every 15 s where a stage is."""

    def __init__(self) -> None:
        """Start with nothing said."""
        self._said: dict[str, float] = {}

    def happened(self, event: "Event") -> None:
        """Write the event."""
        self._said[event.stage] = time.monotonic()
        click.echo(f"{datetime.now():%H:%M:%S} {event_words(event)}", err=True)  # noqa: DTZ005

    def standing(
        self, states: Mapping[str, "State"], live: Mapping[str, "Progress | None"]
    ) -> None:
        """Write where a live stage is, if it is time to."""
        done = sum(state == "done" for state in states.values())
        count = f"[{done}/{len(states)}] " if states else ""
        for stage, progress in live.items():
            if progress is None or time.monotonic() - self._said.get(stage, 0) < LINE_SECONDS:
                continue
            self._said[stage] = time.monotonic()
            click.echo(
                f"{datetime.now():%H:%M:%S} {count}{stage}: "  # noqa: DTZ005
                f"{progress_words(progress)}",
                err=True,
            )


class BarWatcher:
    """Keeps a bar for every stage that has begun."""

    def __init__(self, bars: "Bars") -> None:
        """Start without bars."""
        self._bars = bars
        self._of: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}

    def happened(self, event: "Event") -> None:
        """Begin, or finish, the stage's bar."""
        if event.event == "started":
            self._began[event.stage] = time.monotonic()
            self._set(event.stage, 0, None, "starting")
            return
        took = time.monotonic() - self._began.get(event.stage, time.monotonic())
        words = event_words(event).removeprefix(f"{event.stage} ")
        clock = f" in {seconds_text(took)}" if event.stage in self._began else ""
        self._set(event.stage, 1, 1, f"{words}{clock}")

    def standing(
        self,
        states: Mapping[str, "State"],  # noqa: ARG002 - the bars already tell
        live: Mapping[str, "Progress | None"],
    ) -> None:
        """Move the bars of live stages."""
        for stage, progress in live.items():
            if progress is not None:
                total = progress.total or None
                self._set(stage, progress.done, total, progress_words(progress))

    def _set(self, stage: str, done: int, total: int | None, words: str) -> None:
        if stage not in self._of:
            self._of[stage] = self._bars.add_task(stage, total=total, words=words)
        self._bars.update(self._of[stage], completed=done, total=total, words=words)
