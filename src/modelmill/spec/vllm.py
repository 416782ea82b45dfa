"""What vLLM can read of what the mill writes.  Pure, and facts only.

Read in the source of one version, and held against that source by `make test-vllm`.  What is
not known here is not refused.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from modelmill.spec.errors import Problem

VERSION: Final = "0.33.0"
"""The one that `images/infer-vllm` pins."""

PACKED_BITS: Final = (4, 8)
"""Of GPTQ's format; symmetric and in the order of the inputs only."""

FAMILIES: Final = frozenset(
    {
        *("bloom", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gptj", "granite"),
        *("llama", "mistral", "opt", "phi3", "qwen2", "qwen3", "stablelm"),
    }
)
"""Values of `model_type` that vLLM has a model of its own for."""

BORROWED: Final = frozenset(
    {"gpt_bigcode", "gpt_neox", "olmo", "olmo2", "phi", "smollm3", "starcoder2"}
)
"""Those that it runs with transformers' code and its own layers."""

UNSERVED: Final = frozenset({"codegen", "gpt_neo", "mpt", "openai-gpt", "rwkv", "xglm"})
"""Those that it has no model for, and whose code in transformers it cannot run."""

PLAIN_ONLY: Final = frozenset({"bloom"})
"""Those that it reads in 16 bits only: it reorders outputs where a packed weight has inputs."""

_WORD: Final = 32
_LEAVE_OUT: Final = "leave `vllm` out of compat"


def packing_problems(bits: int, *, sym: bool, reorders: bool) -> Iterator[Problem]:
    """Find what keeps vLLM from reading weights in GPTQ's format.

    Args:
        bits: per weight.
        sym: symmetric around zero.
        reorders: quantized in the order of activations (`desc_act`).
    """
    if bits not in PACKED_BITS:
        numbers = " or ".join(map(str, PACKED_BITS))
        yield Problem(
            "bits",
            f"vLLM reads no {bits}-bit GPTQ",
            suggestion=f"use {numbers}, or {_LEAVE_OUT}",
        )
    if not sym:
        yield Problem(
            "sym", "vLLM reads no asymmetric GPTQ", suggestion=f"use true, or {_LEAVE_OUT}"
        )
    if reorders:
        yield Problem(
            "desc_act",
            "vLLM reads no GPTQ in the order of activations any more",
            suggestion=f"use false, or {_LEAVE_OUT}",
        )


def model_problem(model_type: str, *, is_packed: bool) -> Problem | None:
    """Say why vLLM cannot run a family of models.

    Args:
        model_type: as its config calls it.
        is_packed: whether its weights are in GPTQ's format.
    """
    if model_type in UNSERVED:
        return Problem(
            "compat",
            f"vLLM has no model for {model_type}",
            suggestion=f"{_LEAVE_OUT}, transformers runs it; or take a model of another family",
        )
    if is_packed and model_type in PLAIN_ONLY:
        return Problem(
            "compat",
            f"vLLM reads {model_type} in 16 bits only",
            suggestion=f"{_LEAVE_OUT}, GPTQModel runs it; or serve the 16-bit model",
        )
    return None


def layer_problem(outputs: Iterable[tuple[str, int]], bits: int) -> Problem | None:
    """Say which layer's outputs do not fill vLLM's words of packed zero points.

    Args:
        outputs: features that layers give, by the layer's name.
        bits: per weight.
    """
    codes = _WORD // bits
    for name, features in outputs:
        if features % codes:
            return Problem(
                "compat",
                f"vLLM reads {bits}-bit layers whose outputs are a multiple of {codes}; "
                f"{name} has {features}",
                suggestion=_LEAVE_OUT,
            )
    return None
