"""Kubernetes' quantities: `500m`, `16Gi`; read, added, and written as people write them.

Pure; knows nothing about what is measured.
"""

import re
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Final

from pydantic import BeforeValidator, StringConstraints, WithJsonSchema

QUANTITY: Final = r"^(0|[1-9][0-9]*)(\.[0-9]+)?(m|k|Ki|[MGTPE]i?)?$"

_FACTORS: Final = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(1000),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("MGTPE", 2)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}


def _as_text(value: object) -> object:
    """Take `cpu: 4` for what it means: YAML and Helm read it as a number."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Quantity = Annotated[
    str,
    BeforeValidator(_as_text),
    StringConstraints(pattern=QUANTITY),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": QUANTITY}, {"type": "number", "minimum": 0}]}
    ),
]
"""An amount of a resource, such as `500m` of a core or `16Gi`."""


def amount(quantity: str) -> Decimal:
    """Read a quantity in its base unit: cores or bytes.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(QUANTITY[1:-1], quantity)
    if match is None:
        raise ValueError(quantity)
    number = f"{match[1]}{match[2] or ''}"
    return Decimal(number) * _FACTORS[match[3] or ""]


def whole_bytes(quantity: str) -> int:
    """Read a size in bytes, rounded up as Kubernetes does."""
    return int(amount(quantity).to_integral_value(ROUND_CEILING))


def whole_cores(quantity: str) -> int:
    """Count the cores that a stage is told it has: rounded up as Kubernetes does, one at least."""
    return max(1, int(amount(quantity).to_integral_value(ROUND_CEILING)))


def total(*sizes: str) -> str:
    """Add sizes, written in the largest binary unit that loses nothing."""
    count = sum(map(whole_bytes, sizes))
    for unit in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        factor = int(_FACTORS[unit])
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)
