"""Every model is sent to the engine that reads it and serves it fastest, with the reason."""

from typing import Any

import pytest

from modelmill.spec.profile import Facts
from modelmill.spec.run import RunSpec
from modelmill.spec.serving import serving_of
from modelmill.spec.shape import ModelShape
from modelmill.spec.vllm import BORROWED, FAMILIES, UNSERVED

from .models import llama
from .test_plan import DEMO, keys_of, plan_of

CUDA = Facts(accelerator="cuda", dtype="bfloat16")
CPU = Facts(accelerator="cpu", dtype="float32")
CODEGEN = llama().model_copy(update={"model_type": "codegen"})

EVERY: dict[str, Any] = {
    **DEMO,
    "infer": {"adapter": True},
    "quantize": [
        {"method": "gptq"},
        {"method": "gptq", "bits": 8},
        {"method": "gptq", "bits": 3},
        {"method": "gptq", "sym": False, "name": "asym"},
        {"method": "gptq", "desc_act": True, "name": "by-act"},
        {"method": "autoround", "bits": 2},
        {"method": "rtn"},
        {"method": "bitsandbytes"},
    ],
}


def served(facts: Facts, shape: ModelShape | None) -> dict[str, tuple[str, str]]:
    """List engine and reason by model."""
    run = RunSpec.model_validate(EVERY)
    return {each.model: (each.engine, each.why) for each in serving_of(run, facts, shape)}


def test_engines_on_cuda_follow_what_vllm_reads() -> None:
    """16 bits, and symmetric 4 and 8 bits, are for vLLM; the rest is for others."""
    assert served(CUDA, llama()) == {
        "base": ("vLLM", "16-bit on CUDA"),
        "adapter": ("transformers", "an adapter beside its base; merged it is faster"),
        "merged": ("vLLM", "16-bit on CUDA"),
        "gptq-4": ("vLLM", "4-bit symmetric GPTQ on CUDA"),
        "gptq-8": ("vLLM", "8-bit symmetric GPTQ on CUDA"),
        "gptq-3": ("GPTQModel", "vLLM reads no 3-bit GPTQ"),
        "asym": ("GPTQModel", "vLLM reads no asymmetric GPTQ"),
        "by-act": ("GPTQModel", "vLLM reads no GPTQ in the order of activations any more"),
        "autoround-2": ("GPTQModel", "vLLM reads no 2-bit GPTQ"),
        "rtn-4": ("vLLM", "4-bit symmetric GPTQ on CUDA"),
        "nf4": ("transformers", "vLLM reads no bitsandbytes"),
    }


def test_family_without_a_model_in_vllm_is_served_by_others() -> None:
    """The reason names the family, for plain and packed models alike."""
    found = served(CUDA, CODEGEN)
    assert found["merged"] == ("transformers", "vLLM has no model for codegen")
    assert found["gptq-4"] == ("GPTQModel", "vLLM has no model for codegen")


def test_bloom_is_served_by_vllm_in_16_bits_only() -> None:
    """Its loader there does not know packed weights."""
    found = served(CUDA, llama().model_copy(update={"model_type": "bloom"}))
    assert found["merged"] == ("vLLM", "16-bit on CUDA")
    assert found["gptq-4"] == ("GPTQModel", "vLLM reads bloom in 16 bits only")


def test_family_that_nothing_is_known_about_is_promised_nothing() -> None:
    """It is not refused, and the reason says what it depends on."""
    strange = llama().model_copy(update={"model_type": "strange"})
    assert served(CUDA, strange)["merged"] == (
        "vLLM",
        "16-bit on CUDA, if vLLM has a model for strange",
    )


def test_engine_without_a_gpu_is_transformers() -> None:
    """Whatever the model is."""
    assert {engine for engine, _ in served(CPU, llama()).values()} == {"transformers"}


def test_every_model_is_served_though_nothing_is_known_of_the_base() -> None:
    """What is not known stands in nobody's way."""
    assert served(CUDA, None) == served(CUDA, llama())


def test_families_are_listed_once() -> None:
    """A family in two lists would be read and not read."""
    assert not FAMILIES & BORROWED
    assert not (FAMILIES | BORROWED) & UNSERVED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bits": 3}, "bits: vLLM reads no 3-bit GPTQ; use 4 or 8"),
        ({"bits": 2, "sym": False}, "sym: vLLM reads no asymmetric GPTQ; use true"),
        ({"desc_act": True}, "desc_act: vLLM reads no GPTQ in the order of activations"),
    ],
)
def test_packing_that_vllm_cannot_read_is_refused_with_the_way_out(
    changes: dict[str, Any], reason: str
) -> None:
    """The spec alone tells it; without `compat` the same is asked for in peace."""
    asked = {"method": "gptq", **changes}
    RunSpec.model_validate({**DEMO, "quantize": [asked]})
    with pytest.raises(ValueError, match="vLLM reads no") as caught:
        RunSpec.model_validate({**DEMO, "quantize": [{**asked, "compat": ["vllm"]}]})
    assert reason in str(caught.value)
    assert "or leave `vllm` out of compat" in str(caught.value)


@pytest.mark.parametrize("method", ["gptq", "autoround", "rtn"])
def test_asking_for_vllm_computes_nothing_anew(method: str) -> None:
    """It changes no byte that is written; asking for auto-gptq does."""
    keys = [
        keys_of(plan_of({**DEMO, "quantize": [{"method": method, "compat": compat}]}))
        for compat in ([], ["vllm"], ["auto-gptq"], ["vllm", "auto-gptq"])
    ]
    assert keys[0] == keys[1]
    assert keys[2] == keys[3]
    assert keys[0][f"quantize-{method}-4"] != keys[2][f"quantize-{method}-4"]
