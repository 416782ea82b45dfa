"""What the quantizer looks at: training rows as sequences of token ids.  Pure.

Rows are joined to full sequences instead of being padded: padding would enter the
Hessian as if it were text, and a budget in rows would mean another amount of evidence
for every dataset.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from modelmill.spec.errors import DataError
from modelmill.spec.records import Row

SHORTEST: Final = 11
"""The engine drops shorter sequences without counting them."""

TOKENS_PER_FEATURE: Final = 4
"""Below this many tokens per input feature the Hessian is poorly determined."""


@dataclass(frozen=True)
class Calibration:
    """Sequences of one length, and how much evidence they are."""

    sequences: tuple[list[int], ...]
    rows: int
    """Rows of which at least one token is used."""
    tokens: int


def choose_sequences(
    rows: Sequence[Row],
    encode: Callable[[Row], list[int]],
    *,
    max_tokens: int,
    length: int,
    seed: int,
) -> Calibration:
    """Join rows, in a seeded order, to sequences of `length` tokens until there are enough.

    Args:
        rows: the training rows.
        encode: a row's ids in the contract's form.
        max_tokens: taken in all, at most.
        length: of every sequence; one shorter sequence where there is not enough for it.
        seed: decides the order.

    Raises:
        DataError: the rows do not fill one usable sequence.
    """
    order = list(rows)
    random.Random(seed).shuffle(order)  # noqa: S311 - a sample, not a secret
    ids: list[int] = []
    used = 0
    for row in order:
        if len(ids) >= max_tokens:
            break
        ids += encode(row)
        used += 1
    ids = ids[:max_tokens]
    length = min(length, len(ids))
    # A shorter last one would need padding in a batch with the others.
    sequences = [ids[end - length : end] for end in range(length, len(ids) + 1, length or 1)]
    if length < SHORTEST:
        raise DataError(
            f"the {len(rows)} training rows hold {len(ids)} tokens, too few to calibrate on",
            fix="give data.train more rows, or quantize with bitsandbytes, which needs none",
        )
    return Calibration(tuple(sequences), used, sum(map(len, sequences)))


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
