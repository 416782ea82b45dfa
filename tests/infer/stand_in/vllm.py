"""Stands in for vLLM where it cannot be installed: its two classes, by transformers.

`tests/vllm` holds the arguments against vLLM's own classes.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class SamplingParams:
    """How to answer."""

    def __init__(
        self,
        *,
        temperature: float,
        max_tokens: int,
        ignore_eos: bool,
        stop_token_ids: Sequence[int],
        stop: Sequence[str],
        detokenize: bool,
    ) -> None:
        """Take greedy answers only."""
        assert temperature == 0
        assert ignore_eos
        assert detokenize is bool(stop)
        self.max_tokens = max_tokens
        self.stop_token_ids = stop_token_ids
        self.stop = stop


class LLM:
    """One model."""

    def __init__(self, *, model: str, dtype: str, max_model_len: int, **_: Any) -> None:
        """Open it."""
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._longest = max_model_len

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], sampling: SamplingParams, *, use_tqdm: bool
    ) -> list[Any]:
        """Answer prompts in their order."""
        assert not use_tqdm
        answers = [self._answer(each["prompt_token_ids"], sampling) for each in prompts]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=each)]) for each in answers]

    def _answer(self, ids: list[int], sampling: SamplingParams) -> list[int]:
        assert len(ids) + sampling.max_tokens <= self._longest
        new: list[int] = []
        with torch.inference_mode():
            while len(new) < sampling.max_tokens and not self._has_ended(new, sampling):
                new.append(int(self._model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        return new

    def _has_ended(self, new: list[int], sampling: SamplingParams) -> bool:
        text = self._tokenizer.decode(new)
        return any(each in new for each in sampling.stop_token_ids) or any(
            each in text for each in sampling.stop
        )
