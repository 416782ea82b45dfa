"""Mix training rows of several sources by weight.  Pure, and the same for the same seed."""

import random
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from modelmill.spec.records import Row


@dataclass(frozen=True)
class Share:
    """Rows of one source, and how often each is taken."""

    name: str
    """Decides, with the seed, which rows a fraction takes: not where in a list it stands."""
    rows: Sequence[Row]
    weight: float

    def only(self, numbers: Container[int]) -> "Share":
        """Leave the rows with other numbers out."""
        return replace(self, rows=[row for row in self.rows if row.row in numbers])


def taken(share: Share, seed: int) -> tuple[Row, ...]:
    """Take all rows as often as the weight's whole part says, and a seeded fraction once more."""
    whole = int(share.weight)
    extra = round((share.weight - whole) * len(share.rows))
    chosen = random.Random(f"{seed} {share.name}").sample(range(len(share.rows)), extra)  # noqa: S311
    return (*share.rows,) * whole + tuple(share.rows[index] for index in sorted(chosen))


def mixed(shares: Sequence[Share], seed: int) -> tuple[Row, ...]:
    """Shuffle what is taken of every source into one order."""
    rows = [row for share in shares for row in taken(share, seed)]
    random.Random(seed).shuffle(rows)  # noqa: S311 - reproducible
    return tuple(rows)
