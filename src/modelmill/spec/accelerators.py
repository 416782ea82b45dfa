"""Devices that a plan can be held against: how much memory they have, and how fast they are."""

from collections.abc import Mapping
from typing import Final, Literal, get_args

from modelmill.spec.closed import Spec

AcceleratorName = Literal["l4", "a10", "a100-40", "a100-80", "h100", "cpu"]

NAMES: Final[tuple[AcceleratorName, ...]] = get_args(AcceleratorName)

_MIB: Final = 2**20


class Accelerator(Spec):
    """One device."""

    name: AcceleratorName
    title: str
    memory_bytes: int
    """What its driver lets programs have; 0 where there is no GPU."""
    teraflops: float
    """In 16 bits, dense, by the data sheet of its fastest form; 0 where there is no GPU."""

    @property
    def is_gpu(self) -> bool:
        """Whether weights and activations are in memory of its own."""
        return self.memory_bytes > 0


ACCELERATORS: Final[Mapping[AcceleratorName, Accelerator]] = {
    each.name: each
    for each in (
        Accelerator(name="l4", title="NVIDIA L4, 24 GB", memory_bytes=23034 * _MIB, teraflops=121),
        Accelerator(
            name="a10", title="NVIDIA A10, 24 GB", memory_bytes=23028 * _MIB, teraflops=125
        ),
        Accelerator(
            name="a100-40", title="NVIDIA A100, 40 GB", memory_bytes=40960 * _MIB, teraflops=312
        ),
        Accelerator(
            name="a100-80", title="NVIDIA A100, 80 GB", memory_bytes=81920 * _MIB, teraflops=312
        ),
        Accelerator(
            name="h100", title="NVIDIA H100, 80 GB", memory_bytes=81559 * _MIB, teraflops=989
        ),
        Accelerator(name="cpu", title="no GPU", memory_bytes=0, teraflops=0),
    )
}
"""Sizes as `nvidia-smi` prints them: less than the name says where memory corrects errors."""


def accelerator_called(name: str) -> Accelerator | None:
    """Find a device by a name that may be anybody's; None where it is not known."""
    return next((each for each in ACCELERATORS.values() if each.name == name), None)


def next_larger(needed_bytes: int) -> Accelerator | None:
    """Find the smallest GPU that has so much memory."""
    fitting = [each for each in ACCELERATORS.values() if each.memory_bytes >= needed_bytes]
    return min(fitting, key=lambda each: each.memory_bytes, default=None)
