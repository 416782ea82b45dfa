"""What a stage function is given and what it gives back.

A stage function knows settings and paths only: no store, no environment variables, no
cluster, no logging set-up.  So the same function runs in a pod, on a laptop and in a test
with a temporary folder.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from modelmill.spec.figures import Figures
from modelmill.spec.names import Fsdp
from modelmill.store.poured import Poured
from modelmill.store.tensors import WeightFile


@dataclass(frozen=True)
class Shard:
    """Which part of the stage an attempt does, where several pods share it."""

    number: int = 0
    count: int = 1
    saved: Callable[[], tuple[Path, ...]] = tuple
    """Commits `resume` if it holds anything new, *then* fetches what all attempts at the stage
    have committed, and names a folder for each: whoever comes last sees everybody."""


@dataclass(frozen=True)
class InStore:
    """Weights for which the volume has no room: read from the store, and written to it."""

    weights: Mapping[str, tuple[WeightFile, ...]]
    """By role: those of the inputs, verified; they are not in their folders."""
    pour: Callable[[str, bytes, int], Poured]
    """Begins a weight file of the output: of a name, of all bytes before its first tensor and so
    many in all; the next only when all of them have been written."""
    poured: Callable[[], tuple[WeightFile, ...]]
    """Waits until all is there, to be read as the inputs are."""
    keep: Callable[[], None]
    """Lets a later attempt go on from what has been sent; cheap enough after every tensor."""


@dataclass(frozen=True)
class Folders:
    """Where a stage reads and writes."""

    inputs: Mapping[str, Path]
    """By role; read-only, verified, and complete for the parts the plan names."""
    output: Path
    """Empty at the start; everything in it is committed at the end."""
    resume: Path
    """Holds what an earlier attempt of the same key saved; empty the first time."""
    fall_back: Callable[[], bool] = lambda: False
    """Puts into `resume` what was saved before what is there; False, and nothing, if there is
    no more."""
    growing: Callable[[Path, int], None] = lambda *_: None
    """Takes a file of `output` that is being written from its first byte to its last, and how many
    it will have, to be sent while the stage goes on; it stays as it is afterwards."""
    in_store: InStore | None = None
    """Only where no folder can hold the weights; inputs are then complete but for these."""
    shard: Shard = Shard()
    ranks: int = 0
    """Processes that train together; 0 for one on each device that is there."""
    fsdp: Fsdp = "auto"
    """Whether each of them holds a part of the weights only."""


@dataclass(frozen=True)
class Outcome:
    """What a stage found out, beside the files it wrote."""

    figures: Figures
    effective: Mapping[str, JsonValue] = field(default_factory=dict)
    """What the device made of the settings: precision, micro-batch, kernels."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of packages that only processes of its own have loaded."""
    peak_gpu_bytes: int = 0
    """Of the one of these processes that needed most."""


class Pulse(Protocol):
    """How a stage shows that it lives, and where its time goes.

    Every method is cheap enough for an inner loop and raises `Interrupted` once the stage
    has been asked to stop.
    """

    def part(self, name: str) -> AbstractContextManager[None]:
        """Time a part of the stage (`load`, `work`, `save`); parts do not nest."""
        ...

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Tell how far the present part is."""
        ...

    def save(self) -> None:
        """Say that `resume` is consistent now; it is committed when enough time has passed."""
        ...

    def steps(self) -> AbstractContextManager[None]:
        """Let a request to stop wait for the end of a step, so that it tears none."""
        ...

    def is_due(self) -> bool:
        """Tell, after a step, whether a state should be kept.

        From time to time it is, and once the stage has been asked to stop.
        """
        ...

    def keep(self, size_bytes: int, write: Callable[[], None]) -> None:
        """Let `write` put a state of that size into `resume`, and commit it in the background.

        What it has written must stay as it is until `is_due` says so again.

        Raises:
            Interrupted: the stage has been asked to stop, and the state is committed.
        """
        ...

    def warn(self, sentence: str) -> None:
        """Log a warning that the report must show as well."""
        ...
