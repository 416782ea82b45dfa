"""The check of real kernels runs the whole chain, and ends well where there is no GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[2]


def _checked(*arguments: str | Path) -> str:
    ended = subprocess.run(
        [sys.executable, CHECKOUT / "benchmarks" / "gpu.py", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return ended.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_check() -> None:
    """One line, and success."""
    assert _checked() == "There is no CUDA device here, so there is nothing to check.\n"


def test_chain_says_what_each_stage_took(tiny_model: Path) -> None:
    """On a tiny model and whatever is here: every stage has its line."""
    said = _checked(
        *("--any-device", "--model", tiny_model, "--train-rows", "40", "--test-rows", "8")
    )
    rows = json.loads(said.splitlines()[-1])["stages"]
    assert [row["stage"] for row in rows] == [
        *("finetune", "merge", "quantize-gptq-4", "quantize-nf4"),
        *("infer-base", "infer-base-own", "infer-adapter", "infer-merged"),
        *("infer-gptq-4", "infer-nf4"),
    ]
    assert all(row["seconds"] > 0 for row in rows)
    assert all(row["tokens_per_second"] for row in rows if row["stage"].startswith("infer"))
