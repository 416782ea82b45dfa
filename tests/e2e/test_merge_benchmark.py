"""The benchmark of merging runs, in a size for tests."""

import json
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def test_merge_from_store_to_store_equals_peft_bit_for_bit() -> None:
    """As a process it commits what merge_and_unload makes, proved, with no file between."""
    ended = subprocess.run(
        [
            *(sys.executable, CHECKOUT / "benchmarks" / "merge.py"),
            *("--parameters", "tiny", "--no-room", "--python", sys.executable),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = json.loads(ended.stdout.splitlines()[-1])
    assert said["bit_exact"] is True
    assert said["effective"]["merged"] == "tensor by tensor"
    assert said["effective"]["tensors_checked"] == {"added": 14, "copied": 7}
    assert said["effective"]["weights"] == "in the store, without files"
    assert said["time_ratio"] > 0
    assert said["memory_ratio"] > 0
