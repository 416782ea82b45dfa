"""How long rows are, in few numbers.  Pure."""

from collections.abc import Sequence
from typing import Final

from modelmill.spec.figures import LengthBin

BINS: Final = 20


def histogram(lengths: Sequence[int]) -> tuple[LengthBin, ...]:
    """Count rows by tokens, in at most `BINS` bins of one width that begin at zero.

    Returns:
        Bins up to the longest row; empty for no rows.
    """
    if not lengths:
        return ()
    width = max(1, -(-max(lengths) // BINS))
    counts = [0] * (-(-max(lengths) // width))
    for length in lengths:
        counts[max(length - 1, 0) // width] += 1
    return tuple(
        LengthBin(upto=width * (place + 1), rows=count) for place, count in enumerate(counts)
    )
