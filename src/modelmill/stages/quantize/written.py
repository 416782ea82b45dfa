"""What every method reports about the files it wrote."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Written:
    """The method's own figures; sizes are read off the files."""

    modules: int
    """Quantized layers, counted in the files after writing them."""
    group_size: int | None = None
    calibration_rows: int = 0
    calibration_tokens: int = 0
