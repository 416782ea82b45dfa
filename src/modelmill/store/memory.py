"""Whether the kernel killed a process of this machine for its memory, and how much it had used.

SIGKILL does not say who sent it.  The kernel counts whom it kills for memory, on the whole machine
and in each control group; so a process that died of SIGKILL while the count rose was most likely
one.  Knows Linux; where it is another system, nothing is known.
"""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Self

from modelmill.spec.errors import DoesNotFit

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")

DYING_SECONDS = 10
"""A process that the kernel has killed may be there so much longer, until all it held is freed."""

_KILLS: Final = r"^oom_kill (\d+)$"
_LIMIT: Final = r"^(\d+)$"


@dataclass(frozen=True)
class _Groups:
    """The control groups that limit a process's memory."""

    folders: tuple[Path, ...] = ()
    """From its own outwards; a container may see only the last of them, as its own."""
    counts: str = ""
    limit: str = ""

    @classmethod
    def of(cls, pid: int) -> Self:
        """Find them, in either version of control groups."""
        try:
            lines = (PROC / f"{pid}/cgroup").read_text(encoding="utf-8").splitlines()
        except OSError:
            return cls()
        paths = {
            controller: path
            for _, controllers, path in (line.split(":", 2) for line in lines)
            for controller in controllers.split(",")
        }
        if "memory" in paths:
            folders = _outwards(CGROUPS / "memory", paths["memory"])
            return cls(folders, "memory.oom_control", "memory.limit_in_bytes")
        return cls(_outwards(CGROUPS, paths.get("", "/")), "memory.events", "memory.max")

    def counting(self) -> tuple[Path, ...]:
        """Name the files that may count kills, the nearest first."""
        return tuple(folder / self.counts for folder in self.folders)

    def there_bytes(self) -> int:
        """Say how much memory there is for all of them."""
        limits = [_number(_LIMIT, folder / self.limit) for folder in self.folders]
        there = 1024 * (_number(r"^MemTotal:\s+(\d+) kB$", PROC / "meminfo") or 0)
        return min([there, *(each for each in limits if each is not None)])


@dataclass
class Memory:
    """What was last seen of a process's memory."""

    pid: int
    stays: bool = False
    """Whether it never leaves the control group it is in now, so that the group's count tells, and
    nobody else is taken for it; a wrapper may have moved a stage before it is looked at."""
    peak_bytes: int = 0
    _groups: _Groups = field(init=False)
    _counted_in: Path | None = field(init=False)
    _kills: int = field(init=False)
    """Counted while the process was not yet being killed."""
    _kills_seen: int = field(init=False)
    _seen_at: float = field(init=False)

    def __post_init__(self) -> None:
        """Begin to count."""
        self._groups = _Groups.of(self.pid)
        files = (*(self._groups.counting() if self.stays else ()), PROC / "vmstat")
        self._counted_in = next((each for each in files if _number(_KILLS, each) is not None), None)
        self._kills = self._kills_seen = self._count()
        self._seen_at = time.monotonic()

    @property
    def is_counted(self) -> bool:
        """Whether anybody counts here whom the kernel kills for memory."""
        return self._counted_in is not None

    def look(self) -> None:
        """Look at the process while it lives, or seems to."""
        now = time.monotonic()
        if now - self._seen_at >= DYING_SECONDS:
            self._kills, self._kills_seen, self._seen_at = self._kills_seen, self._count(), now
        peak = _number(r"^VmHWM:\s+(\d+) kB$", PROC / f"{self.pid}/status") or 0
        self.peak_bytes = max(self.peak_bytes, 1024 * peak)

    def is_spent(self) -> bool:
        """Tell whether the kernel has killed for memory in the last seconds of the process."""
        return self._count() > self._kills

    def used_words(self) -> str:
        """Say what was used, and what there is."""
        return (
            f"it used at least {self.peak_bytes / 2**30:.1f} "
            f"of {self._groups.there_bytes() / 2**30:.1f} GiB"
        )

    def words(self) -> str:
        """Say how it ended, with what was used and what there is."""
        return str(
            DoesNotFit(
                f"Killed by the kernel for its memory: {self.used_words()}",
                fix="set finetune.micro_batch_size lower, close other programs, or take a machine "
                "or a control group with more memory",
            )
        )

    def _count(self) -> int:
        return 0 if self._counted_in is None else _number(_KILLS, self._counted_in) or 0


def _outwards(root: Path, path: str) -> tuple[Path, ...]:
    below = PurePosixPath(path.lstrip("/"))
    return tuple(root / each for each in (below, *below.parents))


def _number(pattern: str, file: Path) -> int | None:
    try:
        found = re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
