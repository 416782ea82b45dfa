"""What is freed is given back to the system."""

import os
import platform
from pathlib import Path

import pytest

from modelmill.models.memory import trim_heap

BLOCKS = 20_000
BLOCK_BYTES = 4000
"""Below what glibc maps alone, above what Python keeps in pools of its own."""


def resident_bytes() -> int:
    """Read what of this process is in memory now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of another C library")
def test_pages_of_freed_blocks_before_a_live_one_are_given_back() -> None:
    """Freeing alone gives back little of them, because something lies behind."""
    blocks = [b"." * BLOCK_BYTES for _ in range(BLOCKS)]
    behind = b"." * BLOCK_BYTES
    full_bytes = resident_bytes()
    del blocks
    freed_bytes = full_bytes - resident_bytes()
    trim_heap()
    given_bytes = full_bytes - resident_bytes()
    assert behind
    assert freed_bytes < BLOCKS * BLOCK_BYTES / 2
    assert given_bytes > BLOCKS * BLOCK_BYTES / 2
