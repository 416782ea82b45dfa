"""Quantization-aware training in a run: said once, refused where it has no meaning."""

from typing import Any

import pytest

from modelmill.spec.accelerators import ACCELERATORS
from modelmill.spec.errors import SpecError
from modelmill.spec.estimate import Devices, Known, estimates
from modelmill.spec.fit import judge
from modelmill.spec.impossible import refuse_impossible
from modelmill.spec.loading import parse_run
from modelmill.spec.plan import Stage
from modelmill.spec.quantize import QatSpec, variant_of
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import FinetuneSettings, QuantizeSettings

from .models import falcon, llama
from .test_fit import CUDA
from .test_plan import DEMO, changed_stages, plan_of

AWARE: dict[str, Any] = {"method": "full", "qat": {}}


def document(
    finetune: dict[str, Any] = AWARE, quantize: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """Ask for a run that packs what it has trained."""
    packed = {"method": "qat", **(quantize or {})}
    return {**DEMO, "finetune": finetune, "quantize": [packed], **changes}


def reasons(data: dict[str, Any]) -> list[str]:
    """List what is wrong with a run, each with its key."""
    with pytest.raises(SpecError) as caught:
        parse_run(data, "run.yaml")
    return [f"{each.key}: {each.reason}" for each in caught.value.problems]


def finetune_of(data: dict[str, Any]) -> Stage:
    """Plan a run and take its fine-tune."""
    return plan_of(data).stage("finetune")


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_says_what_training_was_told(bits: int) -> None:
    """Bits and groups are asked for once, name and stage follow, and a dump says it twice."""
    run = RunSpec.model_validate(document({"method": "full", "qat": {"bits": bits}}))
    [spec] = run.quantize
    assert isinstance(spec, QatSpec)
    assert (spec.bits, spec.group_size, variant_of(spec)) == (bits, "auto", f"qat-{bits}")
    assert run.models() == ("base", "finetuned", f"qat-{bits}")
    assert RunSpec.model_validate(run.model_dump(mode="json")) == run
    settings = plan_of(document({"method": "full", "qat": {"bits": bits}})).stage(
        f"quantize-qat-{bits}"
    )
    assert isinstance(settings.settings, QuantizeSettings)
    assert settings.settings.quantize == spec
    assert [each.role for each in settings.inputs] == ["model"]


def test_packing_otherwise_than_trained_is_refused() -> None:
    """Both differences are named at once; saying the same again is fine."""
    same = document(quantize={"bits": 4, "group_size": "auto"})
    assert RunSpec.model_validate(same) == RunSpec.model_validate(document())
    assert reasons(document(quantize={"bits": 8, "group_size": 64})) == [
        "quantize.bits: finetune.qat has trained on 4; leave it out here",
        "quantize.group_size: finetune.qat has trained on auto; leave it out here",
    ]


@pytest.mark.parametrize("finetune", [{}, {"method": "full"}, None])
def test_packing_without_training_is_refused_with_the_way_out(finetune: Any) -> None:
    """A finished model is rounded by other methods."""
    [reason] = reasons(document(finetune))
    assert reason.startswith("quantize: method qat packs what was rounded in training; add")
    assert "finetune: {method: full, qat: {}}" in reason
    assert "rtn or gptq" in reason


def test_rounding_belongs_to_full_fine_tuning() -> None:
    """An adapter is merged before anything is rounded."""
    assert reasons(document({"qat": {"bits": 4}})) == [
        "finetune.qat: belongs to method full; an adapter's sum is rounded after merging"
    ]
    wrong = {"method": "full", "qat": {"bits": 3}}
    assert reasons(document(wrong)) == ["finetune.qat.bits: should be 4 or 8 (got 3)"]


def test_rounded_model_is_written_in_32_bits() -> None:
    """Whatever `merge.dtype` is by default; another one by name is refused."""
    settings = finetune_of(document()).settings
    assert isinstance(settings, FinetuneSettings)
    assert settings.dtype == "float32"
    plain = finetune_of({**DEMO, "finetune": {"method": "full"}}).settings
    assert isinstance(plain, FinetuneSettings)
    assert plain.dtype == "bfloat16"
    [reason] = reasons(document(merge={"dtype": "float16"}))
    assert reason.startswith("merge.dtype: finetune.qat writes float32")


def test_other_methods_stay_possible_on_the_rounded_model() -> None:
    """A run may pack it and round it again."""
    run = RunSpec.model_validate(
        {**document(), "quantize": [{"method": "qat"}, {"method": "rtn"}, {"method": "gptq"}]}
    )
    assert run.models() == ("base", "finetuned", "qat-4", "rtn-4", "gptq-4")


def test_keys_of_other_runs_do_not_move_and_bits_compute_anew() -> None:
    """Left out, it is in no key; changed, everything behind it is another."""
    four = plan_of(document({"method": "full", "qat": {"bits": 4}}))
    eight = plan_of(document({"method": "full", "qat": {"bits": 8}}))
    assert changed_stages(four, eight) == {"finetune", "infer-finetuned"}
    full = {**DEMO, "finetune": {"method": "full"}}
    same = {**DEMO, "finetune": {"method": "full", "qat": None}}
    assert changed_stages(plan_of(full), plan_of(same)) == set()


def test_group_that_does_not_divide_is_named_once() -> None:
    """At the key that decides it, with the size that works."""
    asked = document({"method": "full", "qat": {"group_size": 128}})
    with pytest.raises(SpecError) as caught:
        refuse_impossible(RunSpec.model_validate(asked), falcon(), "run.yaml")
    assert [each.key for each in caught.value.problems] == ["finetune.qat.group_size"]
    assert "takes 64" in caught.value.what
    refuse_impossible(RunSpec.model_validate(document()), falcon(), "run.yaml")


def test_estimate_counts_rounded_weights() -> None:
    """In float32 the backward pass keeps them all, or those of one block; packing needs little."""
    seven = llama()
    known = Known(shape=seven, bytes_by_address={"model": seven.weight_bytes})

    def host(**finetune: Any) -> dict[str, int]:
        data = document({"method": "full", "precision": "float32", **finetune})
        if "qat" not in finetune:
            data["quantize"] = []
        found = {
            each.stage: each for each in estimates(plan_of(data), known, Devices(is_gpu=False))
        }
        return {name: each.memory.host_bytes for name, each in found.items() if each.memory}

    aware, plain = host(qat={}), host()
    assert aware["finetune"] - plain["finetune"] == 4 * seven.linear_parameters
    few = {"gradient_checkpointing": True}
    added = host(qat={}, **few)["finetune"] - host(**few)["finetune"]
    assert added == 4 * seven.linear_parameters // seven.layers
    assert aware["quantize-qat-4"] < seven.weight_bytes / 5


def test_advice_for_a_small_gpu_is_never_an_adapter() -> None:
    """A plain full fine-tune may become one; what is rounded while it learns may not."""

    def advice(**finetune: Any) -> str:
        plan = plan_of({**DEMO, "finetune": {"method": "full", **finetune}, "quantize": []}, CUDA)
        known = Known(shape=llama(), bytes_by_address={})
        judged = judge(plan, known, ACCELERATORS["a100-40"], {}, Devices(is_gpu=True))
        [fit] = [each for each in judged if each.estimate.stage == "finetune"]
        assert fit.state == "does not fit"
        return " ".join(fit.advice)

    assert "finetune.method: lora" in advice()
    assert "lora" not in advice(qat={})
