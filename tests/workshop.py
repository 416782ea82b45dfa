"""A folder with a model of one tensor, rows, a run file, and a store that all commands share.

No model library anywhere: stages that need one are played by `stand_in`.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STAND_IN = Path(__file__).with_name("stand_in.py")

RUN = """\
model: {source: MODEL}
data:
  train: train.jsonl
  test: TEST
  template: {prompt: "{question}", completion: "{answer}"}
"""

Answer = subprocess.CompletedProcess[str]


def safetensors(header: dict[str, Any], body_bytes: int) -> bytes:
    """Write a safetensors file with zeros for weights."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(body_bytes)


ONE_TENSOR = {"w": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}


def write_model(folder: Path) -> Path:
    """Write the smallest folder that fetch accepts as a model."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(safetensors(ONE_TENSOR, 64))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}', encoding="utf-8")
    return folder


def write_rows(path: Path, count: int) -> Path:
    """Write rows that have all fields."""
    rows = ({"question": f"{path.stem} {n}", "answer": f"a{n}"} for n in range(count))
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Workshop:
    """Runs commands in a folder, against the embedded store of that folder."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """Where environments and store are."""
        return self.folder / ".modelmill"

    def lay_out(self) -> None:
        """Write a good model, good rows, a run file and the environments."""
        write_model(self.folder / "model")
        write_rows(self.folder / "train.jsonl", 20)
        write_rows(self.folder / "test.jsonl", 12)
        self.write_run("run.yaml")
        self.lay_out_environments()

    def lay_out_environments(self) -> None:
        """Make environments whose Python is the stand-in."""
        for name in ("light", "train", "quantize"):
            self.write_environment(name, f'exec "{sys.executable}" "{STAND_IN}"')

    def write_run(
        self, name: str, model: str = "model", test: str = "test.jsonl", more: str = ""
    ) -> Path:
        """Write a run file, with more lines at its end."""
        path = self.folder / name
        text = RUN.replace("MODEL", model).replace("TEST", test)
        path.write_text(text + more, encoding="utf-8")
        return path

    def write_environment(self, name: str, script: str) -> None:
        """Make an environment whose Python is a shell script."""
        python = self.home / "environments" / name / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        python.chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Start a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "modelmill", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def modelmill(self, *arguments: str, **environment: str) -> Answer:
        """Run a command to its end."""
        process = self.start(*arguments, **environment)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def read(self, *arguments: str) -> Any:
        """Run a command that prints JSON."""
        answer = self.modelmill(*arguments, "-o", "json")
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    def states(self, run: str) -> dict[str, str]:
        """Read where the stages of a run are."""
        return {row["stage"]: row["state"] for row in self.read("status", run)[0]["stages"]}
