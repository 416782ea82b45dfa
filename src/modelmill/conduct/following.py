"""Follow what the attempts of a run print, wherever it is to be had.

A pod's own log is the newest; when the pod is gone its conductor has kept the log in the
store.  Both hold the same bytes, so what was shown of one is skipped in the other.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from modelmill.conduct.answers import NotThere, Refused, Unavailable
from modelmill.conduct.seen import PodSeen
from modelmill.spec.names import CONTAINER, LABEL_RUN, LABEL_STAGE
from modelmill.store.runs import list_logs, read_log
from modelmill.store.s3 import Store

OVERLAP_SECONDS = 2
"""A server counts whole seconds of its own clock; lines that were shown are left out."""


class Pods(Protocol):
    """A namespace, as far as a follower needs it."""

    def list_pods(self, selector: str) -> tuple[PodSeen, ...]:
        """List the pods that a label selector names."""
        ...

    def timed_log_of(
        self, pod: PodSeen, container: str, since_seconds: int | None
    ) -> Iterable[tuple[str, bytes]]:
        """Read what a pod has printed lately, or all of it: when, and the line with its end."""
        ...


@dataclass(frozen=True)
class Printed:
    """What an attempt has printed since the last look."""

    stage: str
    attempt: str
    text: bytes


@dataclass
class _Tail:
    """How much of a log was shown."""

    shown_bytes: int = 0
    last: str = ""
    """The timestamp of the last line shown."""
    at_last: int = 0
    """How many lines of that very timestamp were shown."""
    looked: datetime | None = None

    def misses(self, lines: Sequence[tuple[str, bytes]]) -> bool:
        """Tell whether lines may have been printed between the last one shown and these.

        A server counts the seconds back from when it gets to answer, which may be late.
        """
        return bool(self.last and lines and lines[0][0] > self.last)

    def new_of(self, lines: Iterable[tuple[str, bytes]]) -> bytes:
        """Leave out the lines that were shown before."""
        known, fresh = self.at_last, b""
        for time, line in lines:
            if time < self.last:
                continue
            if time == self.last and known:
                known -= 1
                continue
            self.at_last = self.at_last + 1 if time == self.last else 1
            self.last = time
            known = 0
            fresh += line
        self.shown_bytes += len(fresh)
        return fresh


@dataclass
class Follower:
    """Remembers what it has given out; every look gives what is new."""

    store: Store
    run: str
    stage: str = ""
    """Empty for all of them."""
    namespace: Pods | None = None
    """Of the run's pods, where this machine reaches them."""
    _tails: dict[str, _Tail] = field(default_factory=dict)

    def look(self) -> Iterator[Printed]:
        """Give what was printed since the last look, oldest attempt first."""
        pods = [pod for pod in self._pods() if pod.has_begun]
        for pod in pods:
            text = self._of_pod(pod)
            if text:
                yield Printed(pod.metadata.labels[LABEL_STAGE], pod.metadata.uid, text)
        present = {pod.metadata.uid for pod in pods}
        # An attempt that several pods share is called after its Job.
        present |= {each.uid for pod in pods for each in pod.metadata.owner_references}
        for stage, attempt in list_logs(self.store, self.run, self.stage):
            if attempt in present:
                continue
            tail = self._tails.setdefault(attempt, _Tail())
            text = (read_log(self.store, self.run, stage, attempt) or b"")[tail.shown_bytes :]
            tail.shown_bytes += len(text)
            if text:
                yield Printed(stage, attempt, text)

    def _pods(self) -> tuple[PodSeen, ...]:
        if self.namespace is None:
            return ()
        stage = f"{LABEL_STAGE}={self.stage}" if self.stage else LABEL_STAGE
        try:
            return self.namespace.list_pods(f"{LABEL_RUN}={self.run},{stage}")
        except (Refused, Unavailable):
            return ()

    def _of_pod(self, pod: PodSeen) -> bytes:
        assert self.namespace is not None
        tail = self._tails.setdefault(pod.metadata.uid, _Tail())
        now = datetime.now(UTC)
        since = None
        if tail.looked is not None:
            since = int((now - tail.looked).total_seconds()) + OVERLAP_SECONDS
        try:
            lines = tuple(self.namespace.timed_log_of(pod, CONTAINER, since))
            if tail.misses(lines):
                lines = tuple(self.namespace.timed_log_of(pod, CONTAINER, None))
        except (NotThere, Refused, Unavailable):
            return b""
        tail.looked = now
        return tail.new_of(lines)
