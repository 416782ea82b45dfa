"""A tiny random llama, its tokenizer and data, and the command that runs the chain on them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelmill.store.embedded import EmbeddedStore

from ..processes import processes_of

CHECKOUT = Path(__file__).parents[2]

RUN = """\
model: {source: model, note: "random weights"}
data:
  train: train.jsonl
  eval: 0.1
  test: test.jsonl
  template:
    prompt: "### Schema\\n{context}\\n### Question\\n{question}\\n### SQL\\n"
    completion: "{answer}"
  max_length: 128
finetune: {r: 4, num_train_epochs: 1, batch_size: 8, learning_rate: 1e-2}
quantize:
  - {method: gptq, bits: 4, calibration: {tokens: 1024}}
  - {method: bitsandbytes}
infer:
  max_new_tokens: 4
  batch_size: 4
  shots: 1
  metrics: {nll: {}, exact_match: {}, sql_execution: {schema: context}}
gate: {models: [gptq-4, nf4], max_worse: 100}
"""


@dataclass(frozen=True)
class Checkout:
    """A folder with a run file, as a user has one."""

    folder: Path

    def command(self, *arguments: str) -> list[str]:
        """Write a command line."""
        return [sys.executable, "-m", "modelmill", *arguments]

    def modelmill(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command whose talk can be read while it works."""
        return subprocess.Popen(
            self.command(*arguments), cwd=self.folder, stderr=subprocess.PIPE, text=True
        )

    def report(self) -> dict[str, Any]:
        """Read the newest report."""
        found: dict[str, Any] = json.loads(
            (self.folder / "reports" / "tiny" / "report.json").read_text(encoding="utf-8")
        )
        return found

    def started(self) -> list[str]:
        """List every stage that any command so far has started, by its logs."""
        ended = self.modelmill("status", "tiny", "-o", "json")
        rows = json.loads(ended.stdout)[0]["stages"]
        return [row["stage"] for row in rows for _ in range(row["attempts"])]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """Keep a store open, and tell this process where it is."""
    with (
        EmbeddedStore(tmp_path_factory.mktemp("embedded") / "store") as embedded,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in embedded.environment.items():
            patch.setenv(name, value)
        yield embedded


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random llama with a tokenizer trained on the data."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "model"
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator((json.dumps(row(n)) for n in range(60)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def row(number: int) -> dict[str, str]:
    """Make one example."""
    return {
        "context": f"CREATE TABLE t{number} (a INTEGER, b TEXT)",
        "question": f"Which a has b x{number}?",
        "answer": f"SELECT a FROM t{number} WHERE b = 'x{number}'",  # noqa: S608 - data
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Checkout]:
    """Lay out what a user has, with the environments of this checkout."""
    folder = tmp_path_factory.mktemp("e2e") / "tiny"
    folder.mkdir()
    (folder / "model").symlink_to(tiny_model)
    for name, numbers in (("train", range(40)), ("test", range(40, 52))):
        lines = "\n".join(json.dumps(row(number)) for number in numbers)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "run.yaml").write_text(RUN, encoding="utf-8")
    (folder / "profile.yaml").write_text("max_parallel: 2\n", encoding="utf-8")
    home = folder / ".modelmill"
    home.mkdir()
    (home / "environments").symlink_to(CHECKOUT / ".modelmill" / "environments")
    yield Checkout(folder)
    for pid in processes_of(folder):
        os.kill(pid, signal.SIGKILL)
