"""What a stage function needs in a test: tiny random models, rows, and a pulse."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CodeGenConfig,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from modelmill.spec.records import Message, Row

Family = Literal[
    "llama",
    "opt",
    "bloom",
    "bloomz",
    "falcon",
    "falcon-rw",
    "codegen",
    "gemma",
    "gpt2",
    "qwen2",
    "mistral",
    "phi",
]
"""`falcon` is as falcon-7b: one key and value for all heads, attention beside the MLP."""

EOS = 1


def make_rows(count: int, seed: int) -> list[Row]:
    """Make text-to-SQL-like rows of very different lengths."""
    draw = random.Random(seed)
    return [
        Row(
            row=number,
            prompt=f"table t{draw.randint(0, 99)}{' column' * draw.randint(0, 12)}\nsql: ",
            completion=f"select column where b = {draw.randint(0, 99)}",
            fields={"n": number},
        )
        for number in range(count)
    ]


def make_texts(word: str, count: int) -> list[Row]:
    """Make texts of very different lengths, of one word, numbers and a separator of lines."""
    draw = random.Random(word)
    return [
        Row(
            row=number,
            prompt="",
            completion=f"{word} {draw.random()}\u2028" * draw.randint(1, 9),
            fields={},
        )
        for number in range(count)
    ]


def make_row(prompt: str, completion: str = "x") -> Row:
    """Make a row of a prompt."""
    return Row(row=0, prompt=prompt, completion=completion, fields={})


def make_conversation(*contents: str, system: str = "") -> Row:
    """Make a conversation of turns that take turns."""
    first = [Message(role="system", content=system)] if system else []
    turns = [
        Message(role="assistant" if place % 2 else "user", content=content)
        for place, content in enumerate(contents)
    ]
    return Row(
        row=0,
        prompt="\n".join(contents[:-1]),
        completion=contents[-1],
        messages=(*first, *turns),
        fields={},
    )


def write_rows(rows: list[Row], path: Path) -> None:
    """Write rows as fetch does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE on the rows; pad is EOS, as in many base models."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator((row.prompt + row.completion for row in make_rows(50, 9)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def make_model(family: Family, folder: Path, **changes: int | bool) -> Path:
    """Write a random bfloat16 model with its tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(family, len(tokenizer), changes))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def made_once(factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """Make a family's model when it is first asked for."""
    made: dict[Family, Path] = {}

    def model_of(family: Family) -> Path:
        if family not in made:
            made[family] = make_model(family, factory.mktemp(family))
        return made[family]

    return model_of


def _config(family: Family, vocabulary: int, changes: dict[str, int | bool]) -> PreTrainedConfig:
    shared: dict[str, int | bool] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "bos_token_id": 0,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
        # Random logits are nearly equal; far apart, they survive another order of adding.
        "initializer_range": 0.2,
        **changes,
    }
    blocks = {"num_hidden_layers": 2, "num_attention_heads": 4}
    positions = {"max_position_embeddings": 256}
    gated = {"intermediate_size": 192, **blocks, **positions}
    grouped = {**gated, "num_key_value_heads": 2}
    old = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
    makers: dict[Family, Callable[[], PreTrainedConfig]] = {
        "llama": lambda: LlamaConfig(**{**grouped, "tie_word_embeddings": True, **shared}),
        "opt": lambda: OPTConfig(
            **{**blocks, **positions, "ffn_dim": 192, "word_embed_proj_dim": 64, "init_std": 0.2},
            **shared,
        ),
        "bloom": lambda: BloomConfig(n_layer=2, n_head=4, **shared),
        "bloomz": lambda: BloomConfig(n_layer=3, n_head=8, **shared),
        "falcon": lambda: FalconConfig(multi_query=True, parallel_attn=True, **blocks, **shared),
        "falcon-rw": lambda: FalconConfig(
            multi_query=False, alibi=True, parallel_attn=False, bias=True, **blocks, **shared
        ),
        "codegen": lambda: CodeGenConfig(rotary_dim=8, **old, **shared),
        "gemma": lambda: GemmaConfig(
            **{**gated, "num_key_value_heads": 1, "head_dim": 32, **shared}
        ),
        "gpt2": lambda: GPT2Config(**old, **shared),
        "qwen2": lambda: Qwen2Config(**grouped, **shared),
        "mistral": lambda: MistralConfig(**grouped, sliding_window=64, **shared),
        "phi": lambda: PhiConfig(**gated, partial_rotary_factor=0.5, **shared),
    }
    return makers[family]()


@dataclass
class RecordingPulse:
    """Remembers what a stage told; asks it to stop after so many tellings."""

    stop_after: int | None = None
    stop_with: Exception | None = None
    told: list[tuple[int, int, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    keep_every: int | None = None
    """Steps between two states; None keeps none."""
    kept: list[Callable[[], None]] = field(default_factory=list)
    on_kept: Callable[[int], None] = lambda _: None
    """Called after each state with their number; may raise, as a stop does."""
    steps_done: int = 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Remember the part's name."""
        self.parts.append(name)
        yield

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Remember how far; stop if it is time."""
        self.told.append((done, total, unit))
        if self.stop_with is not None and len(self.told) == self.stop_after:
            raise self.stop_with

    def save(self) -> None:
        """Accept that the resume folder is consistent."""

    @contextmanager
    def steps(self) -> Iterator[None]:
        """Let nothing interrupt a step."""
        yield

    def is_due(self) -> bool:
        """Count steps."""
        self.steps_done += 1
        return self.keep_every is not None and self.steps_done % self.keep_every == 0

    def keep(self, size_bytes: int, write: Callable[[], None]) -> None:
        """Write the state at once."""
        write()
        self.kept.append(write)
        self.on_kept(len(self.kept))

    def warn(self, sentence: str) -> None:
        """Remember a warning."""
        self.warnings.append(sentence)
