"""How long devices were held and what that cost, beside what was foretold.  Pure arithmetic.

Knows hours and prices.  Must not know events or plans (`describe` reads those), nor how
it looks (`spending_table`).
"""

from collections.abc import Mapping, Sequence
from typing import Final

from modelmill.spec.hours import CPU
from modelmill.spec.prices import Prices
from modelmill.spec.records import Foretold, Record

_HOUR_SECONDS: Final = 3600


class Spending(Record):
    """What was held, beside what was foretold; in hours of one device."""

    hours: float
    """Of all attempts: from when the conductor saw one begin until it saw it end."""
    lost_hours: float
    """Of them, those of attempts that committed nothing."""
    low_hours: float | None = None
    high_hours: float | None = None
    """Foretold; None where there was no basis."""
    price: float | None = None
    """Of `hours`; None where a device has no price."""
    low_price: float | None = None
    high_price: float | None = None


class StageSpending(Spending):
    """What one stage held."""

    device: str
    """A GPU by its name, `gpu` where nobody said which, or `cpu` for a stage without one."""
    devices: int
    """Held at the same time."""
    basis: str
    """What the foretold hours rested on, or why there were none."""
    unseen: int = 0
    """Attempts whose end nobody saw: their hours are not known and not counted."""


class Total(Spending):
    """A sum over stages."""

    foretold_hours: float = 0.0
    """Held by the stages that hours were foretold for: only these can be held against those."""


class RunSpending(Record):
    """What all stages held that ran here."""

    currency: str = ""
    gpu: Total | None
    cpu: Total | None
    """Of stages without a GPU: an hour of one, whatever its size.  None where there were none."""
    price: float | None = None
    """Of everything; None where a device that was held has no price."""


class Attempted(Record):
    """One attempt, as far as it counts here."""

    seconds: float | None
    """None where nobody saw its end."""
    is_lost: bool


def spent_by_stage(
    foretold: Foretold, attempts: Sequence[Attempted], prices: Prices
) -> StageSpending:
    """Add up the attempts at a stage, and price them."""
    seen = [(each.seconds, each.is_lost) for each in attempts if each.seconds is not None]
    hours = _hours(sum(seconds for seconds, _ in seen), foretold.devices)
    low, high = (
        None if seconds is None else _hours(seconds, foretold.devices)
        for seconds in (foretold.low_seconds, foretold.high_seconds)
    )
    return StageSpending(
        hours=hours,
        lost_hours=_hours(sum(seconds for seconds, is_lost in seen if is_lost), foretold.devices),
        low_hours=low,
        high_hours=high,
        price=prices.price_of(foretold.device, hours),
        low_price=None if low is None else prices.price_of(foretold.device, low),
        high_price=None if high is None else prices.price_of(foretold.device, high),
        device=foretold.device,
        devices=foretold.devices,
        basis=foretold.basis,
        unseen=len(attempts) - len(seen),
    )


def spent_by_run(stages: Sequence[StageSpending], currency: str) -> RunSpending | None:
    """Add up stages, those with a GPU apart from the others; None where nothing was held."""
    if not stages:
        return None
    by_sort: Mapping[bool, list[StageSpending]] = {
        is_gpu: [each for each in stages if (each.device != CPU) == is_gpu]
        for is_gpu in (True, False)
    }
    return RunSpending(
        currency=currency,
        gpu=total_of(by_sort[True]),
        cpu=total_of(by_sort[False]),
        price=_sum([each.price for each in stages]),
    )


def total_of(stages: Sequence[StageSpending]) -> Total | None:
    """Add up stages; what was foretold for some of them is the sum of that."""
    if not stages:
        return None
    known = [each for each in stages if each.low_hours is not None]
    return Total(
        hours=sum(each.hours for each in stages),
        lost_hours=sum(each.lost_hours for each in stages),
        low_hours=_sum([each.low_hours for each in known]),
        high_hours=_sum([each.high_hours for each in known]),
        price=_sum([each.price for each in stages]),
        low_price=_sum([each.low_price for each in known]),
        high_price=_sum([each.high_price for each in known]),
        foretold_hours=sum(each.hours for each in known),
    )


def _hours(seconds: float, devices: int) -> float:
    return devices * seconds / _HOUR_SECONDS


def _sum(given: Sequence[float | None]) -> float | None:
    """Add up what is known only where all of it is, and there is something."""
    known = [each for each in given if each is not None]
    return sum(known) if known and len(known) == len(given) else None
