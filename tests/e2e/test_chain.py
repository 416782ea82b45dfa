"""A tiny random llama goes through every stage as real processes on a real store."""

import json
import os
import signal
from pathlib import Path

from ..processes import wait_for, wait_until_gone
from .conftest import Checkout

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


def test_damaged_artifact_is_refused_and_made_again(checkout: Checkout) -> None:
    """Bytes that changed in the store end in 65 with the key, and `--again` mends it."""
    listed = checkout.modelmill("artifacts", "ls", "-o", "json")
    merged = next(a for a in json.loads(listed.stdout) if a["stage"] == "merge")
    _damage(checkout, merged["key"])

    verified = checkout.modelmill("artifacts", "verify", merged["key"])
    assert verified.returncode == 65
    assert "model.safetensors" in verified.stdout

    ended = checkout.modelmill("run", "run.yaml", "--again", "infer-merged")
    assert ended.returncode == 65
    assert merged["key"] in checkout.modelmill("logs", "tiny", "infer-merged").stdout
    assert "Traceback" not in ended.stderr


def _damage(checkout: Checkout, key: str) -> None:
    """Flip a byte of an artifact's weights, as a failing disk would."""
    from modelmill.conduct.place import opened
    from modelmill.store.artifact import attempt_prefix, read_manifest

    with opened(checkout.folder / ".modelmill", None) as place:
        committed = read_manifest(place.store, "merge", key)
        assert committed is not None
        manifest = committed.manifest
        name = f"{attempt_prefix('merge', key, manifest.attempt)}/model.safetensors"
        stored = place.store.get(name)
        assert stored is not None
        place.store.put(name, stored.body[:-1] + bytes([stored.body[-1] ^ 1]))


def test_nothing_is_left_running(checkout: Checkout) -> None:
    """Neither a stage nor the store outlives the command that started it."""
    assert wait_until_gone(checkout.folder) == []
    assert os.environ.get("AWS_ACCESS_KEY_ID") is None
