"""What has been answered so far, on disk: a batch is there completely or not at all.

Knows files and records; must not know models.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from modelmill.spec.names import PREDICTIONS
from modelmill.spec.records import Prediction
from modelmill.stages.infer.batches import Batch

TIMING: Final = "timing.json"

_SECONDS = TypeAdapter(dict[int, float])


class Ledger:
    """Finished batches, each with the seconds it took to generate."""

    def __init__(self, folder: Path, batches: Sequence[Batch]) -> None:
        """Read what an earlier attempt finished.

        A batch that was cut off while it was written is dropped, and the file is written
        anew without it.
        """
        self._predictions = folder / PREDICTIONS
        self._timing = folder / TIMING
        known = _read(self._predictions)
        seconds = _SECONDS.validate_json(self._timing.read_bytes()) if self._timing.exists() else {}
        self.done: dict[Batch, list[Prediction]] = {
            batch: [known[row] for row in batch]
            for batch in batches
            if all(row in known for row in batch) and batch[0] in seconds
        }
        self._seconds = {batch[0]: seconds[batch[0]] for batch in self.done}
        _write(self._predictions, [each for rows in self.done.values() for each in rows])

    def add(self, batch: Batch, predictions: list[Prediction], seconds: float) -> None:
        """Keep a batch; it survives a crash of the machine from here on."""
        self._seconds[batch[0]] = seconds
        _replace(self._timing, _SECONDS.dump_json(self._seconds))
        _write(self._predictions, predictions, mode="ab")
        self.done[batch] = predictions

    @property
    def generate_seconds(self) -> float:
        """Seconds of pure generation, over all attempts."""
        return sum(self._seconds.values())

    @property
    def predictions(self) -> list[Prediction]:
        """Everything answered so far."""
        return [each for rows in self.done.values() for each in rows]


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """Write predictions in the order of their rows."""
    _write(path, sorted(predictions, key=lambda each: each.row))


def _read(path: Path) -> dict[int, Prediction]:
    if not path.exists():
        return {}
    known: dict[int, Prediction] = {}
    for line in path.read_bytes().splitlines():
        try:
            prediction = Prediction.model_validate_json(line)
        except ValidationError:
            break  # torn by a crash; nothing whole follows it
        known[prediction.row] = prediction
    return known


def _write(path: Path, predictions: Iterable[Prediction], mode: str = "wb") -> None:
    with path.open(mode) as file:
        file.write(b"".join(each.model_dump_json().encode() + b"\n" for each in predictions))
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)
