"""How many rows and tokens stages have in memory at a time: chosen by them, foretold by estimates.

Pure.  Numbers only; knows neither models nor devices beyond whether there is a GPU.
"""

from typing import Final

from modelmill.spec.finetune import FinetuneSpec

CPU_ROWS: Final = 4
"""135 M, WikiSQL, 2 cores: 4 x 2 takes 3.9 GB where 8 x 1 takes 5.9, at the same loss and speed."""

CUDA_TOKENS: Final = 8192
"""Tokens of one forward pass; fills a data-centre GPU with a 1 B model."""

HALVINGS: Final = 2
"""Of the micro-batch, before a GPU is too small."""

CALIBRATION_TOKENS: Final = 2048
"""Of one pass: 135 M on two cores took 6.2 s a layer with sequences of 192 one by one."""

AUTOROUND_ROWS: Final = 8
"""Of one step, as its authors measured."""

ANSWERED_AT_ONCE: Final = 4
"""Batches on a CPU of as many cores or more.  Between two operations a batch's thread needs the
interpreter, a sixth of its time at 135 M parameters, so more would wait for one another."""

UPDATED_ROPES: Final = frozenset({"dynamic", "longrope"})
"""Kinds of positions whose frequencies a forward writes into the model, by the length it sees: such
a model answers one batch at a time."""

STATEFUL: Final = frozenset(
    {
        *("bailing_hybrid", "bamba", "deepseek_v4", "falcon_h1", "falcon_mamba", "glm5_next"),
        *("granitemoehybrid", "jamba", "kimi_linear", "mamba", "mamba2", "nemotron_h"),
        *("olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_next", "qwen4_exp", "recurrent_gemma"),
        *("rwkv", "xlstm", "zamba", "zamba2", "zaya"),
    }
)
"""Families that keep what they have read in their modules, as transformers marks them: of two
batches at once, each would go on from the other's."""

LOGITS_BYTES: Final = 2**28
"""A quarter of a gibibyte of float32 logits at a time, whatever the vocabulary."""

PROBE_PROMPTS: Final = 8
PROBE_POSITIONS: Final = 32
"""The last of each prompt, where the completion is: there a merge compares logits."""

FEW_PROMPTS: Final = 4
FEW_TOKENS: Final = 16
"""Asked where every tensor is proved on its own.  At 1.1 billion parameters a token costs a CPU
20 ms of each model, and all of eight long prompts more than the rest of a merge."""


def micro_batch_size(
    spec: FinetuneSpec, longest: int, *, is_gpu: bool, halvings: int = 0, ranks: int = 1
) -> int:
    """Choose the rows of one forward pass: at most what is asked, a divisor of a rank's batch.

    Args:
        spec: the batch size, and what was asked.
        longest: tokens of the longest row.
        is_gpu: whether that trains.
        halvings: how often half of that has to do; one row always may.
        ranks: how many devices share the batch; a divisor of it.
    """
    share = spec.batch_size // ranks
    if isinstance(spec.micro_batch_size, int):
        limit = spec.micro_batch_size
    else:
        limit = CUDA_TOKENS // longest if is_gpu else CPU_ROWS
    rows = _divisor(share, limit)
    return _divisor(share, rows >> halvings)


def ranks_for(batch_size: int, devices: int) -> int:
    """Choose how many devices share a batch: all have the same number of rows of it."""
    return _divisor(batch_size, devices)


def undividable(spec: FinetuneSpec) -> str:
    """Name the setting with which devices cannot hold a part of the weights each; empty if none."""
    if spec.load_in is not None:
        return "finetune.load_in"
    if spec.qat is not None:
        return "finetune.qat"
    return "finetune.precision: float16" if spec.precision == "float16" else ""


def _divisor(number: int, limit: int) -> int:
    """Find the largest divisor up to a limit; 1 is one of any."""
    return max(each for each in range(1, max(1, min(limit, number)) + 1) if number % each == 0)
