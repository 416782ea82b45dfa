"""Every further example goes from its own run file to a report, with a tiny random model."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..processes import processes_of
from .conftest import CHECKOUT, Checkout, row

CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

SMALL = (
    *("--set", "infer.max_new_tokens=4", "--set", "infer.batch_size=4", "--set", "infer.shots=1"),
    *("--set", "data.max_length=192", "--set", "gate.max_worse=100"),
)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Path]:
    """Copy the examples and put a tiny model and few rows where `prepare.sh` puts real ones."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("chat", "own-adapter", "quantize-only"):
        ignored = shutil.ignore_patterns("data", "adapter", "model")
        shutil.copytree(CHECKOUT / "examples" / name, folder / name, ignore=ignored)
    shared = folder / "text-to-sql"
    (shared / "data").mkdir(parents=True)
    shutil.copytree(tiny_model, shared / "model")
    (shared / "model" / "chat_template.jinja").write_text(CHATML)
    for name, numbers in (("train", range(24)), ("test", range(24, 32))):
        lines = "\n".join(json.dumps(row(number // 2)) for number in numbers)
        (shared / "data" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / ".modelmill").mkdir()
    environments = CHECKOUT / ".modelmill" / "environments"
    (folder / ".modelmill" / "environments").symlink_to(environments)
    (folder / "profile.yaml").write_text("max_parallel: 2\n")
    yield folder
    for pid in processes_of(folder):
        os.kill(pid, signal.SIGKILL)


def run(folder: Path, example: str, *more: str) -> dict[str, Any]:
    """Run an example and read its report."""
    asked = ("run", f"{example}/run.yaml", "--profile", "profile.yaml", "--name", example)
    ended = Checkout(folder).modelmill(*asked, *SMALL, *more, "-o", "json")
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def models(report: dict[str, Any]) -> list[str]:
    """List the rows of the table, each of which must have a likelihood of all test rows."""
    assert all(model["metrics"]["nll"]["n"] == len(ROWS) for model in report["models"])
    return [model["model"] for model in report["models"]]


ROWS = range(8)


def test_conversations_from_data_to_report(examples: Path) -> None:
    """Two questions about a table are one conversation, judged by its last answer."""
    chat = examples / "chat"
    command = [sys.executable, str(chat / "make_data.py"), "--out", str(chat / "data")]
    subprocess.run([*command, "--rows", str(examples / "text-to-sql" / "data")], check=True)
    report = run(examples, "chat", "--set", "finetune.num_train_epochs=1")
    assert [model["model"] for model in report["models"]] == ["base", "merged", "nf4"]
    base = report["models"][0]
    assert set(base["prompts"]) == {"contract", "chat"}
    assert base["metrics"]["nll"]["n"] == 4
    assert set(base["slices"]) == {"2"}
    finetune = next(each for each in report["stages"] if each["stage"] == "finetune")
    assert finetune["figures"]["train_rows"] + finetune["figures"]["eval_rows"] == 12


def test_own_adapter_from_a_script_to_report(examples: Path) -> None:
    """What PEFT saved is merged, and unmerged it answers alike."""
    own = examples / "own-adapter"
    shared = examples / "text-to-sql"
    train = CHECKOUT / ".modelmill" / "environments" / "train" / "bin" / "python"
    subprocess.run(
        [
            *(str(train), str(own / "make_adapter.py"), "--steps", "8"),
            *("--model", str(shared / "model"), "--rows", str(shared / "data" / "train.jsonl")),
            *("--out", str(own / "adapter")),
        ],
        check=True,
        capture_output=True,
    )
    report = run(examples, "own-adapter")
    assert models(report) == ["base", "adapter", "merged", "nf4"]
    assert "finetune" not in [stage["stage"] for stage in report["stages"]]
    nll = {model["model"]: model["metrics"]["nll"]["value"] for model in report["models"]}
    assert nll["adapter"] == pytest.approx(nll["merged"], abs=0.02)
    assert abs(nll["adapter"] - nll["base"]) > 0.02


def test_model_that_nothing_was_done_to_is_quantized(examples: Path) -> None:
    """The base is what the others are held against."""
    tokens = [f"quantize.{place}.calibration.tokens=512" for place in (0, 1)]
    report = run(examples, "quantize-only", *("--set", tokens[0], "--set", tokens[1]))
    assert models(report) == ["base", "gptq-8", "gptq-4", "nf4"]
    assert report["gate"]["against"] == "base"
    base, copy = (model["metrics"]["nll"]["value"] for model in report["models"][:2])
    assert copy == pytest.approx(base, abs=0.02)
    sizes = [model["size_bytes"] for model in report["models"]]
    assert sizes[0] > sizes[1] > sizes[2]
