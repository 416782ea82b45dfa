"""How many weights share one scale: a pure choice over the layers' widths.

A width that the group size does not divide quantizes without an error and then fails, or
is read wrongly, at inference; so the choice is made before the engine runs.
"""

from collections.abc import Mapping
from typing import Final, Literal

from modelmill.spec.errors import Problem, SpecError

CHOICES: Final = (128, 64, 32)
"""Largest first: larger groups store fewer scales."""

_SHOWN = 3


def choose_group_size(asked: Literal["auto"] | int, in_features: Mapping[str, int]) -> int:
    """Take the size asked for, or the largest that divides every layer's input features.

    Args:
        asked: `auto` or one of `CHOICES`.
        in_features: of every layer to be quantized, by name.

    Raises:
        SpecError: no such size; names the layers that stand in the way.
    """
    sizes = CHOICES if asked == "auto" else (asked,)
    for size in sizes:
        if all(width % size == 0 for width in in_features.values()):
            return size
    stubborn = [
        f"{name} ({width})" for name, width in in_features.items() if width % sizes[-1] != 0
    ]
    named = ", ".join(stubborn[:_SHOWN])
    more = f" and {len(stubborn) - _SHOWN} more" if len(stubborn) > _SHOWN else ""
    raise SpecError(
        "quantize",
        [
            Problem(
                key="group_size",
                reason=f"{sizes[-1]} does not divide the input features of {named}{more}",
                suggestion="use `group_size: auto`, or leave gptq out for this model"
                if asked != "auto"
                else "this model cannot be quantized with gptq; use bitsandbytes",
            )
        ],
    )
