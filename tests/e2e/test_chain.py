"""A tiny random llama goes through every stage as real processes on a real store."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from ..processes import wait_for, wait_until_gone
from .conftest import CHECKOUT, Checkout

STAGES = [
    "fetch-model",
    "fetch-data",
    "fetch-test",
    "finetune",
    "merge",
    "quantize-gptq-4",
    "quantize-nf4",
    "infer-base",
    "infer-base-own",
    "infer-merged",
    "infer-gptq-4",
    "infer-nf4",
]


def test_chain_from_interruption_to_report(checkout: Checkout) -> None:
    """Interrupted twice, it goes on; at the end every stage ran to a commit once."""
    process = checkout.start("run", "run.yaml", "--profile", "profile.yaml")
    wait_for(process, "finetune started")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert wait_until_gone(checkout.folder) == []

    process = checkout.start("run", "run.yaml", "--profile", "profile.yaml")
    wait_for(process, "merge started")
    process.kill()
    process.communicate()
    assert wait_until_gone(checkout.folder) == []

    ended = checkout.modelmill("run", "run.yaml", "--profile", "profile.yaml")
    assert ended.returncode == 0, ended.stderr
    html = Path(ended.stdout.splitlines()[-1])
    assert html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    report = checkout.report()
    assert [stage["stage"] for stage in report["stages"]] == STAGES
    assert {stage["status"] for stage in report["stages"]} == {"done"}
    attempts = {stage["stage"]: stage["attempts"] for stage in report["stages"]}
    assert attempts["fetch-model"] == 1
    assert attempts["finetune"] == 2
    assert attempts["infer-nf4"] == 1
    assert [model["model"] for model in report["models"]] == ["base", "merged", "gptq-4", "nf4"]
    sizes = {model["model"]: model["size_bytes"] for model in report["models"]}
    assert sizes["gptq-4"] < sizes["merged"]
    for model in report["models"]:
        nll = model["metrics"]["nll"]
        assert nll["low"] <= nll["value"] <= nll["high"]
        assert nll["n"] == 12


def test_second_run_computes_nothing(checkout: Checkout) -> None:
    """Everything is committed, so nothing is started."""
    before = checkout.started()
    ended = checkout.modelmill("run", "run.yaml", "--profile", "profile.yaml")
    assert ended.returncode == 0, ended.stderr
    assert checkout.started() == before


def test_other_run_adopts_what_is_equal(checkout: Checkout) -> None:
    """Another run with another quantization computes the quantization and its answers."""
    ended = checkout.modelmill(
        *("run", "run.yaml", "--name", "other"),
        *("--set", "quantize=[{method: bitsandbytes, double_quant: false}]"),
        *("--set", "gate=null", "-o", "json"),
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    computed = [stage["stage"] for stage in report["stages"] if stage["status"] == "done"]
    assert computed == ["quantize-nf4", "infer-nf4"]
    assert {s["adopted_from"] for s in report["stages"] if s["status"] == "adopted"} == {"tiny"}


@pytest.mark.parametrize(
    ("model", "environment"), [("merged", "train"), ("adapter", "train"), ("nf4", "quantize")]
)
def test_exported_model_opens_as_its_card_says(
    checkout: Checkout, model: str, environment: str
) -> None:
    """The program in the card runs as it stands, beside the folder, and answers."""
    ended = checkout.modelmill("export", "tiny", model, f"exports/sql-{model}")
    assert ended.returncode == 0, ended.stderr
    folder = Path(ended.stdout.strip())
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    card = (folder / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    base = folder.parent / "base"
    base.unlink(missing_ok=True)
    base.symlink_to(checkout.folder / "model")
    python = CHECKOUT / ".modelmill" / "environments" / environment / "bin" / "python"
    answered = subprocess.run(
        [python, "-c", program],
        cwd=folder.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.strip()


def test_nothing_is_left_running(checkout: Checkout) -> None:
    """Neither a stage nor the store outlives the command that started it."""
    assert wait_until_gone(checkout.folder) == []
    assert os.environ.get("AWS_ACCESS_KEY_ID") is None
