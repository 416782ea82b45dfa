"""What every part of the spec is: closed, frozen, and of plain values."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

LARGEST_INTEGER: Final = 2**53 - 1
"""Helm reads numbers as float64; a larger integer would change on the way."""

Fraction = Annotated[float, Field(gt=0, lt=1)]
FieldName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Dtype = Literal["float32", "float16", "bfloat16"]
GroupSize = Literal["auto", 32, 64, 128]


class Spec(BaseModel):
    """A closed part of the spec."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def changed(self) -> frozenset[str]:
        """Name the fields that do not have their default: a dump of all fields says no more."""
        return frozenset(
            name
            for name, field in type(self).model_fields.items()
            if field.is_required() or getattr(self, name) != field.default
        )
