"""Which models can be stored as BitNet's three values: a pure rule over their layers.

A layer that transformers does not replace, or whose rows do not fill bytes, would be read as
random weights or not at all; so both are refused, before a run where the layers are known.
"""

from collections.abc import Mapping
from typing import Final

from modelmill.spec.errors import Problem
from modelmill.spec.quantize import TERNARY_BITS

ROWS_PER_BYTE: Final = 8 // TERNARY_BITS

_SHOWN = 3


def ternary_problem(
    key: str, out_features: Mapping[str, int], *, is_transposed: bool
) -> Problem | None:
    """Say why a model cannot be stored so, and what to do instead; None where it can.

    Args:
        key: of the setting.
        out_features: of every layer to be quantized, by name.
        is_transposed: whether the layers are `Conv1D`, as gpt2's.
    """
    if is_transposed:
        return Problem(
            key,
            "this model's layers are Conv1D, and transformers has BitNet for nn.Linear only",
            suggestion="leave bitnet out of the run, or use another model",
        )
    stubborn = [
        f"{name} ({count})" for name, count in out_features.items() if count % ROWS_PER_BYTE
    ]
    if not stubborn:
        return None
    named = ", ".join(stubborn[:_SHOWN])
    more = f" and {len(stubborn) - _SHOWN} more" if len(stubborn) > _SHOWN else ""
    return Problem(
        key,
        f"a byte holds {ROWS_PER_BYTE} outputs, which do not divide those of {named}{more}",
        suggestion="this model cannot be stored so; leave bitnet out of the run",
    )
