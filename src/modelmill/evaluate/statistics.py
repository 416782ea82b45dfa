"""Intervals for shares, means and paired differences, and how many rows would decide.

Knows numbers, not rows, models or metrics.  Everything is seeded: the same numbers give the
same interval.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modelmill.spec.records import Record

Z_95: Final = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""
RESAMPLES: Final = 2_000
FEWEST_ROWS: Final = 10
"""Below this a percentile bootstrap covers far less than it says (the resampled mean of n
equal values has no width at all), so nothing is decided."""
_CHUNK: Final = 2_000_000
"""Resampled values held at once: 16 MB."""

Floats = NDArray[np.float64]


class Interval(Record):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


def wilson_interval(successes: float, n: int) -> Interval:
    """Estimate a share from `successes` out of `n` >= 1 by Wilson's score interval.

    Never leaves [0, 1] and has a width at 0 and 1
    (https://doi.org/10.1080/01621459.1927.10502953).
    """
    share = successes / n
    spread = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    scale = 1 + Z_95**2 / n
    middle = share + Z_95**2 / (2 * n)
    low = max(0.0, (middle - spread) / scale)
    high = min(1.0, (middle + spread) / scale)
    # Rounding must not push a bound past the estimate itself.
    return Interval(value=share, low=min(low, share), high=max(high, share))


def mean_interval(values: Floats, seed: int) -> Interval:
    """Estimate a mean of n >= 1 rows by the percentile bootstrap over rows."""
    low, high = np.percentile(_resampled_means(values, seed), [2.5, 97.5])
    return Interval(value=float(values.mean()), low=float(low), high=float(high))


def difference_interval(differences: Floats, seed: int, *, of_shares: bool) -> Interval:
    """Estimate the mean of paired differences of n >= 1 rows by the paired bootstrap.

    Differences of two 0/1 scores (`of_shares`) also get Agresti and Min's adjusted interval,
    and the wider bound counts: where no row differs the bootstrap has no width, however few
    the rows (https://doi.org/10.1002/sim.1781).
    """
    interval = mean_interval(differences, seed)
    if not of_shares:
        return interval
    n = len(differences) + 2
    total, discordant = float(differences.sum()), float(np.abs(differences).sum()) + 1
    half = Z_95 * math.sqrt(discordant - total**2 / n) / n
    return Interval(
        value=interval.value,
        low=max(-1.0, min(interval.low, total / n - half)),
        high=min(1.0, max(interval.high, total / n + half)),
    )


def independent_difference(before: Interval, after: Interval) -> Interval:
    """Estimate how far apart two estimates are that were taken over different rows.

    The distances of both estimates to their own bounds are added as squares (Zou and Donner,
    https://doi.org/10.1002/sim.3095); for two Wilson intervals that is Newcombe's method 10.
    """
    value = after.value - before.value
    down = math.hypot(after.value - after.low, before.high - before.value)
    up = math.hypot(after.high - after.value, before.value - before.low)
    return Interval(value=value, low=value - down, high=value + up)


def mcnemar(lost: int, gained: int) -> float:
    """Test by McNemar's exact test whether as many rows were lost as gained; returns p.

    Only rows that flipped say anything: if neither direction is favoured, `lost` of them is a
    throw of as many fair coins.  Two-sided; 1 where nothing flipped.
    """
    flipped = lost + gained
    ways, tail = 1, 0
    for count in range(min(lost, gained) + 1):
        tail += ways
        # Each binomial coefficient from the one before: of thousands, anew is twenty times slower.
        ways = ways * (flipped - count) // (count + 1)
    # Whole numbers until the last step: 2 to the power of some thousands is no float.
    return min(1.0, 2 * tail / (1 << flipped))


def rows_needed(differences: Floats, bound: float, *, of_shares: bool) -> int | None:
    """Estimate how many rows would put the bound outside the interval.

    From the observed mean and spread: the 95 % half-width shrinks with the root of n until it
    is smaller than the distance between mean and bound.  None where the mean is the bound
    itself, because then no number of rows decides.
    """
    distance = abs(float(differences.mean()) - bound)
    if distance < 1e-12:  # noqa: PLR2004 - below the noise of the mean itself
        return None
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    if of_shares:
        # The two half rows that the adjusted interval adds keep the spread from being zero.
        deviation = max(deviation, math.sqrt(1 / (len(differences) + 2)))
    return max(FEWEST_ROWS, math.ceil((Z_95 * deviation / distance) ** 2))


def _resampled_means(values: Floats, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    n = len(values)
    per_chunk = max(1, _CHUNK // n)
    chunks = [
        values[rng.integers(0, n, size=(min(per_chunk, RESAMPLES - done), n))].mean(axis=1)
        for done in range(0, RESAMPLES, per_chunk)
    ]
    return np.concatenate(chunks)
