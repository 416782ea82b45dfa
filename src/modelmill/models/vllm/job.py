"""What the process with vLLM is told, what it tells, and how that is said in vLLM's words.

Imports nothing of vLLM: both sides read this.
"""

from collections.abc import Mapping

from pydantic import JsonValue

from modelmill.spec.closed import Dtype
from modelmill.spec.records import Record


class Job(Record):
    """What the other process is told."""

    model: str
    dtype: Dtype
    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    eos: tuple[int, ...]
    stop_text: str | None
    memory_share: float


class Done(Record):
    """What it found."""

    answers: tuple[tuple[int, ...], ...]
    """New ids, up to the stop and with it."""
    seconds: float
    """Of generation, all prompts at once; loading and compiling are not in it."""


def engine_arguments(job: Job) -> Mapping[str, JsonValue]:
    """Say how vLLM's `LLM` is made: for greedy answers by ids, and nothing from a hub."""
    return {
        "model": job.model,
        "dtype": job.dtype,
        "max_model_len": max(map(len, job.prompts)) + job.max_new_tokens,
        "gpu_memory_utilization": job.memory_share,
        # What a model's own generation_config says would change the comparison.
        "generation_config": "vllm",
        # A text to stop at is looked for in text.
        "skip_tokenizer_init": job.stop_text is None,
        "seed": 0,
    }


def sampling_arguments(job: Job) -> Mapping[str, JsonValue]:
    """Say how vLLM's `SamplingParams` are made: the contract's ends and no other."""
    return {
        "temperature": 0.0,
        "max_tokens": job.max_new_tokens,
        "ignore_eos": True,
        "stop_token_ids": list(job.eos),
        "stop": [] if job.stop_text is None else [job.stop_text],
        "detokenize": job.stop_text is not None,
    }
