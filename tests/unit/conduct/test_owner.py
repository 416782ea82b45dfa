"""Whose a run is survives its way through run.json."""

from hypothesis import given
from hypothesis import strategies as st

from modelmill.conduct.owner import Owner, parse_owner

words = st.text(st.characters(categories=["Ll", "Nd"], include_characters="-"), min_size=1)


@given(st.builds(Owner, words, words, words))
def test_owner_is_read_as_written(owner: Owner) -> None:
    """Nothing is lost."""
    assert parse_owner(str(owner)) == owner


def test_run_of_a_laptop_has_no_owner() -> None:
    """Nor has one that somebody wrote by hand."""
    assert parse_owner("") is None
    assert parse_owner("me, on Tuesday") is None
