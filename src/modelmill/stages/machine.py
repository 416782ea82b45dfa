"""What a stage runs on and what it costs there: device, versions, memory, disk.

Reads the operating system and the libraries that are already loaded; loads none itself.
"""

import importlib.metadata
import platform
import resource
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelmill.spec.errors import DoesNotFit
from modelmill.spec.records import Device

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
    room_bytes = _room_bytes(work, limit_bytes)
    if limit_bytes is not None:
        room_bytes = min(room_bytes, limit_bytes - inputs_bytes - resume_bytes)
    return size_bytes + inputs_bytes <= room_bytes + resume_bytes


def _tree_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _room_bytes(folder: Path, limit_bytes: int | None) -> int:
    free_bytes = shutil.disk_usage(folder).free
    return free_bytes if limit_bytes is None else min(free_bytes, limit_bytes)


def check_space(folder: Path, needed_bytes: int, limit_bytes: int | None) -> None:
    """Refuse to start what the volume cannot hold.

    Args:
        folder: on the volume.
        needed_bytes: inputs, output and what lies between.
        limit_bytes: the volume's own limit where the file system does not know it: over an
            emptyDir's limit the kubelet evicts, there is no ENOSPC.

    Raises:
        DoesNotFit: with both sizes.
    """
    room_bytes = _room_bytes(folder, limit_bytes)
    if needed_bytes > room_bytes:
        raise DoesNotFit(
            f"The stage needs about {needed_bytes / 2**20:,.0f} MiB of disk "
            f"and {room_bytes / 2**20:,.0f} MiB are free",
            at=str(folder),
            fix="free some space, or name a larger folder in MODELMILL_WORK",
        )
