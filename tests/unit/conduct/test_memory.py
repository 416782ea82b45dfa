"""When a SIGKILL is the kernel's, for memory."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modelmill.conduct import memory
from modelmill.conduct.memory import Memory

Kills = Callable[[int], None]


@pytest.fixture
def kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kills:
    """Say how many processes the kernel has killed for memory."""
    counts = tmp_path / "vmstat"
    monkeypatch.setattr(memory, "VMSTAT", counts)

    def kill(count: int) -> None:
        counts.write_text(f"nr_free_pages 7\noom_kill {count}\n", encoding="utf-8")

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
