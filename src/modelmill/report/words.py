"""Numbers and foreign text as people read them, the same in every view.

Knows units and characters.  Must not know what the numbers mean, nor HTML or Markdown.
"""

import unicodedata
from typing import Final

from modelmill.evaluate.scale import Scale
from modelmill.report.document import Score

NOTHING: Final = "\N{EN DASH}"
"""Shown where there is no value."""

_MINUTE: Final = 60
_HOUR: Final = 3600
_LEAST_SHOWN: Final = 0.005
"""What two decimals would show as nothing at all."""
_BYTE_UNITS: Final = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_HARMLESS: Final = frozenset("\n\t\u200c\u200d")
"""Line breaks and tabs, and the joiners that Persian, Hindi and emoji are written with."""
_OBEYED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: str) -> str:
    r"""Spell out every character that a terminal or browser would obey instead of showing.

    Control characters, text direction overrides and lone surrogates come out as `\x1b` or
    `\u202e`; line breaks and tabs stay.
    """
    return "".join(
        character
        if character in _HARMLESS or unicodedata.category(character) not in _OBEYED
        else _spelled(ord(character))
        for character in text
    )


def one_line(text: str) -> str:
    """Make foreign text visible and fold its line breaks and runs of blanks."""
    return visible(" ".join(text.split()))


def duration(seconds: float | None) -> str:
    """Say how long something took, in at most two units."""
    if seconds is None:
        return NOTHING
    if seconds < 9.95:  # noqa: PLR2004 - the last value that one decimal shows below ten
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02d} s"
    minutes = round(seconds / _MINUTE)
    return f"{minutes // _MINUTE} h {minutes % _MINUTE:02d} min"


def span(low_seconds: float | None, high_seconds: float | None) -> str:
    """Say between what a duration lies; once where that is the same."""
    low, high = duration(low_seconds), duration(high_seconds)
    return low if low == high else f"{low} to {high}"


def hours(count: float) -> str:
    """Write a number of hours, however few."""
    return f"{count:,.2f}" if count >= _LEAST_SHOWN or not count else "less than 0.01"


def money(amount: float | None) -> str:
    """Write an amount without its currency."""
    if amount is None:
        return NOTHING
    return f"{amount:,.2f}" if amount >= _LEAST_SHOWN or not amount else "< 0.01"


def size(count_bytes: int | None) -> str:
    """Say how large something is, in decimal units with three digits."""
    if count_bytes is None:
        return NOTHING
    for unit, factor in _BYTE_UNITS:
        if count_bytes >= factor:
            return f"{three_digits(count_bytes / factor)} {unit}"
    return f"{count_bytes} B"


def three_digits(value: float) -> str:
    """Write a positive number with three significant digits and no exponent."""
    for limit, decimals in ((10, 2), (100, 1)):
        if round(value, decimals) < limit:
            return f"{value:.{decimals}f}"
    return f"{value:,.0f}"


def share(value: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * value:.1f} %"


def metric_title(scale: Scale) -> str:
    """Name a metric as a column head."""
    return one_line(scale.title)


def metric_value(scale: Scale, value: float) -> str:
    """Write one value of a metric: shares are percentages, other units need no repeating."""
    return share(value) if scale.is_share else f"{value:.3f}"


def metric_interval(scale: Scale, low: float, high: float) -> str:
    """Write the interval around a value, without repeating the unit."""
    if scale.is_share:
        return f"{100 * low:.1f} to {100 * high:.1f}"
    return f"{low:.3f} to {high:.3f}"


def metric_score(scale: Scale, score: Score | None) -> str:
    """Write a score with its interval."""
    if score is None:
        return NOTHING
    interval = metric_interval(scale, score.low, score.high)
    return f"{metric_value(scale, score.value)} ({interval})"


def metric_difference(scale: Scale, value: float) -> str:
    """Write a difference of two values: with its sign, shares in percentage points."""
    return f"{100 * value:+.1f} points" if scale.is_share else f"{value:+.3f}"


def direction(scale: Scale) -> str:
    """Say which way is better."""
    return "higher is better" if scale.higher_is_better else "lower is better"


def probability(value: float) -> str:
    """Write the p of a test; below what anybody acts on, a bound."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"  # noqa: PLR2004


def memory(rss_bytes: int | None, gpu_bytes: int | None) -> str:
    """Say what a stage held at its peak: GPU memory too where it had any."""
    if rss_bytes is None:
        return NOTHING
    return f"{size(rss_bytes)} + {size(gpu_bytes)} GPU" if gpu_bytes else size(rss_bytes)


def listing(names: tuple[str, ...] | list[str]) -> str:
    """Join names as a sentence does."""
    if len(names) < 2:  # noqa: PLR2004 - one name needs no conjunction
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def counted(count: int, noun: str) -> str:
    """Write a count with its noun in the right number."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _spelled(code: int) -> str:
    if code <= 0xFF:  # noqa: PLR2004 - two hex digits
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004
