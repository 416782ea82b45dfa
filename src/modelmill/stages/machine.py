"""What a stage runs on and what it costs there: device, versions, memory.

Reads the operating system and the libraries that are already loaded; loads none itself.
"""

import importlib.metadata
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelmill.spec.records import Device
from modelmill.store.space import free_bytes_of

REPORTED_PACKAGES: Final = (
    "modelmill",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "trl",
    "bitsandbytes",
    "gptqmodel",
    "optimum",
    "boto3",
    "huggingface_hub",
    "pyarrow",
)

NO_MEMORY: Final = "can't allocate memory"
"""What torch says on a CPU, in an error of no class of its own."""


def versions() -> Mapping[str, str]:
    """List Python and those of the packages that matter which this stage has loaded."""
    found = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        if name in sys.modules:
            found[name] = importlib.metadata.version(name)
    return found


def device() -> Device:
    """Name the device; a stage that never loaded torch ran on the CPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        return Device(accelerator="cuda", name=name, count=torch.cuda.device_count())
    return Device(accelerator="cpu", name=_processor())


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_rss_bytes() -> int:
    """Read the largest resident size of this process or a child of it, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def peak_gpu_bytes() -> int:
    """Read the largest amount of GPU memory this process has allocated."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    return int(torch.cuda.max_memory_allocated())


def has_room(work: Path, size_bytes: int, limit_bytes: int | None) -> bool:
    """Tell whether a state fits into `resume` beside inputs and an output as large as they are."""
    inputs_bytes, resume_bytes = (_tree_bytes(work / name) for name in ("inputs", "resume"))
    room_bytes = free_bytes_of(work)
    if limit_bytes is not None:
        room_bytes = min(room_bytes, limit_bytes - inputs_bytes - resume_bytes)
    return size_bytes + inputs_bytes <= room_bytes + resume_bytes


def _tree_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
