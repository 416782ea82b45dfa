"""Whether the kernel killed a process of this machine for its memory, and how much it had used.

SIGKILL does not say who sent it.  The kernel counts whom it kills for memory, in all control
groups together; so a child that died of SIGKILL while the count rose was most likely one.
Knows Linux; where it is another system, nothing is known.
"""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from modelmill.spec.errors import DoesNotFit

VMSTAT = Path("/proc/vmstat")
MEMINFO = Path("/proc/meminfo")

DYING_SECONDS = 10
"""A process that the kernel has killed may be there so much longer, until all it held is freed."""


@dataclass
class Memory:
    """What was last seen of a process's memory."""

    pid: int
    _kills: int = field(init=False)
    """Counted while the process was not yet being killed."""
    _kills_seen: int = field(init=False)
    _seen_at: float = field(init=False)
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        """Begin to count."""
        self._kills = self._kills_seen = _oom_kills()
        self._seen_at = time.monotonic()

    def look(self) -> None:
        """Look at the process while it lives, or seems to."""
        now = time.monotonic()
        if now - self._seen_at >= DYING_SECONDS:
            self._kills, self._kills_seen, self._seen_at = self._kills_seen, _oom_kills(), now
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return
        self.peak_bytes = max(self.peak_bytes, _kibibytes("VmHWM", status))

    def is_spent(self) -> bool:
        """Tell whether the kernel has killed for memory in the last seconds of the process."""
        return _oom_kills() > self._kills

    def words(self) -> str:
        """Say how it ended, with what was used and what there is."""
        try:
            there = _kibibytes("MemTotal", MEMINFO.read_text(encoding="utf-8"))
        except OSError:
            there = 0
        used = f"{self.peak_bytes / 2**30:.1f} of {there / 2**30:.1f} GiB"
        return str(
            DoesNotFit(
                f"Killed by the kernel for its memory: it used at least {used}",
                fix="set finetune.micro_batch_size lower, close other programs, or take a machine "
                "or a control group with more memory",
            )
        )


def _oom_kills() -> int:
    try:
        found = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _kibibytes(name: str, text: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
