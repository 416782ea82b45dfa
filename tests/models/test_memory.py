"""What is freed is given back to the system."""

import os
import platform
import subprocess
import sys
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


LARGE = """
import sys
from modelmill.models.memory import map_alone
from tests.models.test_memory import resident_bytes
if sys.argv[1:]:
    map_alone(2**20)
freed = b"." * 2**24
del freed  # by default, blocks of that size are not mapped any more
blocks, behind = [], []
for _ in range(32):
    blocks.append(b"." * 2**21)
    behind.append(b"." * 2**17)
full_bytes = resident_bytes()
blocks.clear()
print(full_bytes - resident_bytes())
"""
"""Says in a process of its own, for the allocator is told for good, what freeing 64 MiB gives."""

glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the allocator of another C library"
)


@glibc
@pytest.mark.parametrize(("given", "is_given_back"), [((), False), (("alone",), True)])
def test_large_block_between_live_ones_is_given_back_where_it_is_mapped_alone(
    given: tuple[str, ...], is_given_back: bool
) -> None:
    """By default such blocks lie side by side as soon as one has been freed."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE, *given], capture_output=True, check=True, text=True
    )
    assert (int(done.stdout) > 2**25) is is_given_back


@glibc
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
