"""The environment that auto-gptq still runs in."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".modelmill/environments/auto-gptq/bin/python"


@pytest.fixture
def read() -> Callable[[Path, Path], dict[str, object]]:
    """Give a function that has auto-gptq compute and compare."""

    def read(quantized: Path, plain: Path) -> dict[str, object]:
        script = Path(__file__).with_name("read.py")
        done = subprocess.run(
            [str(PYTHON), "-W", "ignore", str(script), str(quantized), str(plain)],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return told

    return read
