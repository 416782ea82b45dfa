"""Which number format to train in; on a CPU decided by a measurement and not by its name.

The same CPU family trains in bfloat16 twice as fast or five times as slow as in float32,
depending on the generation and on which backward kernels the library has for it.
Knows torch and one device; must not know models.
"""

import time
from typing import Final, Literal

import torch
from torch import nn
from torch.nn import functional

Asked = Literal["auto", "bfloat16", "float16", "float32"]

BUDGET_SECONDS: Final = 1.2
CLEARLY_FASTER: Final = 2.0
"""The block holds only what gains from half precision: on an EPYC with AVX512-BF16 it is 1.5
times as fast, a whole fine-tune of 135 M 1.2 times, and its eval loss a little worse (0.65
instead of 0.62 after 4 steps)."""

_BATCH, _LENGTH, _HEADS, _WIDTH, _INNER, _RANK = 4, 120, 9, 576, 1536, 16
"""The shapes of one block of a 135 M llama at the default micro-batch."""

DTYPES: Final = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def choose_precision(asked: Asked, device: torch.device) -> tuple[torch.dtype, str]:
    """Choose the compute dtype for training, and say why.

    `auto` takes half precision on a GPU.  On a CPU it trains one adapter block for about a
    second, in float32 and in half precision under autocast, and takes what is clearly faster.
    """
    if asked != "auto":
        return DTYPES[asked], "asked for"
    half = _half_of(device)
    if device.type == "cuda":
        # Not measured: a block small enough for a second on a CPU does not fill a GPU, and an
        # H100 seemed to train it 0.9 times as fast in bfloat16.
        return half, f"{name_of(half)} is what this GPU has tensor cores for"
    blocks = {dtype: _AdapterBlock(dtype).to(device) for dtype in (torch.float32, half)}
    fastest = dict.fromkeys(blocks, float("inf"))
    for block in blocks.values():
        block.train_once()  # kernels are compiled and chosen at the first call
    end = time.perf_counter() + BUDGET_SECONDS
    # Taking turns, and comparing the fastest: other work on the machine slows single turns
    # down fivefold, but hardly all turns of one of the two.
    while time.perf_counter() < end:
        for dtype, block in blocks.items():
            fastest[dtype] = min(fastest[dtype], block.train_once())
    return decide(fastest[torch.float32], fastest[half], half, device.type)


def decide(
    full_seconds: float, half_seconds: float, half: torch.dtype, device: str
) -> tuple[torch.dtype, str]:
    """Take half precision if it is clearly faster, and put the reason in words."""
    ratio = full_seconds / half_seconds
    chosen = half if ratio >= CLEARLY_FASTER else torch.float32
    return chosen, (
        f"{name_of(half)} trains {ratio:.2f} times as fast as float32 on this {device} device "
        f"(measured); {name_of(chosen)} chosen, half precision from {CLEARLY_FASTER} on"
    )


def _half_of(device: torch.device) -> torch.dtype:
    """V100 and T4 only emulate bfloat16; they are fast in float16."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def name_of(dtype: torch.dtype) -> str:
    """Name a dtype as the spec does."""
    return str(dtype).removeprefix("torch.")


class _AdapterBlock(nn.Module):
    """What a training step does most: frozen layers with adapters, attention, their backward."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.frozen = nn.ParameterList(
            nn.Parameter(torch.randn(rows, columns, dtype=dtype) * 0.02, requires_grad=False)
            for rows, columns in ((_WIDTH, _WIDTH), (_INNER, _WIDTH), (_WIDTH, _INNER))
        )
        self.down = nn.ParameterList(
            nn.Parameter(torch.randn(_RANK, each.shape[1]) * 0.02) for each in self.frozen
        )
        self.up = nn.ParameterList(
            nn.Parameter(torch.randn(each.shape[0], _RANK) * 0.02) for each in self.frozen
        )
        self.hidden = nn.Parameter(torch.randn(_BATCH, _LENGTH, _WIDTH, dtype=dtype))
        mask = torch.ones(_LENGTH, _LENGTH, dtype=torch.bool).tril()
        self.mask = nn.Buffer(mask.expand(_BATCH, 1, -1, -1).contiguous())

    def train_once(self) -> float:
        """Run forward and backward; return the CPU seconds of all threads.

        They do not count the time other processes had the cores.
        """
        start = time.process_time()
        is_half = self.dtype != torch.float32
        with torch.autocast(self.hidden.device.type, self.dtype, enabled=is_half):
            loss = self(self.hidden).float().square().mean()
        loss.backward()
        return time.process_time() - start

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (batch, length, width) to the same shape."""
        heads = self._layer(0, hidden).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=self.mask)
        hidden = hidden + mixed.transpose(1, 2).flatten(2)
        return hidden + self._layer(2, functional.silu(self._layer(1, hidden)))

    def _layer(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        adapted = functional.linear(functional.linear(hidden, self.down[index]), self.up[index])
        return functional.linear(hidden, self.frozen[index]) + adapted
