"""What one round of torture is about; everything in it follows from a seed."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, get_args

from modelmill.spec.names import Kind
from modelmill.store.transfer import PART_BYTES
from tests.store.storm import LYING

KIND: Final[Kind] = "merge"
KEY: Final = "key"
TWINS: Final = 2
BLOCK_BYTES: Final = 65_521

Protocol = Literal["ours", "no condition", "final keys", "manifest first", "stripped If-None-Match"]
PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)
"""Ours, and what must fail here: what others do, and ours on a store that lies."""

SMALL: Final = ("GetObject", "PutObject", "commit")
BIG: Final = ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
POINTS: Final = tuple(f"{when} {what}" for what in (*SMALL, *BIG) for when in ("before", "after"))
"""Where a writer can die: before it asks for something, and after the store has done it."""

BIG_SHARE: Final = 0.06
"""Of the rounds, those with a file in parts: they cost as much as all others."""


@dataclass(frozen=True)
class Fate:
    """What happens to a writer."""

    signals: tuple[signal.Signals, ...] = ()
    point: str = ""
    """One of `POINTS`; else it is after some time."""
    nth: int = 1
    after_seconds: float = 0.0


@dataclass(frozen=True)
class Scene:
    """One round."""

    name: str
    protocol: Protocol
    sizes: Mapping[str, int]
    """Of the files, by path."""
    fates: tuple[Fate, ...]
    meets: bool
    """Whether the twins wait for each other before they commit."""

    def body(self, writer: int, path: str) -> bytes:
        """Make what a writer writes to a file; no two write the same."""
        size = self.sizes[path] + (writer if self.sizes[path] else 0)
        block = Random(f"{self.name}/{writer}/{path}").randbytes(min(size, BLOCK_BYTES))
        return (block * (size // len(block) + 1))[:size] if block else b""


def draw_scene(seed: int, number: int, protocol: Protocol, pace_seconds: float) -> Scene:
    """Decide about a round.

    Args:
        seed: of the whole torture.
        number: of the round.
        protocol: how the twins publish.
        pace_seconds: how long a writer lives that nobody kills.
    """
    random = Random(f"{seed}/{protocol}/{number}")
    sizes = {
        f"part-{each}.bin": random.randrange(1, 40_000) for each in range(random.randint(1, 4))
    }
    sizes["empty"] = 0
    operations = list(SMALL)
    # The first rounds of ours go through all points; those after them draw.
    point = POINTS[number] if protocol == "ours" and number < len(POINTS) else ""
    if point.endswith(BIG) or random.random() < BIG_SHARE:
        sizes["model.safetensors"] = PART_BYTES + random.randrange(1, 2**20)
        operations += BIG * 2
    # Two that must both commit to show it need to live.
    mercy = 0.0 if protocol in {"ours", "manifest first"} else 0.5
    fates = tuple(
        Fate() if random.random() < mercy else _draw_fate(random, operations, pace_seconds)
        for _ in range(TWINS)
    )
    if protocol == "manifest first":
        # Whoever wins dies before anything else is there.
        fates = (Fate((signal.SIGKILL,), "before PutObject", nth=2),) * TWINS
    if point:
        fates = (Fate((signal.SIGKILL,), point), *fates[1:])
    kind = LYING if protocol == "stripped If-None-Match" else "round"
    name = f"{kind}-{PROTOCOLS.index(protocol)}-{number}"
    return Scene(name, protocol, sizes, fates, meets=random.random() < 0.5)


def _draw_fate(random: Random, operations: list[str], pace_seconds: float) -> Fate:
    after_seconds = random.uniform(0, 1.2 * pace_seconds)
    drawn = random.random()
    if drawn < 0.3:
        point = f"{random.choice(['before', 'after'])} {random.choice(operations)}"
        return Fate((signal.SIGKILL,), point, random.choice([1, 1, 2]))
    if drawn < 0.5:
        return Fate((signal.SIGKILL,), after_seconds=after_seconds)
    if drawn < 0.65:
        return Fate((signal.SIGTERM,), after_seconds=after_seconds)
    if drawn < 0.7:
        return Fate((signal.SIGTERM, signal.SIGKILL), after_seconds=after_seconds)
    return Fate()
