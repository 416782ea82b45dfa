"""The example that benchmarks run on: its model, rows of its making, and how they are asked."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[1]
EXAMPLE: Final = CHECKOUT / "examples" / "text-to-sql"
MODEL: Final = EXAMPLE / "model"
HOME: Final = CHECKOUT / ".modelmill"

TEMPLATE: Final[Mapping[str, str]] = {
    "prompt": "### Schema\n{context}\n### Question\n{question}\n### SQL\n",
    "completion": "{answer}",
}
"""As in the example's run.yaml and in `bare/prompt.py`."""


def python(environment: str) -> Path:
    """Name the interpreter of one of the stages' environments."""
    return HOME / "environments" / environment / "bin" / "python"


def prepare_model() -> None:
    """Make the model's folder, unless it is there."""
    subprocess.run([EXAMPLE / "prepare.sh"], check=True)


def make_data(folder: Path, train_rows: int, test_rows: int) -> None:
    """Write `train.jsonl` and `test.jsonl`."""
    subprocess.run(
        [
            *(sys.executable, EXAMPLE / "make_data.py", "--out", folder),
            *("--train-rows", str(train_rows), "--test-rows", str(test_rows)),
        ],
        check=True,
    )
