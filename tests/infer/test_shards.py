"""The stage as one of several that share its rows, on a tiny random model."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelmill.spec.errors import DataError, Interrupted
from modelmill.spec.figures import Inferred
from modelmill.spec.names import PREDICTIONS
from modelmill.stages.infer import run
from modelmill.stages.infer.ledger import FORM
from modelmill.stages.stage import Folders, Outcome, Shard

from ..tiny_stages import RecordingPulse
from .test_infer import settings_for

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own

SETTINGS = settings_for(batch_size=3)


@dataclass(frozen=True)
class Desk:
    """Runs shards one after the other; what they save lies in a folder for each attempt."""

    model: Path
    data: Path
    folder: Path

    def answer(
        self, attempt: str, number: int, count: int, pulse: RecordingPulse | None = None
    ) -> Outcome | None:
        """Run an attempt at a shard."""
        work = self.folder / attempt
        folders = Folders(
            {"model": self.model, "test": self.data},
            work / "out",
            work / "resume",
            shard=Shard(number, count, lambda: self.save(attempt)),
        )
        for folder in (folders.output, folders.resume):
            folder.mkdir(parents=True)
        return run(SETTINGS, folders, pulse or RecordingPulse())

    def save(self, attempt: str) -> tuple[Path, ...]:
        """Copy what an attempt has done to where the others see it, and list all that is there."""
        saved = self.folder / "saved"
        if any((self.folder / attempt / "resume").iterdir()):
            shutil.copytree(self.folder / attempt / "resume", saved / attempt, dirs_exist_ok=True)
        return tuple(sorted(saved.iterdir())) if saved.exists() else ()

    def predictions(self, attempt: str) -> bytes:
        """Read what an attempt would commit."""
        return (self.folder / attempt / "out" / PREDICTIONS).read_bytes()


@pytest.fixture
def desk(llama: Path, data: Path, tmp_path: Path) -> Desk:
    """Lay nothing out yet."""
    return Desk(llama, data, tmp_path)


def figures_of(outcome: Outcome | None) -> Inferred:
    """Narrow the figures of one that has joined."""
    assert outcome is not None
    assert isinstance(outcome.figures, Inferred)
    return outcome.figures


@pytest.mark.parametrize("count", [2, 5, 9])
def test_last_shard_joins_what_one_process_answers(desk: Desk, count: int) -> None:
    """Seven batches: whichever shard comes last writes the bytes of an unsharded stage."""
    whole = figures_of(desk.answer("whole", 0, 1))
    shutil.rmtree(desk.folder / "saved", ignore_errors=True)
    *others, last = reversed(range(count))
    for number in others:
        assert desk.answer(f"a{number}", number, count) is None
        assert not (desk.folder / f"a{number}" / "out" / PREDICTIONS).exists()
    joined = figures_of(desk.answer(f"a{last}", last, count))
    assert desk.predictions(f"a{last}") == desk.predictions("whole")
    assert (joined.rows, joined.generated_tokens) == (whole.rows, whole.generated_tokens)
    assert (joined.shards, whole.shards) == (count, 1)
    assert joined.tokens_per_second == pytest.approx(
        joined.generated_tokens / joined.generate_seconds
    )


def test_killed_shard_goes_on_and_costs_the_others_nothing(desk: Desk) -> None:
    """Stopped after one batch it answers the rest; those that are done answer nothing again."""
    assert desk.answer("a0", 0, 2) is None
    with pytest.raises(Interrupted):
        desk.answer("a1", 1, 2, RecordingPulse(stop_after=2, stop_with=Interrupted("stop")))
    desk.save("a1")
    pulse = RecordingPulse()
    joined = figures_of(desk.answer("a1-again", 1, 2, pulse))
    # 9 of the 19 rows are this shard's; the first batch of 3 was there.
    assert [done for done, _, _ in pulse.told] == [3, 6, 9]
    assert joined.rows == 19


def test_another_number_of_shards_loses_nothing(desk: Desk) -> None:
    """What two shards have answered is not answered again by three, nor by one."""
    assert desk.answer("a0", 0, 2) is None
    pulse = RecordingPulse()
    figures_of(desk.answer("alone", 0, 1, pulse))
    assert pulse.told[0] == (10, 19, "rows")


def test_lost_state_of_a_shard_is_never_papered_over(desk: Desk) -> None:
    """With the rows of one shard gone, the last one does not join what is left."""
    for number in (0, 1):
        assert desk.answer(f"a{number}", number, 3) is None
    shutil.rmtree(desk.folder / "saved" / "a1")
    assert desk.answer("a2", 2, 3) is None
    assert figures_of(desk.answer("a1-again", 1, 3)).rows == 19


def test_shards_that_chose_different_forms_end_the_stage(desk: Desk) -> None:
    """They would wait for each other's rows for ever; a table of two forms would be wrong."""
    assert desk.answer("a0", 0, 2) is None
    (desk.folder / "saved" / "a0" / FORM).write_text("chat", encoding="utf-8")
    with pytest.raises(DataError, match="chat, contract"):
        desk.answer("a1", 1, 2)
