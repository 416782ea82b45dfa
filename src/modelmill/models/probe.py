"""The prompts two models are compared on, and the comparison.

Knows token ids and logits; must not know which two models are compared or why.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from pydantic import ConfigDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modelmill.models.prompt import EncodedRow
from modelmill.spec.batching import (
    FEW_PROMPTS,
    FEW_TOKENS,
    PROBE_POSITIONS,
    PROBE_PROMPTS,
)
from modelmill.spec.records import Record

PROBE: Final = "probe.jsonl"
LONGEST: Final = 256
"""Tokens of one prompt; keeps the comparison in seconds and 0.1 GB of memory."""
TEXTS: Final = (
    "The ship had left the harbour before sunrise, and nobody on the pier had seen who was on it.",
    "Question: how many orders were placed in March by customers from Spain? Answer:",
    "SELECT name, price FROM products WHERE price < 20 ORDER BY price DESC LIMIT 5;",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "User: Can you tell me why the sky is blue?\nAssistant: Light of short wavelengths is",
    "Die Prüfung ist am 14. Mai um 9:30 Uhr; wer krank ist, schreibt sie im Juni nach.",
    '{"id": 17, "tags": ["new", "red"], "price": 12.5, "in_stock": true}',
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144",
)
"""Prose, questions, code, a chat, another language, data and numbers."""


class ProbePrompt(Record):
    """One prompt, as ids, so that no tokenizer can come between two models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_ids: tuple[int, ...]


def save_probe(rows: Sequence[EncodedRow], folder: Path) -> None:
    """Write the first rows as probe prompts; of longer rows the beginning."""
    with (folder / PROBE).open("w", encoding="utf-8") as lines:
        for row in rows[:PROBE_PROMPTS]:
            prompt = ProbePrompt(input_ids=tuple(row.input_ids[:LONGEST]))
            lines.write(prompt.model_dump_json() + "\n")


def load_probe(folder: Path) -> tuple[ProbePrompt, ...]:
    """Read the probe prompts of a fine-tune."""
    with (folder / PROBE).open("rb") as lines:
        return tuple(ProbePrompt.model_validate_json(line) for line in lines)


def built_in_probe(tokenizer: PreTrainedTokenizerBase) -> tuple[ProbePrompt, ...]:
    """Make probe prompts of ordinary text, for an adapter that nothing is known about."""
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    return tuple(ProbePrompt(input_ids=tuple(ids[:LONGEST])) for ids in encoded)


def shortened(prompts: Sequence[ProbePrompt]) -> tuple[ProbePrompt, ...]:
    """Take a few prompts and of each the end, where every tensor is proved on its own.

    Logits then only show that nothing is forgotten between tensors, and three models answer.
    """
    return tuple(
        ProbePrompt(input_ids=prompt.input_ids[-FEW_TOKENS:]) for prompt in prompts[:FEW_PROMPTS]
    )


@torch.inference_mode()
def probe_logits(model: PreTrainedModel, prompts: Sequence[ProbePrompt]) -> torch.Tensor:
    """Compute the logits at the prompts' last positions: float32, (positions, vocabulary).

    One prompt at a time, so that padding cannot make two models differ.
    """
    logits = []
    for prompt in prompts:
        ids = torch.tensor([prompt.input_ids], device=model.device)
        logits.append(
            model(input_ids=ids, use_cache=False).logits[0, -PROBE_POSITIONS:].float().cpu()
        )
    return torch.cat(logits)


def distance(logits: torch.Tensor, other: torch.Tensor) -> float:
    """Measure how far two logits are apart: the Euclidean norm over all positions."""
    # A position at a time: over a large vocabulary all of them in float64 take a gigabyte.
    return math.hypot(
        *(
            float(torch.linalg.vector_norm(mine - others, dtype=torch.float64))
            for mine, others in zip(logits, other.expand_as(logits), strict=True)
        )
    )


def norm(logits: torch.Tensor) -> float:
    """Measure how large logits are: the Euclidean norm over all positions."""
    return distance(logits, torch.zeros(()))
