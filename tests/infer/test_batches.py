"""The pure parts: batches, padding, stops, the ledger, shots and scores."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from modelmill.spec.names import PREDICTIONS
from modelmill.spec.records import Prediction, Row
from modelmill.stages.infer.batches import (
    Batch,
    answer_of,
    batches_of,
    make_batches,
    pad_left,
    pad_right,
)
from modelmill.stages.infer.ledger import (
    Ledger,
    answered_in,
    form_of,
    predictions_of,
    seconds_of,
    write_predictions,
)
from modelmill.stages.infer.own_prompt import choose_shots, judged_rows, score

SEQUENCES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=8), min_size=1, max_size=6)


@given(st.dictionaries(st.integers(0, 500), st.integers(1, 90), max_size=60), st.integers(1, 20))
def test_batches_hold_every_row_once_and_sorted(lengths: dict[int, int], size: int) -> None:
    """Only the last batch is short, and no batch is longer than a later one."""
    batches = make_batches(lengths, size)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == sorted(lengths)
    assert [lengths[row] for row in rows] == sorted(lengths.values())
    assert all(len(batch) == size for batch in batches[:-1])


@given(SEQUENCES)
def test_padding_keeps_the_sequences(sequences: list[list[int]]) -> None:
    """What the mask marks is the sequence, on the side it belongs."""
    for pad, end in ((pad_left, slice(None, None, -1)), (pad_right, slice(None))):
        ids, mask = pad(sequences, 0)
        for sequence, row, marks in zip(sequences, ids, mask, strict=True):
            assert [each for each, mark in zip(row, marks, strict=True) if mark] == sequence
            assert marks[end] == sorted(marks, reverse=True)


def test_answer_ends_at_the_first_stop() -> None:
    """The stop is counted as generated and is not part of the answer."""
    stops = frozenset({1, 2})
    assert answer_of([5, 6, 2, 1, 1], stops) == ([5, 6], 3)
    assert answer_of([5, 6], stops) == ([5, 6], 2)
    assert answer_of([1], stops) == ([], 1)


def prediction(row: int, **changes: object) -> Prediction:
    """Make an answered row."""
    return Prediction.model_validate(
        {"row": row, "prompt": "p", "reference": "r", "fields": {}, "output": f"o{row}", **changes}
    )


BATCHES = ((3, 1), (0, 2))
FORM = "contract"


def test_ledger_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    """A batch of which one line is torn is not there; the one before it is."""
    ledger = Ledger(tmp_path, BATCHES, FORM)
    ledger.add(BATCHES[0], [prediction(3), prediction(1)], 2.0)
    ledger.add(BATCHES[1], [prediction(0), prediction(2)], 1.0)
    path = tmp_path / PREDICTIONS
    path.write_bytes(path.read_bytes()[:-9])
    again = Ledger(tmp_path, BATCHES, FORM)
    assert list(again.done) == [BATCHES[0]]
    assert seconds_of(again.done) == 2.0
    again.add(BATCHES[1], [prediction(0), prediction(2)], 4.0)
    whole = Ledger(tmp_path, BATCHES, FORM)
    assert [each.row for each in predictions_of(whole.done)] == [3, 1, 0, 2]
    assert seconds_of(whole.done) == 6.0


@given(cut=st.integers(0, 400))
def test_ledger_cut_anywhere_holds_whole_batches_only(cut: int) -> None:
    """However much of the file a crash left, what is read was written whole."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        ledger = Ledger(folder, BATCHES, FORM)
        for batch in BATCHES:
            ledger.add(batch, [prediction(row) for row in batch], 1.0)
        path = folder / PREDICTIONS
        path.write_bytes(path.read_bytes()[:cut])
        again = Ledger(folder, BATCHES, FORM)
        assert again.rows == 2 * len(again.done)
        assert seconds_of(again.done) == len(again.done)


@given(
    lengths=st.dictionaries(st.integers(0, 999), st.integers(1, 99), max_size=60),
    size=st.integers(1, 9),
    shards=st.integers(1, 12),
)
def test_shards_share_the_batches_of_the_plan(
    lengths: dict[int, int], size: int, shards: int
) -> None:
    """Each batch is one shard's, as whole and in the order it has without shards."""
    batches = make_batches(lengths, size)
    dealt = [batches_of(batches, shard, shards) for shard in range(shards)]
    assert sorted(batch for each in dealt for batch in each) == sorted(batches)
    assert all(list(each) == sorted(each, key=batches.index) for each in dealt)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    rows = sorted(row for each in dealt for batch in each for row in batch)
    assert rows == sorted(lengths)


def kept(folder: Path, *batches: Batch, form: str = FORM, word: str = "o") -> Path:
    """Keep some batches in a folder."""
    folder.mkdir()
    ledger = Ledger(folder, batches, form)
    for batch in batches:
        ledger.add(batch, [prediction(row, output=f"{word}{row}") for row in batch], 1.0)
    return folder


def test_answers_of_several_attempts_add_up(tmp_path: Path) -> None:
    """A ledger takes what others hold of its own batches, and keeps it for the next."""
    one, two = kept(tmp_path / "one", BATCHES[0]), kept(tmp_path / "two", BATCHES[1])
    assert list(answered_in((two, one), BATCHES, FORM)) == list(BATCHES)
    (tmp_path / "mine").mkdir()
    ledger = Ledger(tmp_path / "mine", BATCHES[:1], FORM, (two, one))
    assert list(ledger.done) == [BATCHES[0]]
    assert list(answered_in((tmp_path / "mine",), BATCHES, FORM)) == [BATCHES[0]]


def test_batch_is_never_put_together_from_two_attempts(tmp_path: Path) -> None:
    """A batch of which two attempts hold half each was answered by nobody; one of two is taken."""
    other = ((3, 0), (1, 2))
    halves = kept(tmp_path / "halves", other[0]), kept(tmp_path / "rest", other[1])
    assert list(answered_in(halves, BATCHES, FORM)) == []
    twice = kept(tmp_path / "a", *BATCHES, word="a"), kept(tmp_path / "b", *BATCHES, word="b")
    answers = predictions_of(answered_in(twice, BATCHES, FORM))
    assert {each.output[0] for each in answers} == {"a"}


def test_answers_in_another_form_are_not_taken(tmp_path: Path) -> None:
    """Rows asked by a chat template are no rows of a few-shot prompt."""
    chat = kept(tmp_path / "chat", *BATCHES, form="chat")
    assert form_of(chat) == "chat"
    assert answered_in((chat,), BATCHES, FORM) == {}
    (chat / "form.txt").unlink()  # as earlier versions left it
    assert list(answered_in((chat,), BATCHES, FORM)) == list(BATCHES)


def test_predictions_are_written_in_the_order_of_rows(tmp_path: Path) -> None:
    """Batches are sorted by length; files are not."""
    write_predictions([prediction(row) for row in (2, 0, 1)], tmp_path / "p.jsonl")
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert [Prediction.model_validate_json(line).row for line in lines] == [0, 1, 2]


def row(number: int) -> Row:
    """Make a row."""
    return Row(row=number, prompt=f"p{number}", completion="c", fields={})


def test_shots_are_seeded_and_never_judged() -> None:
    """The same seed draws the same examples, and none of them judges the form."""
    train = [row(number) for number in range(40)]
    shots = choose_shots(train, 3, seed=5)
    assert shots == choose_shots(train, 3, seed=5)
    assert len({shot.row for shot in shots}) == 3
    judged = judged_rows([], train, shots)
    assert len(judged) == 16
    assert not {each.row for each in judged} & {each.row for each in shots}
    assert judged_rows(train[:2], train, shots) == (row(0), row(1))


def test_score_counts_a_quarantined_row_as_wrong() -> None:
    """A form that cannot ask is not better than one that can."""
    rows = [
        prediction(0, reference="SELECT a", output=" select  a; ", nll=1.0),
        prediction(1, reference="SELECT a", output="SELECT b", nll=3.0),
        prediction(2, reference="", output="", error="too long"),
    ]
    found = score(rows)
    assert found.exact_match == 1 / 3
    assert found.nll == 2.0
