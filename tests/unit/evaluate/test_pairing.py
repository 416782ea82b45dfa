"""Rows of two runs are paired by what they hold, or not at all."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.evaluate.flips import flipped
from modelmill.evaluate.pairing import fingerprint, pair_rows
from modelmill.spec.records import Prediction

CONTENTS = st.dictionaries(st.integers(0, 30), st.sampled_from("abc"), max_size=12)


def prediction(**changes: object) -> Prediction:
    """Answer a row."""
    row = {"row": 0, "prompt": "p", "reference": "r", "fields": {"a": 1}, "output": "o"}
    return Prediction.model_validate({**row, **changes})


@given(CONTENTS, st.randoms(use_true_random=False))
def test_the_same_rows_in_another_order_are_paired(
    contents: dict[int, str], random: object
) -> None:
    """Every row has its own partner, and partners hold the same."""
    assert hasattr(random, "sample")
    rows = random.sample(list(contents), len(contents))
    after = {number: contents[row] for number, row in enumerate(rows)}
    pairs = pair_rows(contents, after)
    assert pairs is not None
    assert sorted(pairs.values()) == sorted(contents)
    assert all(contents[pairs[row]] == after[row] for row in after)


@given(CONTENTS, CONTENTS)
def test_other_rows_are_not_paired(before: dict[int, str], after: dict[int, str]) -> None:
    """Unless both hold equally many of each, there are no pairs."""
    is_same = Counter(before.values()) == Counter(after.values())
    assert (pair_rows(before, after) is not None) == is_same


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"row": 5, "output": "else", "prompt": "another template"}, True),
        ({"reference": "s"}, False),
        ({"fields": {"a": 2}}, False),
    ],
)
def test_fingerprint_is_of_what_was_asked(changes: dict[str, object], is_same: bool) -> None:
    """Who answered, and in what template, does not enter; the row of the data does."""
    assert (fingerprint(prediction(**changes)) == fingerprint(prediction())) == is_same


def test_flipped_rows_are_lost_or_gained() -> None:
    """Only rows that both have a score for count, and both directions are shown in turn."""
    before = {0: True, 1: True, 2: False, 3: True, 4: False, 9: True}
    after = {0: False, 1: True, 2: True, 3: False, 4: False, 8: True}
    found = flipped(before, after)
    assert (found.n, found.lost, found.gained) == (5, (0, 3), (2,))
    assert found.pick(2) == (0, 2)
    assert found.pick(9) == (0, 2, 3)
    assert found.pick(0) == ()
