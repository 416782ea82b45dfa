"""The promise of the store under torture: no reader sees a wrong, partial or mixed artifact.

Short rounds of what `python -m tests.store.torture` does for as long as one likes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def _torture(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run the program as by hand: it forks, which a process with threads should not."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.store.torture", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, json.loads(ended.stdout.splitlines()[-1]), ended.stderr


def test_rounds_leave_no_violation() -> None:
    """Twins, kills and faults violate nothing of ours, and everything that is done otherwise."""
    code, summary, said = _torture("--rounds", "32", "--control-rounds", "8", "--seed", "1")

    assert (summary["rounds"], summary["violations"]) == (32, 0), said
    assert summary["kills"] > 10
    assert summary["faults"] > 50
    assert all(summary["negative_controls"].values())
    assert code == 0


def test_flipped_transfers_are_never_accepted() -> None:
    """Every bit that flips on the way, up or down, is noticed and made good."""
    code, summary, said = _torture("--flips", "80")

    expected = {"transfers": 80, "flips": 80, "violations": 0, "refused": 0}
    assert (code, summary) == (0, expected), said
