"""What a model rules out is refused before anything runs, with the way out."""

from typing import Any

import pytest

from modelmill.spec.errors import SpecError
from modelmill.spec.impossible import refuse_impossible
from modelmill.spec.run import RunSpec
from modelmill.spec.shape import ModelShape, shape_of

from .models import LLAMA, Tensor, falcon, llama, llama_tensors
from .test_plan import DEMO


def run_of(**changes: Any) -> RunSpec:
    """Ask for a run."""
    return RunSpec.model_validate({**DEMO, **changes})


def test_group_that_does_not_divide_falcon_names_layers_and_the_size_that_works() -> None:
    """4544 is 71 times 64; every wrong entry is named at once."""
    wrong = {"method": "gptq", "group_size": 128}
    run = run_of(quantize=[wrong, {**wrong, "bits": 3}, {"method": "bitsandbytes"}])
    with pytest.raises(SpecError) as caught:
        refuse_impossible(run, falcon(), "run.yaml")
    assert [each.key for each in caught.value.problems] == [
        "quantize[0].group_size",
        "quantize[1].group_size",
    ]
    assert "transformer.h.*.self_attention.query_key_value (4544)" in caught.value.what
    assert "takes 64" in caught.value.what


@pytest.mark.parametrize("size", ["auto", 32, 64])
def test_group_that_divides_falcon_passes(size: object) -> None:
    """Negative control."""
    refuse_impossible(run_of(quantize=[{"method": "gptq", "group_size": size}]), falcon(), "run")


def test_model_that_no_group_divides_is_sent_to_another_method() -> None:
    """Better an error than hours and a model that breaks at inference."""
    odd = falcon(hidden=4560)  # 16 times 285
    with pytest.raises(SpecError, match="use bitsandbytes"):
        refuse_impossible(run_of(quantize=[{"method": "gptq"}]), odd, "run")


def narrow(outputs: int = 16) -> ModelShape:
    """Make the shape of a llama whose keys have few outputs, as with one small head for all."""
    tensors = llama_tensors() | {
        f"model.layers.{number}.self_attn.k_proj.weight": Tensor((outputs, 4096))
        for number in range(32)
    }
    return shape_of(LLAMA, tensors)


def test_layers_that_do_not_pack_are_refused_with_the_way_out() -> None:
    """Zero points of 3 bits need 32 outputs a word, of 2 bits 16; bitsandbytes packs none."""
    packed = {"method": "gptq", "bits": 3, "group_size": 32}
    methods = [packed, {**packed, "bits": 2}, {**packed, "method": "rtn"}]
    run = run_of(quantize=[*methods, {"method": "bitsandbytes"}])
    with pytest.raises(SpecError, match="bitsandbytes, which packs nothing") as caught:
        refuse_impossible(run, narrow(), "run.yaml")
    assert [each.key for each in caught.value.problems] == ["quantize[0].bits", "quantize[2].bits"]
    assert "self_attn.k_proj (16)" in caught.value.what


def test_layers_that_autoround_leaves_out_are_refused_with_the_way_out() -> None:
    """16 outputs pack at 2 and at 4 bits, and its engine keeps them in 16 bits all the same."""
    for bits in (2, 3, 4):
        run = run_of(quantize=[{"method": "autoround", "bits": bits}])
        refuse_impossible(run, narrow(32), "run.yaml")
        with pytest.raises(SpecError, match="use gptq") as caught:
            refuse_impossible(run, narrow(), "run.yaml")
        assert [each.key for each in caught.value.problems] == ["quantize[0].method"]


def test_layers_that_bitnet_cannot_store_are_refused_with_the_way_out() -> None:
    """Four outputs share a byte; a layer of 4546 of them is named, and gpt2's kind of layer."""
    run = run_of(quantize=[{"method": "bitsandbytes"}, {"method": "bitnet"}])
    odd = falcon(hidden=4546)
    with pytest.raises(SpecError, match="leave bitnet out") as caught:
        refuse_impossible(run, odd, "run.yaml")
    assert [each.key for each in caught.value.problems] == ["quantize[1]"]
    assert "transformer.h.*.self_attention.dense (4546)" in caught.value.what
    with pytest.raises(SpecError, match="Conv1D"):
        refuse_impossible(run, llama().model_copy(update={"model_type": "gpt2"}), "run")
    refuse_impossible(run, falcon(), "run")


def test_quantized_base_is_refused_with_the_way_out() -> None:
    """An adapter is merged into the 16-bit model, whatever it was trained on."""
    base = llama(quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(SpecError, match="quantized with gptq already") as caught:
        refuse_impossible(run_of(), base, "run")
    assert "cannot be fine-tuned and merged or quantized again" in caught.value.what
    assert "name the 16-bit model" in caught.value.what
    refuse_impossible(run_of(), llama(), "run")


def codegen() -> ModelShape:
    """Make the shape of a family that vLLM does not know."""
    return llama().model_copy(update={"model_type": "codegen"})


def test_family_that_vllm_does_not_know_is_refused_for_it_only() -> None:
    """Whoever does not need vLLM keeps the run; every entry that does is named."""
    wanted = {"method": "gptq", "compat": ["vllm"]}
    other = {"method": "gptq", "bits": 3}
    run = run_of(quantize=[other, wanted, {**wanted, "bits": 8}])
    with pytest.raises(SpecError, match="vLLM has no model for codegen") as caught:
        refuse_impossible(run, codegen(), "run")
    assert [each.key for each in caught.value.problems] == [
        "quantize[1].compat",
        "quantize[2].compat",
    ]
    assert "transformers runs it" in caught.value.what
    refuse_impossible(run_of(quantize=[other, {"method": "gptq"}]), codegen(), "run")
    refuse_impossible(run, llama(), "run")


def test_packed_bloom_is_refused_for_vllm() -> None:
    """The 16-bit model it is made from can be served."""
    bloom = llama().model_copy(update={"model_type": "bloom"})
    run = run_of(quantize=[{"method": "gptq", "compat": ["vllm"]}])
    with pytest.raises(SpecError, match="vLLM reads bloom in 16 bits only"):
        refuse_impossible(run, bloom, "run")


def test_layer_whose_outputs_do_not_fill_a_word_is_refused_for_vllm() -> None:
    """Zero points are packed eight to a word at 4 bits; vLLM would make room for fewer."""
    config = {"num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9, "hidden_size": 128}
    odd = shape_of(
        {"model_type": "llama", **config},
        {"x.embed.weight": Tensor((9, 128)), "x.layers.0.up.weight": Tensor((100, 128))},
    )
    run = run_of(quantize=[{"method": "rtn", "compat": ["vllm"]}])
    with pytest.raises(SpecError, match=r"x.layers.\*.up has 100"):
        refuse_impossible(run, odd, "run")
    eight = {"method": "rtn", "bits": 8, "compat": ["vllm"]}
    refuse_impossible(run_of(quantize=[eight]), odd, "run")
