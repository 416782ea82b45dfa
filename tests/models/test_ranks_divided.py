"""Processes that hold a part of the weights each train as one would."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modelmill.spec.errors import DoesNotFit, Interrupted
from modelmill.spec.figures import Finetuned
from modelmill.spec.names import Fsdp
from modelmill.spec.settings import FinetuneSettings
from modelmill.stages import finetune
from modelmill.stages.finetune.fsdp import divide, own
from modelmill.stages.finetune.ranks import train_together
from modelmill.stages.finetune.state import STATE, State
from modelmill.stages.finetune.team import Team
from modelmill.stages.finetune.trainer import Trainer
from modelmill.stages.stage import Folders, Outcome, Pulse

from ..tiny_stages import Family, RecordingPulse, make_model, make_rows, write_rows
from .conftest import settings_of

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own

CHECKOUT = Path(__file__).parents[2]
RANKS = 2
FULL = settings_of(
    method="full",
    learning_rate=1e-3,
    num_train_epochs=1,
    micro_batch_size=2,
    eval_steps=2,
    # Layers are put together in 16 bits; with norms in 16 bits too, losses were 0.02 off.
    precision="bfloat16",
)
LORA = settings_of(
    num_train_epochs=1,
    micro_batch_size=1,
    eval_steps=2,
    lora_dropout=0.0,
    gradient_checkpointing=True,
)
WHOLE, DIVIDED = Team(size=RANKS), Team(size=RANKS, divides=True)
LOSS_BOUND = 1e-5
"""Measured: 1e-6, of losses between 5 and 7."""
WEIGHT_BOUND = 1e-3
"""As between ranks that are whole: Adam makes a step of a gradient that is all rounding."""


@dataclass
class Bench:
    """Runs attempts at one fine-tune in folders of their own."""

    folder: Path
    inputs: dict[str, Path]
    settings: FinetuneSettings
    made: list[Path] = field(default_factory=list)

    @property
    def resume(self) -> Path:
        """Where the newest state is."""
        return self.folder / "resume"

    def folders(self, ranks: int) -> Folders:
        """Name folders for one more attempt."""
        output = self.folder / f"output-{len(self.made)}"
        output.mkdir(parents=True)
        self.resume.mkdir(exist_ok=True)
        self.made.append(output)
        return Folders(self.inputs, output, self.resume, ranks=ranks, fsdp="always")

    def attempt(self, ranks: int, pulse: RecordingPulse) -> Finetuned:
        """Train alone, or with so many ranks that hold a part of the weights each."""
        outcome = finetune.run(self.settings, self.folders(ranks), pulse)
        assert isinstance(outcome.figures, Finetuned)
        assert outcome.effective.get("fsdp", False) == (ranks > 1)
        return outcome.figures

    def weights(self) -> dict[str, torch.Tensor]:
        """Read what the last attempt wrote."""
        [path] = self.made[-1].rglob("*model.safetensors")
        return dict(load_file(path))


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, model_of: Callable[[Family], Path]
) -> dict[str, Path]:
    """Write rows that neither batches nor ranks divide."""
    data = tmp_path_factory.mktemp("uneven")
    for split, count in (("train", 29), ("eval", 9)):
        write_rows(make_rows(count, count), data / f"{split}.jsonl")
    return {"model": model_of("llama"), "data": data}


def differences(one: Finetuned, other: Finetuned) -> Iterator[float]:
    """Compare the loss of every step and of every evaluation."""
    for a, b in zip(one.curve, other.curve, strict=True):
        assert (a.step, a.loss is None) == (b.step, b.loss is None)
        yield abs((a.loss or a.eval_loss or 0) - (b.loss or b.eval_loss or 0))


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Compare weights by the one that differs most."""
    assert {n: (w.shape, w.dtype) for n, w in one.items()} == {
        n: (w.shape, w.dtype) for n, w in other.items()
    }
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def ways_from(
    resume: Path, asked: Fsdp, settings: FinetuneSettings = LORA
) -> tuple[tuple[Team, ...], list[str]]:
    """Say how two ranks would share the work, from what is kept, and with which warnings."""
    pulse = RecordingPulse()
    folders = Folders({}, Path("nowhere"), resume, fsdp=asked)
    return finetune._teams(RANKS, folders, settings.finetune, pulse), pulse.warnings


def stop(_: int) -> None:
    """Stop a stage that has kept a state."""
    raise Interrupted("asked to stop")


@dataclass
class Disturbed(RecordingPulse):
    """Has no folder to write the first state to, and then one."""

    resume: Path = Path()
    failures: list[OSError] = field(default_factory=list)

    def keep(self, size_bytes: int, write: Callable[[], None]) -> None:
        """Fail once."""
        away = self.resume.rename(self.resume.with_name("away"))
        try:
            write()
        except OSError as error:
            self.failures.append(error)
        away.rename(self.resume)
        super().keep(size_bytes, write)


def test_state_of_divided_weights_is_gone_on_from_alone_and_the_other_way_round(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    """All four steps of a full fine-tune, half of them divided, are those of one process.

    A state that cannot be written keeps no rank waiting; from one of divided ranks nobody tries
    the whole model again.
    """
    alone = Bench(tmp_path / "alone", inputs, FULL)
    whole = alone.attempt(1, RecordingPulse())
    assert len([each for each in whole.curve if each.loss is not None]) == 4
    for before, after in ((RANKS, 1), (1, RANKS)):
        bench = Bench(tmp_path / f"{before}-{after}", inputs, FULL)
        pulse = Disturbed(keep_every=2, on_kept=stop, resume=bench.resume)
        with pytest.raises(Interrupted):
            bench.attempt(before, pulse)
        assert [type(each) for each in pulse.failures] == [FileNotFoundError]
        kept = State.model_validate_json((bench.resume / STATE).read_bytes())
        assert (kept.step, kept.made_with.divided) == (2, before == RANKS)
        tried, words = ways_from(bench.resume, "auto")
        assert tried == ((DIVIDED,) if before == RANKS else (WHOLE, DIVIDED))
        assert len(words) == (before == RANKS)
        assert ways_from(bench.resume, "never") == ((WHOLE,), [])
        figures = bench.attempt(after, RecordingPulse())
        assert max(differences(whole, figures)) < LOSS_BOUND
        assert distance(alone.weights(), bench.weights()) < WEIGHT_BOUND
        assert (figures.best_step, figures.tokens) == (whole.best_step, whole.tokens)
        assert (bench.made[-1] / "config.json").read_text() == (
            alone.made[-1] / "config.json"
        ).read_text()


def train_on_three_quarters_of_the_memory(
    settings: FinetuneSettings, folders: Folders, pulse: Pulse, team: Team
) -> Outcome:
    """Train on a device that holds three quarters of weights and moments."""
    compute = Trainer.compute_loss

    def weighed(self: Trainer, *args: object, **given: object) -> torch.Tensor:
        if self.state.global_step == 2:
            assert self.optimizer is not None
            moments = [v for each in self.optimizer.state.values() for v in each.values()]
            tensors = [*self.model.parameters(), *moments]
            held = sum(own(each).nbytes for each in tensors)
            share = held / sum(each.nbytes for each in tensors)
            name = f"share-{'divided' if team.divides else 'whole'}-{team.rank}"
            if not (path := folders.resume.parent / name).exists():
                path.write_text(str(share))
                torch.distributed.barrier()  # the first that has too little ends them all
            if share > 0.75:
                raise torch.OutOfMemoryError("more than there is")
        return compute(self, *args, **given)  # type: ignore[arg-type]

    Trainer.compute_loss = weighed  # type: ignore[method-assign]
    return finetune.train_as_one_of(settings, folders, pulse, team)


def test_ranks_that_are_too_small_go_on_with_half_of_the_weights_each(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole base is too much for a rank that holds all of it, and half of it is not.

    Negative control: ranks that are whole hold everything.
    """
    alone = Bench(tmp_path / "alone", inputs, LORA)
    whole = alone.attempt(1, RecordingPulse())
    bench, pulse = Bench(tmp_path / "small", inputs, LORA), RecordingPulse(keep_every=1)
    monkeypatch.syspath_prepend(CHECKOUT)  # ranks find what they do by its name, and it is here
    outcome = train_together(
        train_on_three_quarters_of_the_memory, LORA, bench.folders(RANKS), pulse, (WHOLE, DIVIDED)
    )
    [warning] = [each for each in pulse.warnings if "a part of the weights" in each]
    assert warning.startswith("Memory is too small for 1 rows")
    shares = {path.name: float(path.read_text()) for path in bench.folder.glob("share-*")}
    assert shares.keys() == {f"share-{how}-{n}" for how in ("whole", "divided") for n in (0, 1)}
    assert shares["share-whole-0"] == shares["share-whole-1"] == 1
    assert max(shares["share-divided-0"], shares["share-divided-1"]) < 0.51
    # The state is one of whole ranks, after their second step.
    assert pulse.told[-1] == (4, 4, "steps")
    assert isinstance(outcome.figures, Finetuned)
    assert max(differences(whole, outcome.figures)) < LOSS_BOUND
    assert distance(alone.weights(), bench.weights()) < WEIGHT_BOUND


def test_modules_that_are_trained_whole_beside_an_adapter_are_divided_in_float32(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    """Their copies are as the base is, in 16 bits, and these would lose what is learned.

    One is in a layer, and one in none.
    """
    changed = LORA.finetune.model_copy(
        update={"precision": "bfloat16", "modules_to_save": ("input_layernorm", "lm_head")}
    )
    bench = Bench(tmp_path, inputs, LORA.model_copy(update={"finetune": changed}))
    whole = bench.attempt(1, RecordingPulse())
    alone = bench.weights()
    divided = bench.attempt(RANKS, RecordingPulse())
    assert max(differences(whole, divided)) < LOSS_BOUND
    assert distance(alone, bench.weights()) < WEIGHT_BOUND
    copies = {name: each.dtype for name, each in alone.items() if ".lora_" not in name}
    assert len(copies) > 1
    assert set(copies.values()) == {torch.float32}


def test_what_cannot_be_divided_stays_whole_with_a_warning() -> None:
    """A place that always divides does not refuse what trains there anyway."""
    nf4, nowhere = settings_of(load_in="nf4"), Path("nowhere")
    [tried], [warning] = ways_from(nowhere, "always", nf4)
    assert tried == WHOLE
    assert "finetune.load_in" in warning
    assert ways_from(nowhere, "auto", nf4) == ((WHOLE,), [])
    assert ways_from(nowhere, "auto") == ((WHOLE, DIVIDED), [])
    assert ways_from(nowhere, "always") == ((DIVIDED,), [])
    assert ways_from(nowhere, "never") == ((WHOLE,), [])


def test_device_that_can_only_compute_in_float16_divides_nothing(tmp_path: Path) -> None:
    """What the settings do not say is found out in the ranks, and said."""
    from modelmill.models.open import open_model

    device = torch.device("cpu")
    model = open_model(make_model("llama", tmp_path), dtype=torch.float16, device=device)
    with pytest.raises(DoesNotFit) as caught:
        divide(model, Team(size=2, divides=True), device, torch.float16)
    assert "cannot be divided among several devices: the scale" in caught.value.what
    assert "does not fit" not in caught.value.what, "under `always` nobody has tried"
    assert "stages.finetune.fsdp: never" in caught.value.fix
    assert "finetune.precision: float32" in caught.value.fix
