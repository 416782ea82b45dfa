"""Faults at random: every round has weather of its own, which follows from the seed."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.store.proxy import Fault, Request

LYING: Final = "lying"
"""What the names of rounds start with whose store ignores conditions."""

BURST: Final = 20
"""Refusals in a row: far more than the SDK's own patience."""

WEIGHTS: Final[Mapping[Fault, int]] = {
    "503": 4,
    "500": 4,
    "429": 3,
    "expired": 2,
    "delay": 4,
    "blackhole": 1,
    "late": 1,
    "reset before": 5,
    "reset inside": 5,
    "lost answer": 12,
    "cut": 5,
    "flip up": 8,
    "flip down": 8,
    "409": 4,
}

UNHURT: Final = frozenset({"ListObjects", "ListMultipartUploads"})

BRIEF: Final = "AbortMultipartUpload"
"""Tidying up is worth a few seconds: what takes longer would leave an upload to the collector."""


@dataclass
class _Weather:
    """One round's."""

    random: Random
    rate: float = 0.0
    refuses_crc: bool = False
    burst: int = 0
    silences: int = 2
    """How many of the faults that take seconds it may still have."""
    flipped: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.rate = self.random.choice([0.0, 0.05, 0.15, 0.3])
        self.refuses_crc = self.random.random() < 0.15

    def choose(self, request: Request) -> Fault | None:
        if self.burst and request.operation != BRIEF:
            self.burst -= 1
            return "503"
        if self.refuses_crc and request.has_crc:
            return "no crc"
        if self.random.random() >= self.rate:
            return None
        if self.random.random() < 0.02 and request.operation != BRIEF:
            self.burst = BURST - 1
            return "503"
        (fault,) = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        if fault in {"blackhole", "late"}:
            self.silences -= 1
            if self.silences < 0:
                return None
        if fault == "flip down":
            # What arrives damaged twice counts as damaged in the store.
            if request.path in self.flipped:
                return None
            self.flipped.add(request.path)
        return fault if _is_survivable(fault, request) else None


def _is_survivable(fault: Fault, request: Request) -> bool:
    match fault:
        case "expired":
            # The first request of a writer is a GET, and what never worked is not waited for.
            return request.method != "GET"
        case "late" if request.operation == "CreateMultipartUpload":
            # An upload that begins after its client has gone is for the collector.
            return False
        case "late" | "blackhole":
            return request.operation != BRIEF
        case _:
            return True


class Storm:
    """Chooses for a proxy what to do to each request of `/<bucket>/<round>/...`."""

    def __init__(self, seed: int) -> None:
        """Start with a clear sky."""
        self._seed = seed
        self._rounds: dict[str, _Weather] = {}
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Fault | None:
        """Choose for one request."""
        if request.operation in UNHURT:
            return None
        _, _, name = request.path.lstrip("/").partition("/")
        name = name.partition("/")[0]
        with self._lock:
            if name.startswith(LYING) and "if-none-match" in request.headers:
                return "no condition"
            if name not in self._rounds:
                self._rounds[name] = _Weather(Random(f"{self._seed}/{name}"))
            return self._rounds[name].choose(request)
