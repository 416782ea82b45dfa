import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from modelmill.spec.errors import DataError, DeviceFault, Interrupted
from modelmill.spec.figures import Finetuned
from modelmill.spec.settings import FinetuneSettings
from modelmill.stages import finetune
from modelmill.stages.finetune import state
from modelmill.stages.finetune.state import STATE, MadeWith, State
from modelmill.stages.finetune.watch import Watch
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


@dataclass(frozen=True)
class Whole:
    """What a fine-tune that was never interrupted left."""

    figures: Finetuned
    bytes: dict[str, bytes]


Uninterrupted = Callable[..., Whole]


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, model_of: Callable[[Family], Path], data: Path
) -> Uninterrupted:
    """Give a function that runs a recipe from its start to its end, each recipe once."""
    made: dict[str, Whole] = {}

    def run(**changes: object) -> Whole:
        settings = settings_of(**changes)
        recipe = settings.model_dump_json()
        if recipe not in made:
            inputs = {"model": model_of("llama"), "data": data}
            bench = Workbench(tmp_path_factory.mktemp("whole"), inputs, settings)
            made[recipe] = Whole(bench.attempt(RecordingPulse()), bench.bytes())
        return made[recipe]

    return run


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
    "qat": {"method": "full", "learning_rate": 1e-3, "qat": {"bits": 4}},
    "nf4": {"load_in": "nf4", "lora_dropout": 0.1},
    "checkpointing": {"gradient_checkpointing": True, "lora_dropout": 0.1},
    "patience": {"early_stopping_patience": 2, "learning_rate": 5e-2},
}


@pytest.mark.parametrize("name", RECIPES)
def test_interrupted_fine_tune_ends_byte_for_byte_like_one_that_was_not(
    bench: Bench, whole: Uninterrupted, name: str
) -> None:
    """Whatever is random, wherever it is cut: in a pass, between two, before and after scores."""
    recipe = {"eval_steps": EVAL_EVERY_FIFTH, **RECIPES[name]}
    expected = whole(**recipe)
    parts = bench("parts", **recipe)
    parts.interrupt(stop_at(1, every=3))
    assert parts.step == 3
    parts.interrupt(stop_at(1, every=1))
    assert parts.step == 4
    parts.interrupt(stop_at(2, every=1))
    again = parts.attempt(RecordingPulse(keep_every=2))
    assert parts.bytes() == expected.bytes
    assert again == expected.figures
    assert again.steps > 6


def test_state_has_nothing_that_could_run_code(bench: Bench) -> None:
    """Tensors are safetensors, the rest is JSON: no pickle is written, so none is ever read."""
    parts = bench("safe")
    parts.interrupt(stop_at(1, every=6))
    assert {path.name for path in parts.resume.iterdir()} == {
        "best-00000.safetensors",
        "generators-00000.safetensors",
        "optimizer-00000.safetensors",
        "state.json",
        "trainer_state.json",
        "weights-00000.safetensors",
    }


def test_tensors_are_written_in_files_of_a_bounded_size(
    bench: Bench, whole: Uninterrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing a large model's optimizer needs no second copy of it in memory."""
    expected = whole(lora_dropout=0.1)
    monkeypatch.setattr(state, "FILE_BYTES", 20_000)
    parts = bench("parts", lora_dropout=0.1)
    parts.interrupt(stop_at(1, every=6))
    sizes = [path.stat().st_size for path in parts.resume.glob("optimizer-*")]
    assert len(sizes) > 3
    assert max(sizes) < 40_000
    parts.attempt(RecordingPulse())
    assert parts.bytes() == expected.bytes


@pytest.mark.parametrize("has_older", [True, False])
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("precision", "bfloat16", "precision was bfloat16 and is float32"),
        ("device", "cuda", "device was cuda and is cpu"),
        ("format", 2, "it is not one of this version"),
    ],
)
def test_checkpoint_of_other_settings_is_refused_with_the_reason(
    bench: Bench, whole: Uninterrupted, field: str, value: object, words: str, *, has_older: bool
) -> None:
    """The one before is used, or the start; the result is the same."""
    expected = whole(num_train_epochs=2)
    parts = bench("parts", num_train_epochs=2)
    if has_older:
        parts.interrupt(stop_at(1, every=2))
        shutil.copytree(parts.resume, parts.folder / "older")
        parts.older.append(parts.folder / "older")
    parts.interrupt(stop_at(1, every=3))
    document = json.loads((parts.resume / STATE).read_bytes())
    (document if field == "format" else document["made_with"])[field] = value
    (parts.resume / STATE).write_text(json.dumps(document), encoding="utf-8")
    pulse = RecordingPulse()
    parts.attempt(pulse)
    [warning] = pulse.warnings
    assert warning.startswith(f"A checkpoint is refused: {words}")
    assert parts.bytes() == expected.bytes
    steps = [done for done, _, _ in pulse.told]
    assert steps[0] == (2 if has_older else 0)


def test_state_belongs_to_no_number_of_ranks() -> None:
    """Every rank has the whole optimizer, an adapter's or a model's; last bits may differ."""
    two = MadeWith(
        method="full", device="cuda", precision="bfloat16", world_size=2, micro_batch_size=4
    )
    alone = two.model_copy(update={"world_size": 1, "micro_batch_size": 8})
    assert two.refusal(alone) == ""
    assert two.inexactness(alone) == "world_size was 2 and is 1, micro_batch_size was 4 and is 8"
    assert two.inexactness(two) == ""
    adapter = two.model_copy(update={"method": "lora"})
    assert two.refusal(adapter) == "method was full and is lora"


def test_memory_that_runs_out_later_goes_on_from_the_state_with_half_the_rows(
    bench: Bench, whole: Uninterrupted
) -> None:
    """Nothing learned is lost, and the report hears of it from whichever attempt commits."""
    figures = whole(micro_batch_size=4).figures
    parts = bench("parts", micro_batch_size=4)
    begun: list[int] = []

    def note(_: int) -> None:
        begun.append(parts.step)
        if len(begun) == 3:
            raise Interrupted("asked to stop")

    out_of_memory = torch.OutOfMemoryError("CUDA out of memory")
    # In the seventh step: it has shown each micro-batch, the end of the step and its loss.
    pulse = RecordingPulse(22, out_of_memory, keep_every=4, on_kept=note)
    parts.interrupt(pulse)
    # Of six steps two are lost; the pulse counts on, so its eighth is the sixth again.
    assert begun == [4, 6, 10]
    [warning] = pulse.warnings
    assert warning.startswith("Memory is too small for 4 rows at a time; taking 2 of them")
    pulse = RecordingPulse()
    again = parts.attempt(pulse)
    [warning] = pulse.warnings
    assert warning.startswith("Memory was too small in an earlier attempt; taking 2 rows at a time")
    assert again.micro_batch_size == 2
    assert len(again.curve) == len(figures.curve)
    for point, same in zip(figures.curve, again.curve, strict=True):
        assert point.step == same.step
        assert (point.loss or point.eval_loss) == pytest.approx(
            same.loss or same.eval_loss, rel=1e-3
        )


def test_memory_of_the_machine_that_is_too_small_halves_the_micro_batch(bench: Bench) -> None:
    """On a CPU torch has no class for it, only words."""
    pulse = RecordingPulse(
        5, RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    )
    bench_ = bench("cpu", micro_batch_size=4)
    assert bench_.attempt(pulse).micro_batch_size == 2
    assert pulse.warnings[0].startswith("Memory is too small for 4 rows at a time")


@pytest.mark.parametrize(("repeats", "error"), [(True, DataError), (False, DeviceFault)])
def test_loss_that_is_no_number_blames_what_it_can(
    *, repeats: bool, error: type[Exception]
) -> None:
    """A CPU would do the same again; a GPU may be broken, so another attempt is worth it."""
    watch = Watch(RecordingPulse(), repeats_exactly=repeats)
    with pytest.raises(error, match="the loss is nan at step 7"):
        log(watch, 7, float("nan"))


def test_loss_that_runs_away_ends_the_stage_unless_that_is_turned_off() -> None:
    """The state remembers how long it has been far above, so interruptions do not hide it."""

    def train_on(watch: Watch) -> None:
        for step in range(1, 200):
            log(watch, step, 2.0 if step < 50 else 9.0)
            record, watch = watch.record(), Watch(RecordingPulse(), divergence=watch.divergence)
            watch.restore(record, None)

    with pytest.raises(DataError, match=r"the loss has diverged: .* after 2 at the start"):
        train_on(Watch(RecordingPulse()))
    train_on(Watch(RecordingPulse(), divergence=None))


def log(watch: Watch, step: int, loss: float) -> None:
    """Let a watch hear of a step's loss."""
    training = TrainerState(global_step=step, max_steps=1000)
    watch.on_log(TrainingArguments(), training, TrainerControl(), {"loss": loss})


def test_order_of_a_resumed_pass_is_drawn_from_where_it_was_drawn_first(
    bench: Bench, whole: Uninterrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: drawn from where training went on, as the library does, it is another."""
    expected = whole(lora_dropout=0.1)
    parts = bench("parts", lora_dropout=0.1)
    parts.interrupt(stop_at(1, every=6))
    monkeypatch.setattr(
        "modelmill.stages.finetune.trainer.epoch_generator",
        lambda kept: kept.tensors("generators")["cpu"],
    )
    parts.attempt(RecordingPulse())
    assert parts.bytes() != expected.bytes


@dataclass
class FullDisk(RecordingPulse):
    """Lets states be written to a disk that is full."""

    def keep(self, size_bytes: int, write: Callable[[], None]) -> None:
        """See that it is said in the way every full disk says it."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        self.kept.append(write)


def test_disk_that_is_full_ends_no_training(bench: Bench, whole: Uninterrupted) -> None:
    """Half a state is on disk then, which nothing takes for a whole one."""
    expected = whole(num_train_epochs=2)
    parts = bench("parts", num_train_epochs=2)
    pulse = FullDisk(keep_every=3)
    parts.attempt(pulse)
    assert len(pulse.kept) == 2
    assert not (parts.resume / STATE).exists()
    assert parts.bytes() == expected.bytes
