"""When a SIGKILL is the kernel's, for memory."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modelmill.store import memory
from modelmill.store.memory import Memory

Kills = Callable[[int], None]


def write(file: Path, text: str) -> None:
    """Write what the kernel would show."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a machine with 8 GiB and without control groups, where this process took 1 GiB."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    write(tmp_path / "proc/meminfo", f"MemTotal: {8 * 2**20} kB\n")
    write(tmp_path / f"proc/{os.getpid()}/status", f"VmHWM:\t {2**20} kB\n")
    return tmp_path


@pytest.fixture
def kills(machine: Path) -> Kills:
    """Say how many processes the kernel has killed for memory."""

    def kill(count: int) -> None:
        write(machine / "proc/vmstat", f"nr_free_pages 7\noom_kill {count}\n")

    kill(3)
    return kill


def test_kill_is_told_though_the_process_was_looked_at_while_it_died(kills: Kills) -> None:
    """The kernel counts first; what it kills may still be there at the next look."""
    seen = Memory(os.getpid())
    kills(4)
    seen.look()
    assert seen.is_spent()


def test_kill_of_another_process_is_forgotten(
    kills: Kills, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lives so long after it was not the one."""
    monkeypatch.setattr(memory, "DYING_SECONDS", 0)
    seen = Memory(os.getpid())
    kills(4)
    seen.look()
    seen.look()
    assert not seen.is_spent()


V1 = ("4:memory:/pods/a\n0::/other\n", "memory/pods/a/memory.oom_control", "memory.limit_in_bytes")
V1_BELOW = (V1[0], "memory/memory.oom_control", V1[2])
V2 = ("0::/pods/a\n", "pods/a/memory.events", "memory.max")
V2_ABOVE = (V2[0], "pods/memory.events", V2[2])
V2_BELOW = ("0::/\n", "memory.events", V2[2])


@pytest.mark.parametrize(("groups", "counts", "limit"), [V1, V1_BELOW, V2, V2_ABOVE, V2_BELOW])
def test_kills_of_the_own_control_group_count_and_no_others(
    machine: Path, kills: Kills, *, groups: str, counts: str, limit: str
) -> None:
    """Wherever the group is seen from; what others are killed for on the machine is theirs."""
    write(machine / f"proc/{os.getpid()}/cgroup", groups)
    file = machine / "cgroup" / counts
    write(file, "oom_kill_disable 0\noom_kill 5\noom_group_kill 0\n")
    write(file.with_name(limit), f"{2 * 2**30}\n")
    seen, movable = Memory(os.getpid(), stays=True), Memory(os.getpid())
    seen.look()
    kills(4)
    assert not seen.is_spent()
    assert movable.is_spent(), "it may be in another group by now"
    write(file, "oom_kill_disable 0\noom_kill 6\noom_group_kill 0\n")
    assert seen.is_spent()
    assert seen.used_words() == "it used at least 1.0 of 2.0 GiB"


def test_group_without_a_limit_has_what_the_machine_has(machine: Path, kills: Kills) -> None:
    """`max` is no number."""
    write(machine / f"proc/{os.getpid()}/cgroup", "0::/\n")
    write(machine / "cgroup/memory.max", "max\n")
    assert Memory(os.getpid()).used_words().endswith("of 8.0 GiB")


def test_nobody_counts_where_there_is_nothing_to_read(machine: Path) -> None:
    """A kill is then nobody's for sure."""
    seen = Memory(os.getpid())
    assert not seen.is_counted
    assert not seen.is_spent()
