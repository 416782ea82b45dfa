"""What the quantizer looks at: training rows, a text, or both, as sequences of token ids.  Pure.

Rows are joined to full sequences instead of being padded: padding would enter the
Hessian as if it were text, and a budget in rows would mean another amount of evidence
for every dataset.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from modelmill.spec.errors import DataError
from modelmill.spec.records import Row

SHORTEST: Final = 11
"""The engine drops shorter sequences without counting them."""

TOKENS_PER_FEATURE: Final = 4
"""Below this many tokens per input feature the Hessian is poorly determined."""

Origin: TypeAlias = Literal["rows", "text"]
"""Training rows, or the text that stands for everything else."""

_CALLED: Final[Mapping[Origin, str]] = {"rows": "training rows", "text": "calibration texts"}


@dataclass(frozen=True)
class Evidence:
    """What there is to look at, and how much of it is."""

    rows: Sequence[Row]
    max_tokens: int
    """Taken in all, at most."""


@dataclass(frozen=True)
class Piece:
    """One sequence, and which rows its tokens are of."""

    ids: list[int]
    origin: Origin
    rows: range
    """Places in the order that rows were taken in."""


@dataclass(frozen=True)
class Calibration:
    """Sequences of one length, and how much evidence they are."""

    pieces: tuple[Piece, ...]
    given: int
    """Rows and texts there were."""
    longer: int
    """Training rows that were looked at and are longer than a sequence may be; they go on in the
    next one."""

    @property
    def sequences(self) -> list[list[int]]:
        """The token ids."""
        return [piece.ids for piece in self.pieces]

    @property
    def tokens(self) -> int:
        """How many there are in all."""
        return sum(len(piece.ids) for piece in self.pieces)

    @property
    def text_tokens(self) -> int:
        """How many of them are of the text."""
        return sum(len(piece.ids) for piece in self.pieces if piece.origin == "text")

    @property
    def rows(self) -> int:
        """Count the rows and texts of which at least one token is used."""
        return len({(piece.origin, row) for piece in self.pieces for row in piece.rows})

    def first(self, count: int) -> "Calibration":
        """Leave out what is behind so many sequences."""
        return replace(self, pieces=self.pieces[:count])


NOTHING: Final = Calibration((), given=0, longer=0)
"""What a method looks at that needs no data."""


def choose_sequences(
    evidence: Mapping[Origin, Evidence],
    encode: Callable[[Row], list[int]],
    *,
    length: int,
    seed: int,
) -> Calibration:
    """Join rows, in a seeded order, to sequences of `length` tokens until there are enough.

    Training rows and text never share a sequence; where there are both, their sequences stand in
    a seeded order.

    Args:
        evidence: what there is to look at.
        encode: a row's ids in the contract's form.
        length: of every sequence; shorter where there is not enough for one.
        seed: decides the orders.

    Raises:
        DataError: something does not fill one usable sequence.
    """
    joined = {
        origin: _joined(each, encode, random.Random(seed))  # noqa: S311 - a sample, not a secret
        for origin, each in evidence.items()
    }
    limit = length
    for origin, each in joined.items():
        length = min(length, len(each.ids))
        if length < SHORTEST:
            raise _too_few(origin, evidence[origin], len(each.ids))
    pieces = [piece for origin, each in joined.items() for piece in each.cut(length, origin)]
    if len(joined) > 1:
        random.Random(seed).shuffle(pieces)  # noqa: S311 - as above
    return Calibration(
        tuple(pieces),
        given=sum(len(each.rows) for each in evidence.values()),
        longer=joined["rows"].longer_than(limit) if "rows" in joined else 0,
    )


def _too_few(origin: Origin, evidence: Evidence, tokens: int) -> DataError:
    what = f"the {len(evidence.rows)} {_CALLED[origin]} give {tokens} tokens"
    more = "give data.train more rows" if origin == "rows" else "give a longer calibration.text"
    if tokens == evidence.max_tokens:
        more = "ask for more calibration.tokens"
    return DataError(
        f"{what}, too few to calibrate on",
        fix=f"{more}, or quantize with bitsandbytes, which needs none",
    )


@dataclass(frozen=True)
class _Joined:
    """Rows one behind the other."""

    ids: list[int]
    ends: list[int]
    """Where each row ends, also where that is behind the last id that is used."""

    def cut(self, length: int, origin: Origin) -> list[Piece]:
        """Cut into full sequences: a shorter last one would need padding beside the others."""
        pieces: list[Piece] = []
        first = 0
        for start in range(0, len(self.ids) - length + 1, length):
            end = start + length
            while self.ends[first] <= start:
                first += 1
            last = first
            while self.ends[last] < end:
                last += 1
            pieces.append(Piece(self.ids[start:end], origin, range(first, last + 1)))
            first = last
        return pieces

    def longer_than(self, length: int) -> int:
        """Count the rows of more tokens than that."""
        starts = [0, *self.ends]
        return sum(end - start > length for start, end in zip(starts, self.ends, strict=False))


def _joined(evidence: Evidence, encode: Callable[[Row], list[int]], draw: random.Random) -> _Joined:
    order = list(evidence.rows)
    draw.shuffle(order)
    ids: list[int] = []
    ends: list[int] = []
    for row in order:
        if len(ids) >= evidence.max_tokens:
            break
        ids += encode(row)
        ends.append(len(ids))
    return _Joined(ids[: evidence.max_tokens], ends)


def shortage(method: str, tokens: int, widest_features: int) -> str:
    """Say in a sentence that there is too little evidence; empty where there is enough."""
    floor = TOKENS_PER_FEATURE * widest_features
    if tokens >= floor:
        return ""
    return (
        f"{method} was calibrated on {tokens} tokens; the widest layer has {widest_features} "
        f"input features and wants at least {floor}, so the quantized model may be worse "
        "than it could be"
    )
