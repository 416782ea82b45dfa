"""Find the rows on which two models part: right in one and wrong in the other.

Knows rows by number.  Says nothing about metrics that do not call a single answer right.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from modelmill.evaluate.statistics import mcnemar


@dataclass(frozen=True)
class Flipped:
    """What became of the rows that two models have a score for."""

    n: int
    lost: tuple[int, ...]
    """Right before and wrong after, in the order of rows."""
    gained: tuple[int, ...]
    """Wrong before and right after."""

    @property
    def p_value(self) -> float:
        """McNemar's exact p: how likely so uneven a split is if neither model is better."""
        return mcnemar(len(self.lost), len(self.gained))

    def pick(self, most: int) -> tuple[int, ...]:
        """Choose rows to show: one lost and one gained in turn, always the same ones."""
        turns = range(max(len(self.lost), len(self.gained)))
        both = (self.lost, self.gained)
        mixed = [rows[turn] for turn in turns for rows in both if turn < len(rows)]
        return tuple(mixed[:most])


def flipped(before: Mapping[int, bool], after: Mapping[int, bool]) -> Flipped:
    """Compare what is right before with what is right after, row by row."""
    shared = sorted(before.keys() & after.keys())
    return Flipped(
        n=len(shared),
        lost=tuple(row for row in shared if before[row] and not after[row]),
        gained=tuple(row for row in shared if after[row] and not before[row]),
    )
