"""Rows of several sources are taken as often as their weights say, the same ones every time."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from modelmill.spec.records import Row
from modelmill.stages.mixing import Share, mixed, taken


def share(name: str, rows: int, weight: float, first: int = 0) -> Share:
    """Make a source of numbered rows."""
    made = [
        Row(row=first + n, prompt=f"{name} {n}", completion="x", fields={}) for n in range(rows)
    ]
    return Share(name, made, weight)


@given(st.integers(0, 50), st.floats(0.01, 5), st.integers(0, 9))
def test_every_row_is_taken_by_weight(rows: int, weight: float, seed: int) -> None:
    """Each the whole part of the weight, and the rest of it as a share of them once more."""
    one = share("a", rows, weight)
    counts = Counter(row.row for row in taken(one, seed))
    whole = int(weight)
    assert all(whole <= counts[row.row] <= whole + 1 for row in one.rows)
    assert abs(sum(counts.values()) - weight * rows) <= 0.5 + 1e-9
    assert taken(one, seed) == taken(one, seed)


def test_fraction_follows_the_seed_and_the_source_only() -> None:
    """Another source beside it, before or behind, changes nothing of what is taken."""
    half, other = share("a", 40, 0.5), share("b", 40, 1.5, first=40)
    alone = {row.row for row in taken(half, 0)}
    assert len(alone) == 20
    for shares in ([half, other], [other, half]):
        assert {row.row for row in mixed(shares, 0) if row.row < 40} == alone
    assert {row.row for row in taken(half, 1)} != alone


def test_order_is_mixed_and_the_same_for_the_same_seed() -> None:
    """Sources do not come one after the other."""
    shares = [share("a", 50, 1), share("b", 50, 2, first=50)]
    rows = mixed(shares, 3)
    assert len(rows) == 150
    assert rows == mixed(shares, 3)
    assert rows != mixed(shares, 4)
    assert any(row.row < 50 for row in rows[75:])
    assert any(row.row >= 50 for row in rows[:30])
