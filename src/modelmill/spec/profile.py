"""What the place offers: the closed, frozen model of a profile.

A profile never changes what is asked for, only where and with how much of it it runs;
the two facts that numbers depend on (`accelerator`, `dtype`) enter the plan by name.
"""

from typing import Literal

from pydantic import Field

from modelmill.spec.run import Dtype, Spec


class Profile(Spec):
    """Facts about one place."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` looks for a CUDA device once, when the run is planned."""
    dtype: Literal["auto"] | Dtype = "auto"
    """Compute dtype of quality measurements where the spec leaves it open."""
    max_parallel: int = Field(1, ge=1, le=64)
    """Stages that may run at the same time."""
    max_attempts: int = Field(3, ge=1, le=20)
    """Counted attempts per stage before it has finally failed."""


class Facts(Spec):
    """The profile's facts that enter keys, with nothing left open."""

    accelerator: Literal["cpu", "cuda"]
    dtype: Dtype
