"""Data is taken as it is meant or refused with the numbers of the rows that are wrong."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from modelmill.spec.data import TemplateSpec
from modelmill.spec.errors import DataError
from modelmill.spec.records import Row
from modelmill.stages.formats import row_maker, row_needs
from modelmill.stages.likeness import (
    duplicates,
    fingerprint,
    fingerprints,
    near_fingerprint,
    overlap,
)
from modelmill.stages.rows import load_rows, read_rows, split_rows, write_rows
from modelmill.stages.tables import Table

TEMPLATE = TemplateSpec(prompt="Q: {question}\n", completion="{answer}")
MAKE = row_maker("prompt_completion", TEMPLATE, None)


def rows_from(tmp_path: Path, *lines: str | bytes) -> tuple[Row, ...]:
    """Read lines as a file of rows."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return read_rows(Table([path], "data.train"), MAKE, row_needs("prompt_completion", None))


def test_rows_are_rendered_and_keep_their_numbers(tmp_path: Path) -> None:
    """Empty lines count as lines, so a number always finds its row in the file."""
    first, second = rows_from(
        tmp_path, '{"question": "a {b}", "answer": 1}', "", '{"question": "c", "answer": "d"}'
    )
    assert (first.row, first.prompt, first.completion) == (0, "Q: a {b}\n", "1")
    assert second.row == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "a"}', "row 2: no field 'answer'; it has 'question'"),
        ('{"question": "a", "answer": null}', "row 2: field 'answer' is null"),
        ('{"question": ["a"], "answer": "b"}', "row 2: field 'question' is list"),
        ('{"question": true, "answer": "b"}', "row 2: field 'question' is bool"),
        ('{"question": "a", "answer": "  "}', "row 2: the completion is empty"),
        ('{"question": "a", "question": "b"}', "row 2: a field stands twice"),
        ('{"question": NaN}', "row 2: NaN is not JSON"),
        ('["a"]', "row 2: a JSON list, not an object"),
        ('{"question": ', "row 2: not JSON"),
        (b'{"question": "\xff"}', "row 2: not UTF-8 at byte 14"),
        ("[" * 100_000, "row 2: "),
    ],
)
def test_wrong_row_is_named_with_its_reason(tmp_path: Path, line: str | bytes, said: str) -> None:
    """The message says which row, what is wrong, and how a row should look."""
    with pytest.raises(DataError) as caught:
        rows_from(tmp_path, '{"question": "a", "answer": "b"}', line)
    assert said in str(caught.value)
    assert "1 of 2 rows are wrong" in str(caught.value)
    assert caught.value.exit_code == 65


def test_many_wrong_rows_are_counted(tmp_path: Path) -> None:
    """A file that is wrong everywhere does not fill the screen."""
    with pytest.raises(DataError) as caught:
        rows_from(tmp_path, *["{}"] * 50)
    assert str(caught.value).count("row ") == 20
    assert "and 30 more" in str(caught.value)


def test_file_without_rows_is_refused(tmp_path: Path) -> None:
    """Zero rows are a mistake, not a result."""
    with pytest.raises(DataError, match="no rows"):
        rows_from(tmp_path, "", "  ")


def row(number: int, prompt: str, completion: str = "x") -> Row:
    """Make a row."""
    return Row(row=number, prompt=prompt, completion=completion, fields={})


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40).filter(
        lambda p: len(set(p)) > 1
    ),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_split_loses_nothing_and_leaks_nothing(prompts: list[str], share: float, seed: int) -> None:
    """Every row is on one side, equal prompts on the same one, and neither side is empty."""
    rows = [row(number, prompt) for number, prompt in enumerate(prompts)]
    train, evaluation = split_rows(rows, share, seed)
    assert sorted(each.row for each in (*train, *evaluation)) == list(range(len(rows)))
    assert not {each.prompt for each in train} & {each.prompt for each in evaluation}
    assert train
    assert evaluation
    assert split_rows(rows, share, seed) == (train, evaluation)


def test_fingerprint_ignores_case_and_spacing_only() -> None:
    """What reads the same is the same; what differs in a word is not."""
    assert fingerprint("How  many\nRows") == fingerprint("how many rows ")
    assert fingerprint("how many rows") != fingerprint("how many row")


def test_near_fingerprint_ignores_numbers_order_and_punctuation() -> None:
    """Questions of one pattern are near duplicates; another word makes another question."""
    assert near_fingerprint("How many rows, before 1999?") == near_fingerprint(
        "before 7 how many ROWS"
    )
    assert near_fingerprint("how many rows") != near_fingerprint("how many columns")


def test_fingerprints_know_prompts_and_fields_by_split() -> None:
    """A schema that stands in two splits is found whatever is asked about it."""
    fields: list[dict[str, JsonValue]] = [{"schema": "CREATE t", "n": 1}, {"schema": "create  T"}]
    train = [row(n, f"q{n}").model_copy(update={"fields": each}) for n, each in enumerate(fields)]
    test = [row(0, "q1").model_copy(update={"fields": fields[0]})]
    prints = fingerprints({"train": train, "test": test})
    assert set(prints) == {
        *("train", "near/train", "field/schema/train"),
        *("test", "near/test", "field/schema/test"),
    }
    assert len(prints["train"]) == 2
    assert prints["field/schema/train"] == prints["field/schema/test"]
    assert overlap(prints["test"], prints["train"]) == 1


def test_duplicates_and_overlap_are_counted() -> None:
    """Rows that repeat another are worth knowing about."""
    rows = [row(0, "a"), row(1, "A "), row(2, "a", "y")]
    assert duplicates(rows) == 1
    assert overlap(["x", "y", "y"], ["y"]) == 2


def test_rows_survive_their_file(tmp_path: Path) -> None:
    """What fetch writes is what later stages read."""
    rows = (row(0, "é\u2028"), Row(row=3, prompt="p", completion="c", fields={"n": [1, None]}))
    write_rows(rows, tmp_path / "rows")
    assert load_rows(tmp_path / "rows") == rows
    assert len((tmp_path / "rows").read_bytes().split(b"\n")) == 3
    assert json.loads((tmp_path / "rows").read_bytes().split(b"\n")[1])["row"] == 3
