"""VLLM's own code, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / ".modelmill/vllm"

Ask = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="session")
def source() -> Path:
    """Give the folder of vLLM's source; without it these tests fail, and do not skip."""
    assert SOURCE.is_dir(), "`make test-vllm` fetches vLLM's source first"
    return SOURCE


@pytest.fixture(scope="session")
def ask(source: Path) -> Iterator[Ask]:
    """Give a function that has vLLM's code answer a question."""
    script = Path(__file__).with_name("ask.py")
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), str(source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        pipe, answers = process.stdin, process.stdout

        def ask(question: dict[str, Any]) -> Any:
            pipe.write(f"{json.dumps(question)}\n")
            pipe.flush()
            answer = answers.readline()
            assert answer, "the process has ended; its errors are above"
            return json.loads(answer)

        yield ask
        pipe.close()
