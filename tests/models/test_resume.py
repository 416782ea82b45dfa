import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from modelmill.spec.errors import DataError, DeviceFault, Interrupted
from modelmill.spec.figures import Finetuned
from modelmill.spec.settings import FinetuneSettings
from modelmill.stages import finetune
from modelmill.stages.finetune.state import STATE, MadeWith, State
from modelmill.stages.stage import Folders

from ..tiny_stages import Family, RecordingPulse
from .conftest import settings_of

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own

EVAL_EVERY_FIFTH = 0.25
"""Of 20 steps; 4 steps are a pass over the rows."""


@dataclass
class Workbench:
    """Runs attempts at one fine-tune, which share what they leave to go on from."""

    folder: Path
    inputs: dict[str, Path]
    settings: FinetuneSettings
    made: int = 0
    older: list[Path] = field(default_factory=list)

    @property
    def resume(self) -> Path:
        """Where the newest state is."""
        return self.folder / "resume"

    def attempt(self, pulse: RecordingPulse) -> Finetuned:
        """Run an attempt in a folder of its own."""
        self.made += 1
        self.output.mkdir(parents=True)
        self.resume.mkdir(exist_ok=True)
        folders = Folders(self.inputs, self.output, self.resume, self._fall_back)
        outcome = finetune.run(self.settings, folders, pulse)
        assert isinstance(outcome.figures, Finetuned)
        return outcome.figures

    def interrupt(self, pulse: RecordingPulse) -> None:
        """Run an attempt that is told to stop."""
        with pytest.raises(Interrupted):
            self.attempt(pulse)
        assert list(self.output.iterdir()) == []

    @property
    def output(self) -> Path:
        """What the last attempt wrote."""
        return self.folder / f"output-{self.made}"

    @property
    def step(self) -> int:
        """After which step the newest state is."""
        return State.model_validate_json((self.resume / STATE).read_bytes()).step

    def bytes(self) -> dict[str, bytes]:
        """Read every file that the last attempt wrote."""
        return {
            str(path.relative_to(self.output)): path.read_bytes()
            for path in sorted(self.output.rglob("*"))
            if path.is_file()
        }

    def _fall_back(self) -> bool:
        for path in self.resume.iterdir():
            path.unlink()
        if not self.older:
            return False
        for path in self.older.pop().iterdir():
            path.rename(self.resume / path.name)
        return True


Bench = Callable[..., Workbench]


@pytest.fixture
def bench(tmp_path: Path, model_of: Callable[[Family], Path], data: Path) -> Bench:
    """Give a function that prepares attempts."""

    def prepare(name: str, family: Family = "llama", **changes: object) -> Workbench:
        inputs = {"model": model_of(family), "data": data}
        return Workbench(tmp_path / name, inputs, settings_of(**changes))

    return prepare


def stop_at(number: int, every: int) -> RecordingPulse:
    """Ask to stop when the so-many-th state is kept."""

    def stop(kept: int) -> None:
        if kept == number:
            raise Interrupted("asked to stop")

    return RecordingPulse(keep_every=every, on_kept=stop)


RECIPES = {
    "dropout": {"lora_dropout": 0.1},
    "accumulation": {"lora_dropout": 0.1, "micro_batch_size": 2},
    "noise": {"neftune_noise_alpha": 5.0, "lr_scheduler_type": "cosine"},
    "packing": {"packing": True, "lora_dropout": 0.1, "batch_size": 2, "micro_batch_size": 1},
    "dora": {"use_dora": True, "lora_dropout": 0.1},
    "modules": {"modules_to_save": ("lm_head",), "lora_dropout": 0.1},
    "half-epoch": {"num_train_epochs": 2.5, "lora_dropout": 0.1},
    "full": {"method": "full", "learning_rate": 1e-3},
    "nf4": {"load_in": "nf4", "lora_dropout": 0.1},
    "checkpointing": {"gradient_checkpointing": True, "lora_dropout": 0.1},
    "patience": {"early_stopping_patience": 2, "learning_rate": 5e-2},
}


@pytest.mark.parametrize("name", RECIPES)
def test_interrupted_fine_tune_ends_byte_for_byte_like_one_that_was_not(
    bench: Bench, name: str
) -> None:
    """Whatever is random, wherever it is cut: in a pass, between two, before and after scores."""
    recipe = {"eval_steps": EVAL_EVERY_FIFTH, **RECIPES[name]}
    whole = bench("whole", **recipe)
    figures = whole.attempt(RecordingPulse())
    parts = bench("parts", **recipe)
    parts.interrupt(stop_at(1, every=3))
    assert parts.step == 3
    parts.interrupt(stop_at(1, every=1))
    assert parts.step == 4
    parts.interrupt(stop_at(2, every=1))
    again = parts.attempt(RecordingPulse(keep_every=2))
    assert parts.bytes() == whole.bytes()
    assert again == figures
    assert figures.steps > 6
