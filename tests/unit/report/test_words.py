"""Numbers and foreign text as people read them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.report import words
from modelmill.report.axis import axis_over, linear_axis

finite = st.floats(-1e9, 1e9)


@given(st.text())
def test_visible_leaves_nothing_to_obey(text: str) -> None:
    """No control character, direction override or surrogate survives; the rest is untouched."""
    shown = words.visible(text)
    left = {unicodedata.category(each) for each in shown if each not in "\n\t\u200c\u200d"}
    assert not left & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert words.visible(shown) == shown


def test_visible_spells_what_it_removes() -> None:
    """A reader sees which character was there."""
    assert words.visible("\x1b[2J\u202e\ud800é") == "\\x1b[2J\\u202e\\ud800é"


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    """Whatever comes in, a table row stays a row."""
    assert len(words.one_line(text).splitlines()) <= 1


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, words.NOTHING),
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (250.2, "4 min 10 s"),
        (3599.7, "1 h 00 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_duration(seconds: float | None, told: str) -> None:
    """At most two units, and no rounding to sixty."""
    assert words.duration(seconds) == told


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (None, words.NOTHING),
        (999, "999 B"),
        (84_213_760, "84.2 MB"),
        (269_060_552, "269 MB"),
        (9_996_000, "10.0 MB"),
        (999_999_999, "1,000 MB"),
        (1_400_000_000, "1.40 GB"),
    ],
)
def test_size(count: int | None, told: str) -> None:
    """Three digits in decimal units."""
    assert words.size(count) == told


@given(st.lists(finite, min_size=1), finite)
def test_axis_holds_its_values(values: list[float], other: float) -> None:
    """Every value lies between the ends, and whatever lies outside sticks to an edge."""
    axis = axis_over(values)
    slack = 1e-6 * (axis.high - axis.low)
    assert all(axis.low - slack <= value <= axis.high + slack for value in values)
    assert all(0 <= axis.at(value) <= 100 for value in values)
    if not axis.is_log:
        assert 0 <= axis.at(other) <= 100


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_axis_keeps_order(one: float, two: float, three: float) -> None:
    """A larger value is never drawn left of a smaller one."""
    axis = axis_over([one, two, three])
    places = [axis.at(value) for value in sorted((one, two, three))]
    assert places == sorted(places)


def test_axis_has_round_ticks() -> None:
    """Ticks are 1, 2 or 5 times a power of ten, and the ends are ticks."""
    assert linear_axis(0, 57).ticks == (0, 20, 40, 60)
    assert axis_over([0.135, 6.5]).ticks == (0.1, 1.0, 10.0)
