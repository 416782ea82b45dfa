"""What every method reports about the files it wrote."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from modelmill.stages.quantize.calibration import NOTHING, Calibration


@dataclass(frozen=True)
class Written:
    """The method's own figures; sizes are read off the files."""

    modules: int
    """Quantized layers, counted in the files after writing them."""
    group_size: int | None = None
    calibration: Calibration = NOTHING
    effective: Mapping[str, JsonValue] = field(default_factory=dict)
    """What the device made of the settings."""
