"""What the concepts page says of small networks is what any machine finds."""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:
    # What draws the pages is not installed.
    patch.syspath_prepend(str(Path(__file__).parents[3]))
    from docs.learned import BITS, NETWORKS, Learned, learn, recorded

APART = 2.0
"""Times beyond the range of the recorded networks: some roundings are a matter of luck."""


def numbers(learned: Learned) -> Iterator[tuple[str, list[float]]]:
    """Name every number."""
    for name, value in learned.model_dump().items():
        by_bits = value if isinstance(value, Mapping) else {"": value}
        yield from ((f"{name} {bits}", list(each)) for bits, each in by_bits.items())


def test_recorded_numbers_are_near_those_of_this_machine() -> None:
    """Of the first two networks, which are enough to see that nothing else is meant."""
    there, here = dict(numbers(recorded())), dict(numbers(learn(2)))
    assert there.keys() == here.keys()
    assert {len(each) for name, each in there.items() if "autoround" not in name} == {NETWORKS}
    far = {
        name: each
        for name, found in here.items()
        for each in found
        if not min(there[name]) / APART < each < APART * max(there[name])
    }
    assert far == {}


def test_what_the_page_says_of_them_is_so() -> None:
    """Training gains nothing with 8 bits and much with fewer; three values are ruin without it."""
    middle = {name: statistics.median(each) for name, each in numbers(recorded())}
    gain, *gains = [middle[f"rounded {n}"] / middle[f"trained_while_rounded {n}"] for n in BITS]
    assert gain < 1.1
    assert min(gains) > 4
    assert middle["ternary "] > 1
    assert middle["ternary_trained_further "] < 0.25 * middle["ternary "]
    assert middle["ternary_from_the_beginning "] < 0.25 * middle["ternary "]
