"""Find, await and watch the processes that a command has started."""

import os
import subprocess
import time
from pathlib import Path

import pytest


def wait_for(process: "subprocess.Popen[str]", words: str) -> None:
    """Read a process's talk until it says something."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    pytest.fail(f"It ended without saying {words!r}")


def processes_of(folder: Path | str) -> list[int]:
    """List the processes that were started for a folder, or whose command has some words."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in line and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def wait_until_gone(folder: Path | str, seconds: float = 30) -> list[int]:
    """Wait until no process of a folder is left and list those that are."""
    deadline = time.monotonic() + seconds
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left
