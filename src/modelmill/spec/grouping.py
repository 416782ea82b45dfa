"""How many weights share one scale, and which layers pack: pure rules over the layers' widths.

A width that the group size does not divide quantizes without an error and then fails, or
is read wrongly, at inference; so the choice is made before the engine runs, and where the
widths are known before a run, before anything does.
"""

from collections.abc import Mapping
from typing import Final, Literal

from modelmill.spec.errors import Problem, SpecError

CHOICES: Final = (128, 64, 32)
"""Largest first: larger groups store fewer scales."""

WORD_BITS: Final = 32
"""Of the integers that GPTQ's format packs codes and zero points into."""

AUTOROUND_OUTPUTS: Final = 32
"""What has to divide a layer's outputs at any bits; others its engine keeps in 16 bits."""

_SHOWN = 3


def choose_group_size(
    asked: Literal["auto"] | int, in_features: Mapping[str, int], section: str = "quantize"
) -> int:
    """Take the size asked for, or the largest that divides every layer's input features.

    Args:
        asked: `auto` or one of `CHOICES`.
        in_features: of every layer to be quantized, by name.
        section: of the spec, which asks.

    Raises:
        SpecError: no such size; names the layers that stand in the way.
    """
    size = asked if asked != "auto" else largest_group(in_features)
    if size is not None and _divides_all(size, in_features):
        return size
    raise SpecError(section, [group_problem("group_size", asked, in_features)])


def largest_group(in_features: Mapping[str, int]) -> int | None:
    """Find the largest size that divides every layer; None where no choice does."""
    return next((size for size in CHOICES if _divides_all(size, in_features)), None)


def group_problem(
    key: str, asked: Literal["auto"] | int, in_features: Mapping[str, int]
) -> Problem:
    """Say which layers a size does not divide, and which size works instead.

    Args:
        key: of the setting.
        asked: what does not work.
        in_features: of every layer to be quantized, by name.
    """
    size = CHOICES[-1] if asked == "auto" else asked
    stubborn = {name: width for name, width in in_features.items() if width % size}
    works = largest_group(in_features)
    return Problem(
        key=key,
        reason=f"{size} does not divide the input features of {_some(stubborn)}",
        suggestion="this model cannot be quantized in groups; use bitsandbytes"
        if works is None
        else f"use `group_size: auto`, which takes {works}, the largest that divides every layer",
    )


def check_packing(bits: int, out_features: Mapping[str, int]) -> None:
    """Refuse layers whose zero points do not fill words of 32 bits, as the format packs them.

    The engine would fall in the middle of its work, at 3 bits and 16 outputs as in a tiny model
    with one key and value for all heads.

    Args:
        bits: of a weight, and of a zero point.
        out_features: of every layer to be quantized, by name.

    Raises:
        SpecError: names the layers that stand in the way.
    """
    problem = packing_problem("bits", bits, out_features)
    if problem is not None:
        raise SpecError("quantize", [problem])


def packing_problem(key: str, bits: int, out_features: Mapping[str, int]) -> Problem | None:
    """Say which layers' zero points do not fill words, and what to do; None where all do."""
    stubborn = {name: width for name, width in out_features.items() if bits * width % WORD_BITS}
    if not stubborn:
        return None
    return Problem(
        key=key,
        reason=f"{bits} bits do not pack the output features of {_some(stubborn)} into whole words",
        suggestion="other bits, or bitsandbytes, which packs nothing",
    )


def check_rounding(out_features: Mapping[str, int]) -> None:
    """Refuse layers that AutoRound would leave as they are, before it works on the others.

    Args:
        out_features: of every layer to be quantized, by name.

    Raises:
        SpecError: names the layers that stand in the way.
    """
    problem = rounding_problem("method", out_features)
    if problem is not None:
        raise SpecError("quantize", [problem])


def rounding_problem(key: str, out_features: Mapping[str, int]) -> Problem | None:
    """Say which layers AutoRound leaves out, and what to do instead; None where it takes all."""
    stubborn = {name: width for name, width in out_features.items() if width % AUTOROUND_OUTPUTS}
    if not stubborn:
        return None
    return Problem(
        key=key,
        reason=f"AutoRound leaves out {_some(stubborn)}: {AUTOROUND_OUTPUTS} does not divide their "
        "output features",
        suggestion="use gptq, or bitsandbytes, which packs nothing",
    )


def _some(widths: Mapping[str, int]) -> str:
    named = ", ".join(f"{name} ({width})" for name, width in [*widths.items()][:_SHOWN])
    return f"{named} and {len(widths) - _SHOWN} more" if len(widths) > _SHOWN else named


def _divides_all(size: int, in_features: Mapping[str, int]) -> bool:
    return all(width % size == 0 for width in in_features.values())
