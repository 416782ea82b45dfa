"""Several processes train as one would; each is a real one, and gloo is between them."""

import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modelmill.spec.errors import DeviceFault, DoesNotFit, Interrupted
from modelmill.spec.figures import Finetuned
from modelmill.spec.records import Row
from modelmill.spec.settings import FinetuneSettings
from modelmill.stages import finetune
from modelmill.stages.finetune.gone import why_gone
from modelmill.stages.finetune.ranks import train_together
from modelmill.stages.finetune.state import STATE, State
from modelmill.stages.finetune.team import Team, Turns
from modelmill.stages.finetune.trainer import Trainer
from modelmill.stages.stage import Folders, Outcome, Pulse
from modelmill.store import memory

from ..tiny_stages import Family, RecordingPulse, make_rows, write_rows
from .conftest import settings_of

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own

CHECKOUT = Path(__file__).parents[2]
RANKS = 2
SETTINGS = settings_of(max_length=128, num_train_epochs=2, micro_batch_size=2, lora_dropout=0.0)
LOSS_BOUND = 1e-5
ADAPTER_BOUND = 1e-3
"""Of weights up to 0.15; measured 7e-5, and 1e-6 of losses: Adam makes a step of a gradient that
is all rounding."""


@dataclass
class Bench:
    """Runs attempts at one fine-tune in folders of their own."""

    folder: Path
    inputs: dict[str, Path]
    settings: FinetuneSettings = SETTINGS
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
        return Folders(self.inputs, output, self.resume, ranks=ranks)

    def attempt(self, ranks: int, pulse: RecordingPulse) -> Finetuned:
        """Train with so many ranks."""
        outcome = finetune.run(self.settings, self.folders(ranks), pulse)
        assert isinstance(outcome.figures, Finetuned)
        assert outcome.effective.get("ranks", 1) == ranks
        return outcome.figures

    def adapter(self) -> dict[str, torch.Tensor]:
        """Read what the last attempt wrote."""
        return dict(load_file(self.made[-1] / "adapter" / "adapter_model.safetensors"))


def longer(row: Row) -> Row:
    """Repeat a completion so many times that it is one of three lengths."""
    return row.model_copy(update={"completion": row.completion * (1 + row.row % 3)})


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, model_of: Callable[[Family], Path]
) -> dict[str, Path]:
    """Write rows that neither batches nor ranks divide: 29 by 8, by 2, and 9 of eval by 8.

    Some have three times the labels of others.
    """
    data = tmp_path_factory.mktemp("uneven")
    for split, count in (("train", 29), ("eval", 9)):
        rows = make_rows(count, count)
        write_rows([longer(row) for row in rows], data / f"{split}.jsonl")
    return {"model": model_of("llama"), "data": data}


@dataclass(frozen=True)
class Whole:
    """A fine-tune that nothing interrupted."""

    figures: Finetuned
    adapter: dict[str, torch.Tensor]


def whole(folder: Path, inputs: dict[str, Path], ranks: int) -> Whole:
    """Train from the start to the end."""
    bench = Bench(folder, inputs)
    return Whole(bench.attempt(ranks, RecordingPulse()), bench.adapter())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Path]) -> Whole:
    """Train in this process."""
    return whole(tmp_path_factory.mktemp("alone"), inputs, 1)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Path]) -> Whole:
    """Train in two."""
    return whole(tmp_path_factory.mktemp("together"), inputs, RANKS)


def differences(one: Finetuned, other: Finetuned) -> list[float]:
    """Compare the loss of every step and of every evaluation."""
    pairs = list(zip(one.curve, other.curve, strict=True))
    assert [a.step for a, _ in pairs] == [b.step for _, b in pairs]
    assert [a.loss is None for a, _ in pairs] == [b.loss is None for _, b in pairs]
    return [abs((a.loss or a.eval_loss or 0) - (b.loss or b.eval_loss or 0)) for a, b in pairs]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Compare adapters by the weight that differs most."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_two_ranks_learn_what_one_process_learns(alone: Whole, together: Whole) -> None:
    """Every step has the same rows, and so the same loss; so have evaluations and the best step."""
    assert max(differences(alone.figures, together.figures)) < LOSS_BOUND
    assert distance(alone.adapter, together.adapter) < ADAPTER_BOUND
    same = ("steps", "tokens", "best_step", "micro_batch_size", "train_rows", "eval_rows")
    assert [getattr(together.figures, name) for name in same] == [
        getattr(alone.figures, name) for name in same
    ]
    assert alone.figures.steps == 8


def test_two_ranks_over_a_base_in_4_bits_learn_what_one_does(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    """Each holds the same rounded base, and adds what both have learned."""
    over_nf4 = settings_of(
        load_in="nf4", max_length=128, num_train_epochs=1, micro_batch_size=2, lora_dropout=0.0
    )
    one, two = (Bench(tmp_path / name, inputs, over_nf4) for name in ("one", "two"))
    alone, together = one.attempt(1, RecordingPulse()), two.attempt(RANKS, RecordingPulse())
    assert max(differences(alone, together)) < LOSS_BOUND
    assert distance(one.adapter(), two.adapter()) < ADAPTER_BOUND


def test_ranks_that_are_told_to_stop_go_on_to_the_same_bytes_or_as_one(
    tmp_path: Path, inputs: dict[str, Path], alone: Whole, together: Whole
) -> None:
    """The state is one between two steps of both, and belongs to no number of ranks."""

    def stop(_: int) -> None:
        raise Interrupted("asked to stop")

    bench = Bench(tmp_path, inputs)
    with pytest.raises(Interrupted):
        # In the middle of the second pass.
        bench.attempt(RANKS, RecordingPulse(keep_every=6, on_kept=stop))
    assert multiprocessing.active_children() == []
    assert State.model_validate_json((bench.resume / STATE).read_bytes()).step == 6
    shutil.copytree(bench.resume, tmp_path / "kept")
    figures = bench.attempt(RANKS, RecordingPulse())
    assert figures == together.figures
    assert distance(bench.adapter(), together.adapter) == 0
    shutil.rmtree(bench.resume)
    (tmp_path / "kept").rename(bench.resume)
    assert max(differences(alone.figures, bench.attempt(1, RecordingPulse()))) < LOSS_BOUND
    assert distance(bench.adapter(), alone.adapter) < ADAPTER_BOUND


@dataclass
class Murderer(RecordingPulse):
    """Kills the second rank twice, the first time as the kernel does for memory."""

    counts: tuple[Path, ...] = ()
    """Where the kernel counts that, in either version of control groups."""
    notes: list[str] = field(default_factory=list)
    """What is said of the loss until then."""
    strikes: int = 0

    def count(self, kills: int) -> None:
        """Say how often the kernel has killed for memory."""
        for file in self.counts:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"oom_kill {kills}\n", encoding="utf-8")

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """See two losses, and strike; and once more when it has gone on."""
        super().progress(done, total, unit, note)
        if not self.strikes:
            self.notes.append(note)
        if done == 3 + self.strikes:
            self.strikes += 1
            self.count(1)
            [second] = [e for e in multiprocessing.active_children() if e.name == "rank 1"]
            assert second.pid is not None
            os.kill(second.pid, signal.SIGKILL)


def train_by_own_labels(
    settings: FinetuneSettings, folders: Folders, pulse: Pulse, team: Team
) -> Outcome:
    """Train as a rank that divides by the labels it has itself."""
    compute = Trainer.compute_loss

    def by_own(self: Trainer, model: torch.nn.Module, inputs: dict[str, torch.Tensor], **_: object):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return compute(self, model, inputs) / self.current_gradient_accumulation_steps

    Trainer.compute_loss = by_own  # type: ignore[method-assign, assignment]
    return finetune.train_as_one_of(settings, folders, pulse, team)


@pytest.fixture(scope="module")
def murdered(
    tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Path]
) -> tuple[Murderer, DeviceFault]:
    """Train in a wrong way, until a rank is killed for its memory, and then for no reason."""
    groups = tmp_path_factory.mktemp("groups")
    counts = (groups / "memory.events", groups / "memory" / "memory.oom_control")
    bench = Bench(tmp_path_factory.mktemp("murdered"), inputs)
    pulse = Murderer(keep_every=2, counts=counts)
    pulse.count(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "CGROUPS", groups)
        patch.syspath_prepend(CHECKOUT)  # ranks find what they do by its name, and it is here
        with pytest.raises(DeviceFault) as caught:
            train_together(
                train_by_own_labels, SETTINGS, bench.folders(RANKS), pulse, (Team(size=RANKS),)
            )
    assert list(bench.made[-1].iterdir()) == []
    return pulse, caught.value


def test_rank_that_the_kernel_kills_for_its_memory_halves_the_rows_of_all(
    murdered: tuple[Murderer, DeviceFault],
) -> None:
    """They go on from the last state, and the stage says what was used and what there is."""
    pulse, _ = murdered
    killed, halved = pulse.warnings[:2]
    assert re.fullmatch(
        r"Rank 1 of 2 was killed by the kernel for its memory: it used at least [0-9]\.[0-9] of "
        r"[1-9][0-9.]* GiB; all ranks begin anew with half as many rows at a time",
        killed,
    )
    assert "taking 1 rows at a time, the batch stays the same" in halved
    steps = [done for done, _, unit in pulse.told if unit == "steps"]
    assert min(steps[steps.index(3) :]) == 2, "the state is one after the second step"


def be_killed(_: FinetuneSettings, folders: Folders, __: Pulse, team: Team) -> Outcome:
    """End as a rank does that the kernel kills for its memory, where that is counted."""
    with (folders.output / "begun").open("a") as begun:
        begun.write(f"{team.rank}")
    team.gather(None)
    kills = (folders.output / "begun").stat().st_size
    for file in folders.inputs.values():
        file.write_text(f"oom_kill {kills}\n", encoding="utf-8")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.parametrize(("ordered", "begun"), [(0, 2), (1, 1)])
def test_ranks_that_are_killed_with_one_row_at_a_time_do_not_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordered: int, begun: int
) -> None:
    """Nothing is left to halve, though a rank that is killed cannot say so."""
    inputs = {"2": tmp_path / "memory.events", "1": tmp_path / "memory" / "memory.oom_control"}
    for file in inputs.values():
        file.parent.mkdir(exist_ok=True)
        file.write_text("oom_kill 0\n", encoding="utf-8")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.syspath_prepend(CHECKOUT)
    pulse = RecordingPulse()
    with pytest.raises(DoesNotFit, match="killed by the kernel for its memory"):
        train_together(
            be_killed,
            SETTINGS.model_copy(update={"micro_batch_halvings": ordered}),
            Folders(inputs, tmp_path, tmp_path),
            pulse,
            (Team(size=RANKS),),
        )
    assert len(pulse.warnings) == begun - 1
    assert sorted((tmp_path / "begun").read_text()) == sorted("01" * begun)


def test_rank_that_is_killed_ends_all_with_words(murdered: tuple[Murderer, DeviceFault]) -> None:
    """It is an attempt that another may follow, and nothing of it is left."""
    pulse, fault = murdered
    assert pulse.strikes == 2
    assert fault.what == "Rank 1 of 2 was killed by SIGKILL"
    assert multiprocessing.active_children() == []


def test_loss_by_the_labels_of_each_rank_is_another(
    alone: Whole, murdered: tuple[Murderer, DeviceFault]
) -> None:
    """Negative control: the bound on losses is one that a wrong normalisation does not keep."""
    pulse, _ = murdered
    right = [point.loss for point in alone.figures.curve if point.loss is not None]
    wrong = [float(note.removeprefix("loss ")) for note in dict.fromkeys(pulse.notes) if note]
    assert len(wrong) >= 2
    assert max(abs(a - b) for a, b in zip(wrong, right, strict=False)) > 100 * LOSS_BOUND


def test_rank_that_is_killed_where_nobody_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been the kernel: said, and tried again as it was."""
    for name in ("PROC", "CGROUPS"):
        monkeypatch.setattr(memory, name, tmp_path)
    error = why_gone("Rank 0 of 2", -signal.SIGKILL, memory.Memory(os.getpid()))
    assert isinstance(error, DeviceFault)
    assert "perhaps by the kernel for its memory" in error.what
    assert "give stages.finetune more memory" in error.fix


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_turns_are_every_batch_once_and_as_many_for_each(size: int, count: int) -> None:
    """In a step nobody waits for a rank that has none, and nothing is learned twice."""
    batches = [[number] for number in range(count)]
    dealt = [list(Turns(batches, Team(rank, size))) for rank in range(size)]
    assert {len(each) for each in dealt} == {-(-count // size)}
    taken = [batch for turn in zip(*dealt, strict=True) for batch in turn]
    assert taken[:count] == batches
    assert not any(taken[count:])


def test_batch_that_cannot_be_shared_is_shared_by_fewer() -> None:
    """The batch is the spec's whatever there is to train on, and idle devices are named."""
    pulse = RecordingPulse()
    assert finetune._ranks(8, 3, pulse) == 2
    [warning] = pulse.warnings
    assert warning.startswith("2 of 3 devices train")
    assert finetune._ranks(8, 4, pulse) == 4
    assert finetune._ranks(8, 0, pulse) == 1
    assert len(pulse.warnings) == 1
