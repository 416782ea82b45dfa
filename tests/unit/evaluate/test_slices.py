"""Rows are grouped by a data field so that groups can be read, the same for every model."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from modelmill.evaluate.scale import SCALES
from modelmill.evaluate.scores import Scores
from modelmill.evaluate.slices import RANGES, slicing, summarize_by
from modelmill.spec.records import Prediction


def values_of(*values: JsonValue) -> list[dict[str, JsonValue]]:
    """Make a row of each value."""
    return [{"level": value} for value in values]


def test_slices_split_rows_by_a_field() -> None:
    """Each value of a field gets its own score; rows without the field get none."""
    predictions = [
        Prediction(row=row, prompt="", reference="", fields=fields, output="")
        for row, fields in enumerate([{"level": 1}, {"level": "join"}, {"level": 1}, {}])
    ]
    values = dict(enumerate([1.0, 0.0, 0.0, 1.0]))
    scores = Scores(metric="exact_match", scale=SCALES["exact_match"], values=values)
    groups = slicing("level", [each.fields for each in predictions])
    slices = summarize_by(groups, predictions, scores, seed=0)
    assert [(each.value, each.score.value, each.score.n) for each in slices] == [
        ("1", 0.5, 2),
        ("join", 0.0, 1),
    ]


def test_few_numbers_are_groups_in_their_order() -> None:
    """Ten comes after two, which it does not as a text."""
    groups = slicing("level", values_of(10, 2, 1, 10))
    assert groups.values == ("1", "2", "10")
    assert not groups.is_binned


def test_many_numbers_are_put_into_ranges() -> None:
    """Each range says its first and last number, and holds about equally many rows."""
    groups = slicing("level", values_of(*range(100)))
    assert groups.is_binned
    assert groups.values == ("0 to 19", "20 to 39", "40 to 59", "60 to 79", "80 to 99")
    assert groups.name_of({"level": 40}) == "40 to 59"
    assert groups.name_of({}) is None


@given(st.lists(st.integers(-50, 50) | st.floats(-50, 50), min_size=1, max_size=200))
def test_ranges_part_every_row_in_order(numbers: list[float]) -> None:
    """Every number is in one group, groups follow each other, and there are not too many."""
    groups = slicing("level", values_of(*numbers))
    named = [(number, groups.name_of({"level": number})) for number in sorted(numbers)]
    assert all(name is not None for _, name in named)
    places = [groups.values.index(str(name)) for _, name in named]
    assert places == sorted(places)
    if groups.is_binned:
        assert len(groups.values) <= RANGES + 1


def test_a_number_that_most_rows_have_is_a_group_of_its_own() -> None:
    """Equal numbers stay together, however many there are."""
    numbers = [0] * 80 + list(range(1, 21))
    groups = slicing("level", values_of(*numbers))
    counts = Counter(groups.name_of({"level": number}) for number in numbers)
    assert groups.values[0] == "0"
    assert counts["0"] == 80


def test_too_many_texts_are_refused_in_words() -> None:
    """A group per row says nothing, and its names would carry the data out."""
    groups = slicing("level", values_of(*(f"question {number}" for number in range(51))))
    assert groups.values == ()
    assert groups.problem == "the field 'level' has 51 different values, too many for groups"
    assert slicing("level", values_of(*map(str, range(50)))).problem == ""


@pytest.mark.parametrize("rows", [[], [{"other": 1}]])
def test_a_field_that_no_row_has_is_said(rows: list[dict[str, JsonValue]]) -> None:
    """A misspelt field does not just vanish from the report."""
    assert slicing("level", rows).problem == "no test row has a field 'level'"


def test_true_and_false_are_no_numbers() -> None:
    """Booleans are groups by name."""
    assert slicing("level", values_of(True, False)).values == ("false", "true")  # noqa: FBT003
