"""Run commands on a terminal, as a person does, and see every byte they write to it."""

import os
import pty
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ESCAPE = b"\x1b"
"""Begins whatever moves the cursor or changes colours."""


def on_a_terminal(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> tuple[int, bytes]:
    """Run a command whose input, output and talk are one terminal.

    Returns:
        Its exit code, and what the terminal was sent.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    return process.wait(), shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:
        # Linux says so once nobody holds the other end any more.
        return b""
