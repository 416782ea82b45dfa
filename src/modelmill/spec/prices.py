"""What an hour of a device costs, as a place says it.  Pure."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from modelmill.spec.closed import Spec

DeviceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-a-z0-9.]{0,62}$")]
PerHour = Annotated[float, Field(ge=0)]


class Prices(Spec):
    """What devices cost; without a list there are hours and no prices."""

    currency: str = Field("", pattern=r"^([A-Z]{3})?$")
    """ISO 4217, such as `EUR`; needed beside `per_hour`."""
    per_hour: Mapping[DeviceName, PerHour] = {}
    """By device, for each hour that a stage holds one: GPUs as `gpu_type` calls them, and `cpu`
    for a stage, of any size, that holds none."""

    @model_validator(mode="after")
    def _is_in_a_currency(self) -> Self:
        if self.per_hour and not self.currency:
            raise ValueError("currency: required beside per_hour")
        return self

    def price_of(self, device: str, hours: float) -> float | None:
        """Multiply; None where the list has no such device."""
        per_hour = self.per_hour.get(device)
        return None if per_hour is None else per_hour * hours
