"""Greedy answers by vLLM, in a process of its own: it takes the device, and gives it back.

Answers prompts as `generate.Generator` does; `models/vllm` is the other side.
"""

import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from transformers import PreTrainedTokenizerBase

from modelmill.models.prompt import Contract
from modelmill.models.vllm.job import Done, Job
from modelmill.spec.closed import Dtype
from modelmill.spec.errors import DeviceFault
from modelmill.stages.infer.batches import answer_of
from modelmill.stages.infer.generate import Answered, decode

logger = logging.getLogger(__name__)

PROCESS: Final = "modelmill.models.vllm.process"

ENVIRONMENT: Final[Mapping[str, str]] = {
    # One process to wait for and to end; its device needs no other.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

_LOOK_SECONDS: Final = 0.5
_TAIL_LINES: Final = 40
_REASON: Final = re.compile(r"^[\w.]*(Error|Exception): .+", re.MULTILINE)


def installed() -> str | None:
    """Say which version of vLLM is beside us; None for none."""
    try:
        return version("vllm")
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class VllmEngine:
    """Answers prompts with one model and one set of rules."""

    folder: Path
    """Of the model's files."""
    dtype: Dtype
    tokenizer: PreTrainedTokenizerBase
    contract: Contract
    max_new_tokens: int
    stop_text: str | None
    memory_share: float
    """Of the device's memory."""
    limit_seconds: float
    """After them it has failed."""
    waiting: Callable[[], None] = lambda: None
    """Called again and again meanwhile; what it raises ends the process."""

    def answer(self, prompts: list[list[int]]) -> Answered:
        """Generate greedily until every prompt is answered.

        Raises:
            DeviceFault: vLLM could not, and why.
        """
        job = Job(
            model=str(self.folder),
            dtype=self.dtype,
            prompts=tuple(map(tuple, prompts)),
            max_new_tokens=self.max_new_tokens,
            eos=tuple(self.contract.eos),
            stop_text=self.stop_text,
            memory_share=self.memory_share,
        )
        with tempfile.TemporaryDirectory(prefix="vllm-") as folder:
            done = self._run(job, Path(folder))
        stops = frozenset(self.contract.eos)
        answers = [answer_of(list(each), stops) for each in done.answers]
        return Answered(
            texts=decode(self.tokenizer, [ids for ids, _ in answers]),
            tokens=[count for _, count in answers],
            seconds=done.seconds,
        )

    def _run(self, job: Job, folder: Path) -> Done:
        asked, told, log = folder / "job.json", folder / "done.json", folder / "log"
        asked.write_text(job.model_dump_json(), encoding="utf-8")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", PROCESS, asked, told],
                env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                in_time = self._wait(process)
            finally:
                process.kill()
                process.wait()
        said = log.read_text(encoding="utf-8", errors="replace")
        if not in_time or process.returncode != 0:
            logger.warning("vLLM said:\n%s", "\n".join(said.splitlines()[-_TAIL_LINES:]))
            late = f"not done within {self.limit_seconds:.0f} s"
            raise DeviceFault(_reason(said, process.returncode) if in_time else late)
        return Done.model_validate_json(told.read_bytes())

    def _wait(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the end; False where that takes too long."""
        until = time.monotonic() + self.limit_seconds
        while time.monotonic() < until:
            self.waiting()
            try:
                process.wait(_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            self.waiting()  # asked to stop is not failed
            return True
        return False


def _reason(said: str, code: int) -> str:
    """Find the last error that a log tells."""
    found = [match.group() for match in _REASON.finditer(said)]
    return found[-1] if found else f"it ended with {code}"
