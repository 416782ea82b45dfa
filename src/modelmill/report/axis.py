"""Where a value lies on a scale, in percent, with ticks at round numbers.

Knows numbers only.  Positions are percentages, so that a figure fits any width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LOG_FROM: Final = 8.0
"""Positive values that span more than this factor are drawn on a logarithmic scale."""
_DECIMALS: Final = 12
_SMALLEST: Final = 1e-6
"""Of a span, as a share of its values; below it there is nothing to see."""


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def at(self, value: float) -> float:
        """Find a value's place between 0 and 100; what lies outside sticks to the edge."""
        if self.is_log:
            low, high, value = math.log(self.low), math.log(self.high), math.log(value)
        else:
            low, high = self.low, self.high
        return round(min(100.0, max(0.0, 100 * (value - low) / (high - low))), 3)


SHARES: Final = Axis(0.0, 1.0, (0.0, 0.5, 1.0))
"""For metrics that are shares: always all of it, so that figures can be compared."""


def axis_over(values: Sequence[float], most_ticks: int = 5) -> Axis:
    """Lay a scale over values, logarithmic where they are positive and far apart."""
    low, high = min(values), max(values)
    if low >= _SMALLEST and high / low > LOG_FROM:
        return _logarithmic(low, high)
    return linear_axis(low, high, most_ticks)


def linear_axis(low: float, high: float, most_ticks: int = 5) -> Axis:
    """Lay a linear scale that starts and ends at a tick."""
    if high - low <= _SMALLEST * max(1.0, abs(low), abs(high)):
        margin = max(abs(low) / 2, 0.5)
        low, high = low - margin, high + margin
    step = _round_step((high - low) / (most_ticks - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(index * step, _DECIMALS) for index in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def _logarithmic(low: float, high: float) -> Axis:
    """Lay a scale from 1, 2 or 5 times a power of ten to another, with a tick per power."""
    floor, ceiling = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [10.0**exponent for exponent in range(floor, ceiling + 1)]
    steps = [factor * power for power in powers for factor in (1, 2, 5)]
    start = max(step for step in steps if step <= low)
    stop = min(step for step in steps if step >= high)
    ticks = tuple(round(power, _DECIMALS) for power in powers if start <= power <= stop)
    return Axis(start, stop, ticks, is_log=True)


def _round_step(least: float) -> float:
    """Find the next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    for factor in (1, 2, 5):
        if factor * power >= least * (1 - 1e-9):
            return factor * power
    return 10 * power
