"""What has been answered so far, on disk: a batch is there completely or not at all.

Knows files and records; must not know models.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from modelmill.spec.names import PREDICTIONS
from modelmill.spec.records import Prediction
from modelmill.stages.infer.batches import Batch

TIMING: Final = "timing.json"
FORM: Final = "form.txt"
"""In which form the batches were asked."""

_SECONDS = TypeAdapter(dict[int, float])


@dataclass(frozen=True)
class Answers:
    """A batch that is done."""

    predictions: tuple[Prediction, ...]
    seconds: float
    """Of pure generation."""


def answered_in(
    folders: Iterable[Path], batches: Sequence[Batch], form: str
) -> dict[Batch, Answers]:
    """Collect what any of some folders holds in a form, in the order of the batches.

    Each comes from one folder as a whole: devices may differ, and rows of two of them would be
    a batch that nobody has answered.
    """
    found: dict[Batch, Answers] = {}
    for folder in folders:
        if form_of(folder) in (form, ""):
            found = {**_answered(folder, batches), **found}
    return {batch: found[batch] for batch in batches if batch in found}


def form_of(folder: Path) -> str:
    """Read in which form the answers of a folder were asked; empty where it holds none."""
    told = folder / FORM
    return told.read_text(encoding="utf-8") if told.exists() else ""


def seconds_of(answered: Mapping[Batch, Answers]) -> float:
    """Sum the seconds of pure generation, over all attempts and devices."""
    return sum(each.seconds for each in answered.values())


def predictions_of(answered: Mapping[Batch, Answers]) -> list[Prediction]:
    """List everything that was answered."""
    return [row for each in answered.values() for row in each.predictions]


class Ledger:
    """The finished batches of an attempt, each with the seconds it took to generate."""

    def __init__(
        self, folder: Path, batches: Sequence[Batch], form: str, saved: Iterable[Path] = ()
    ) -> None:
        """Read what earlier attempts finished of some batches, and keep it in `folder`.

        A batch that was cut off while it was written is dropped, and the file is written
        anew without it.

        Args:
            folder: where to keep them; may hold some.
            batches: those of this attempt.
            form: in which rows are asked.
            saved: other folders that may hold some.
        """
        self._predictions = folder / PREDICTIONS
        self._timing = folder / TIMING
        self.done = answered_in((folder, *saved), batches, form)
        (folder / FORM).write_text(form, encoding="utf-8")
        self._write_timing()
        _write(self._predictions, predictions_of(self.done))

    def add(self, batch: Batch, predictions: Sequence[Prediction], seconds: float) -> None:
        """Keep a batch; it survives a crash of the machine from here on."""
        self.done[batch] = Answers(tuple(predictions), seconds)
        self._write_timing()
        _write(self._predictions, predictions, mode="ab")

    @property
    def rows(self) -> int:
        """How many are answered."""
        return sum(map(len, self.done))

    def _write_timing(self) -> None:
        seconds = {batch[0]: each.seconds for batch, each in self.done.items()}
        _replace(self._timing, _SECONDS.dump_json(seconds))


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """Write predictions in the order of their rows."""
    _write(path, sorted(predictions, key=lambda each: each.row))


def _answered(folder: Path, batches: Sequence[Batch]) -> dict[Batch, Answers]:
    known, timing = _read(folder / PREDICTIONS), folder / TIMING
    seconds = _SECONDS.validate_json(timing.read_bytes()) if timing.exists() else {}
    return {
        batch: Answers(tuple(known[row] for row in batch), seconds[batch[0]])
        for batch in batches
        if all(row in known for row in batch) and batch[0] in seconds
    }


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
