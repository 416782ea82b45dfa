"""Estimates follow what is asked for, and advice makes a stage fit."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.spec.accelerators import ACCELERATORS, AcceleratorName, next_larger
from modelmill.spec.estimate import Devices, Estimate, Known, estimates
from modelmill.spec.fit import Fit, Room, judge
from modelmill.spec.footprint import COPIES, Form, Rows, finetune_memory, infer_memory
from modelmill.spec.memory import Part, cached_per_token, held_bytes
from modelmill.spec.names import Fsdp, Kind
from modelmill.spec.plan import Plan
from modelmill.spec.profile import Facts
from modelmill.spec.quantize import BitsandbytesSpec
from modelmill.spec.rank_footprint import SENT_BYTES, SHARED_BYTES, STAGE_BYTES
from modelmill.spec.settings import FinetuneSettings, InferSettings

from .models import falcon, llama
from .test_plan import DEMO, plan_of

SEVEN = llama()
KNOWN = Known(shape=SEVEN, bytes_by_address={"model": SEVEN.weight_bytes + 2_000_000})
CUDA = Facts(accelerator="cuda", dtype="bfloat16")
NO_ROOMS: Mapping[Kind, Room] = {}


def plan(max_length: int = 512, **finetune: Any) -> Plan:
    """Plan a run on a GPU."""
    data = {**DEMO["data"], "max_length": max_length}
    return plan_of({**DEMO, "data": data, "finetune": finetune}, CUDA)


def fit_on(
    name: AcceleratorName,
    stage: str = "finetune",
    rooms: Mapping[Kind, Room] = NO_ROOMS,
    devices: int | Devices = 1,
    **finetune: Any,
) -> Fit:
    """Hold one stage against a device, or a finetune against several."""
    if isinstance(devices, int):
        devices = Devices(name != "cpu", devices)
    judged = judge(plan(**finetune), KNOWN, ACCELERATORS[name], rooms, devices)
    return next(each for each in judged if each.estimate.stage == stage)


def estimated(**finetune: Any) -> dict[str, Estimate]:
    """Estimate every stage on a GPU."""
    given = estimates(plan(**finetune), KNOWN, Devices(is_gpu=True))
    return {each.stage: each for each in given}


def gpu_parts(**finetune: Any) -> tuple[Part, ...]:
    """List what a fine-tune has on a GPU."""
    memory = estimated(**finetune)["finetune"].memory
    assert memory is not None
    return memory.gpu_peak


def test_weights_follow_how_they_are_held() -> None:
    """13.5 GB in 16 bits, half of that in 8, a quarter in 4."""
    held = {
        load_in: {part.name: part.bytes for part in gpu_parts(load_in=load_in)}
        for load_in in (None, "int8", "nf4")
    }
    assert held[None]["weights"] == 2 * SEVEN.parameters
    assert held["int8"]["weights"] == pytest.approx(7.0e9, rel=0.01)
    assert held["nf4"]["weights"] == pytest.approx(3.9e9, rel=0.01)
    assert "working set" in held["nf4"]
    assert "working set" not in held[None]


def test_full_fine_tune_takes_sixteen_bytes_a_parameter() -> None:
    """Weights, gradients and two moments in float32."""
    parts = {part.name: part.bytes for part in gpu_parts(method="full")}
    held = sum(parts[name] for name in ("weights", "gradients", "optimizer"))
    assert held == 16 * SEVEN.parameters


def test_sizes_on_their_way_follow_each_other() -> None:
    """What a stage writes is what the next one reads."""
    given = estimated()
    assert given["fetch-model"].bytes_out == SEVEN.weight_bytes + 2_000_000
    assert given["merge"].bytes_out == 2 * SEVEN.parameters + 2_000_000
    assert given["quantize-gptq-4"].bytes_in is None  # the rows' size is not known
    assert given["quantize-nf4"].bytes_in == given["merge"].bytes_out
    assert given["infer-nf4"].bytes_in is None
    assert given["quantize-nf4"].disk_bytes == given["merge"].bytes_out + (
        given["quantize-nf4"].bytes_out or 0
    )


@pytest.mark.parametrize("name", ["l4", "a10"])
def test_full_fine_tune_of_7b_does_not_fit_24_gb_and_advice_makes_it_fit(
    name: AcceleratorName,
) -> None:
    """What is advised is tried, not hoped for."""
    refused = fit_on(name, method="full")
    assert refused.state == "does not fit"
    assert "GPU memory" in refused.reasons[0]
    settings = dict(part.split(": ") for part in refused.advice[0].split(" and "))
    changed = {key.removeprefix("finetune."): value for key, value in settings.items()}
    assert changed["method"] == "lora"
    assert fit_on(name, **changed).state == "fits"


def test_advice_names_no_more_than_is_needed() -> None:
    """Without any one of the changes it would not fit."""
    asked: dict[str, Any] = {"micro_batch_size": 16}
    refused = fit_on("l4", max_length=2048, **asked)
    assert refused.state == "does not fit"
    changes = dict(part.split(": ") for part in refused.advice[0].split(" and "))
    for left_out in changes:
        kept = {
            key.removeprefix("finetune."): value
            for key, value in changes.items()
            if key != left_out
        }
        assert fit_on("l4", max_length=2048, **{**asked, **kept}).state != "fits"


def test_micro_batch_that_the_stage_would_halve_counts_halved() -> None:
    """No reason to refuse what finds its way by itself."""
    found = fit_on("a100-40", max_length=512)
    assert found.state == "fits"
    assert "come down to" in " ".join(found.estimate.assumed)
    assert fit_on("a100-80", max_length=512).estimate.memory != found.estimate.memory


def test_full_fine_tune_of_7b_fits_as_many_devices_as_are_advised_and_no_fewer() -> None:
    """Each holds a part of weights, gradients and optimizer, and a layer at a time as a whole."""

    def on(devices: int, fsdp: Fsdp = "auto", **finetune: Any) -> Fit:
        several = Devices(is_gpu=True, count=devices, fsdp=fsdp)
        return fit_on("a100-80", devices=several, batch_size=16, **finetune)

    refused = on(1, method="full")
    assert refused.state == "does not fit"
    [advised] = [each for each in refused.advice if each.startswith("stages.finetune.gpu: ")]
    devices = int(advised.split()[1])
    fits = on(devices, method="full")
    assert fits.state == "fits"
    assert f"each of {devices} devices will hold a part" in " ".join(fits.estimate.assumed)
    assert on(devices // 2, method="full").state != "fits"
    assert on(devices, "never", method="full").state == "does not fit"
    assert not any("gpu:" in each for each in on(1, "never", method="full").advice)
    assert fits.estimate.memory is not None
    parts = {part.name: part.bytes for part in fits.estimate.memory.gpu_peak}
    held = sum(parts[name] for name in ("weights", "gradients", "optimizer"))
    assert held == pytest.approx(16 * SEVEN.parameters / devices)
    # Nothing is divided where one device is enough, unless the place says so.
    assert on(2).estimate.memory == on(2, "never").estimate.memory
    assert on(2, "always").estimate.memory != on(2, "never").estimate.memory
    nf4 = [on(2, fsdp, load_in="nf4").estimate.memory for fsdp in ("always", "never")]
    assert nf4[0] == nf4[1]


@pytest.mark.parametrize("is_gpu", [True, False])
def test_parts_are_counted_where_a_place_always_divides_and_no_device_is_named(
    is_gpu: bool,
) -> None:
    """A plan that is held against nothing counts what each device will hold, on a CPU too."""

    def held(fsdp: Fsdp, **finetune: Any) -> int:
        devices = Devices(is_gpu, count=2, fsdp=fsdp)
        given = estimates(plan(**finetune), KNOWN, devices)
        memory = next(each.memory for each in given if each.stage == "finetune")
        assert memory is not None
        return memory.gpu_bytes if is_gpu else memory.host_bytes

    assert held("always", method="full") < 0.7 * held("never", method="full")
    assert held("auto", method="full") == held("never", method="full")
    assert held("always", load_in="nf4") == held("never", load_in="nf4")


def test_host_and_disk_are_held_against_what_the_place_has() -> None:
    """A pod that is too small is named, with the key that makes it larger."""
    rooms: Mapping[Kind, Room] = {"merge": Room(host_bytes=2**30, disk_bytes=2**36)}
    refused = fit_on("h100", "merge", rooms)
    assert refused.state == "does not fit"
    assert [each.partition(":")[0] for each in refused.advice] == ["stages.merge.memory"]
    wide: Mapping[Kind, Room] = {"merge": Room(host_bytes=2**34, disk_bytes=2**36)}
    assert fit_on("h100", "merge", wide).state == "fits"


def test_merge_without_disk_leaves_the_weights_in_the_store() -> None:
    """It fits, and says what it does; where all of the base must answer, it needs the disk."""
    rooms: Mapping[Kind, Room] = {"merge": Room(host_bytes=2**36, disk_bytes=2**30)}
    fit = fit_on("h100", "merge", rooms)
    assert (fit.state, fit.estimate.disk_bytes) == ("fits", None)
    assert "the weights stay in the store" in fit.estimate.assumed[-1]
    refused = fit_on("h100", "merge", rooms, load_in="int8")
    assert [each.partition(":")[0] for each in refused.advice] == ["stages.merge.work"]


def test_model_that_is_not_known_stops_nothing() -> None:
    """Where nobody could look, nothing is refused."""
    known = Known(why_unknown="unknown until the model is fetched (no network)")
    states = {
        each.estimate.stage: each.state
        for each in judge(plan(), known, ACCELERATORS["l4"], NO_ROOMS, Devices(is_gpu=True))
    }
    assert states["finetune"] == states["infer-base"] == "unknown"
    assert states["fetch-model"] == "fits"


@given(
    micro=st.sampled_from([1, 2, 4, 8]),
    length=st.integers(16, 4096),
    r=st.integers(1, 256),
    is_gpu=st.booleans(),
)
def test_more_of_anything_never_takes_less(
    *, micro: int, length: int, r: int, is_gpu: bool
) -> None:
    """Rows, tokens and rank only add; recomputing activations only saves."""

    def peak(rows: int, tokens: int, rank: int, *, recompute: bool = False) -> int:
        asked = {"micro_batch_size": rows, "r": rank, "gradient_checkpointing": recompute}
        settings = plan(**asked).stage("finetune").settings
        assert isinstance(settings, FinetuneSettings)
        lengths = Rows(longest=tokens, learned=tokens, prompt=tokens)
        memory = finetune_memory(falcon(layers=4), settings, lengths, is_gpu=is_gpu)
        return memory.gpu_bytes if is_gpu else memory.host_bytes

    least = peak(micro, length, r)
    assert peak(2 * micro, length, r) >= least
    assert peak(micro, 2 * length, r) >= least
    assert peak(micro, length, r + 1) >= least
    assert peak(micro, length, r, recompute=True) <= least


def of_finetune(devices: int, *, is_gpu: bool, **finetune: Any) -> Estimate:
    """Estimate a fine-tune whose batches so many devices may share."""
    given = estimates(plan(**finetune), KNOWN, Devices(is_gpu, devices))
    return next(each for each in given if each.stage == "finetune")


@pytest.mark.parametrize("is_gpu", [True, False])
def test_every_rank_has_a_copy_on_the_host(is_gpu: bool) -> None:
    """What libraries map is there once, the stage's own process stands beside, GPUs are apart."""
    alone, two, four = (
        of_finetune(devices, is_gpu=is_gpu, micro_batch_size=1).memory for devices in (1, 2, 4)
    )
    assert alone is not None
    assert two is not None
    assert four is not None
    parts = {each.name: each.bytes for each in alone.host_peak}
    gradients = parts.get("gradients", 0)
    sent = 0 if is_gpu else SENT_BYTES
    own = alone.host_bytes - parts[COPIES] - SHARED_BYTES + gradients + sent
    assert four.host_bytes - two.host_bytes == 2 * own
    assert two.host_bytes == 2 * own + parts[COPIES] + SHARED_BYTES + STAGE_BYTES
    assert {"the stage's own process", "runtime, 2 ranks"} <= {each.name for each in two.host_peak}
    added_up = sum(each.bytes for each in alone.gpu_peak if each.name == "gradients")
    assert two.gpu_bytes == four.gpu_bytes == alone.gpu_bytes + added_up


def test_rank_takes_no_more_rows_than_its_share_of_a_batch() -> None:
    """Three devices cannot share a batch of 4 equally, so two do, with two rows each."""
    estimate = of_finetune(3, is_gpu=False, batch_size=4)
    assert estimate.assumed[0] == "2 rows of data.max_length 512 at a time in each of 2 ranks"


def test_host_that_is_large_enough_for_one_rank_only() -> None:
    """One device fits; a second one on the same host does not, and what it would take is said."""
    alone = of_finetune(1, is_gpu=True).memory
    assert alone is not None
    rooms: Mapping[Kind, Room] = {"finetune": Room(host_bytes=round(1.5 * alone.host_bytes))}
    fits = [
        next(each for each in judged if each.estimate.stage == "finetune")
        for devices in (1, 2)
        for judged in [
            judge(
                plan(), KNOWN, ACCELERATORS["a100-40"], rooms, Devices(is_gpu=True, count=devices)
            )
        ]
    ]
    assert [each.state for each in fits] == ["fits", "does not fit"]
    assert "stages.finetune.memory" in fits[1].advice[-1]


def answering(**changes: Any) -> InferSettings:
    """Settings of a stage that judges answers of the DEMO."""
    settings = plan().stage("infer-base").settings
    assert isinstance(settings, InferSettings)
    return settings.model_copy(update={"nll": True, **changes})


def test_examples_are_whole_rows_and_cached_for_every_row_of_a_batch() -> None:
    """The model reads them once, and each row of a batch has a copy of what it read."""
    rows = Rows(longest=300, learned=100, prompt=200)
    asked = answering(batch_size=8, max_new_tokens=10)
    alone = infer_memory(SEVEN, asked, rows, Form(), cores=0)
    shown = infer_memory(SEVEN, answering(**dict(asked) | {"shots": 3}), rows, Form(), cores=0)
    cached = cached_per_token(SEVEN, asked.dtype)
    assert shown.gpu_bytes - alone.gpu_bytes >= 8 * 3 * 300 * cached
    parts = {phase.name: {each.name: each.bytes for each in phase.parts} for phase in shown.gpu}
    assert parts["generate"]["KV cache"] == 8 * (900 + 200 + 10) * cached
    assert parts["judge"]["KV cache"] == 8 * (900 + 200 + 100) * cached
    assert parts["judge"]["activations"] == parts["generate"]["activations"]


def test_host_keeps_what_bitsandbytes_has_unpacked() -> None:
    """Both forms are in memory while a model answers, not only while it loads."""
    rows = Rows(longest=300, learned=100, prompt=200)
    form = Form(quantized=BitsandbytesSpec(method="bitsandbytes", type="nf4"))
    given = infer_memory(SEVEN, answering(), rows, form, cores=1)
    for phase in given.host:
        parts = {each.name: each.bytes for each in phase.parts}
        assert parts["packed weights"] == held_bytes(SEVEN, "bfloat16", "nf4")


def test_cores_answer_a_batch_each_up_to_a_limit() -> None:
    """What a batch takes while it generates is there for each; likelihoods are scored in turn."""
    rows = Rows(longest=300, learned=100, prompt=200)

    def generating(cores: int) -> tuple[dict[str, int], dict[str, int]]:
        host = infer_memory(SEVEN, answering(), rows, Form(), cores).host
        phases = {each.name: {part.name: part.bytes for part in each.parts} for each in host}
        return phases["generate"], phases["judge"]

    (one, judged), (two, judged_too), (many, _) = map(generating, (1, 2, 64))
    for name in ("KV cache", "activations"):
        assert two[name] == pytest.approx(2 * one[name])
        assert many[name] == pytest.approx(4 * one[name])
    assert two["weights"] == one["weights"]
    assert judged == judged_too
    # An adapter's base that bitsandbytes holds answers one batch at a time.
    held = answering(base_load_in="nf4")
    assert infer_memory(SEVEN, held, rows, Form(), 64) == infer_memory(SEVEN, held, rows, Form(), 1)


def test_next_larger_is_the_smallest_that_has_it() -> None:
    """And there is none for what no device has."""
    found = next_larger(30 * 10**9)
    assert found is not None
    assert found.name == "a100-40"
    assert next_larger(10**12) is None


def quantizers_on(*specs: dict[str, Any], is_gpu: bool = True) -> dict[str, Estimate]:
    """Estimate quantizers of the seven billion."""
    planned = plan_of({**DEMO, "quantize": list(specs)}, CUDA)
    given = estimates(planned, KNOWN, Devices(is_gpu))
    return {each.stage: each for each in given if each.kind == "quantize"}


def test_gptq_at_few_bits_is_told_of_autoround() -> None:
    """A plan says so where it can still be changed, and only there."""
    given = quantizers_on(*({"method": "gptq", "bits": bits} for bits in (2, 3, 4, 8)))
    told = {name for name, each in given.items() if "autoround" in "".join(each.assumed)}
    assert told == {"quantize-gptq-2", "quantize-gptq-3"}


def test_rounding_needs_no_gpu_and_holds_the_model_in_float32() -> None:
    """It works on the host, wherever it runs."""
    rtn = quantizers_on({"method": "rtn"})["quantize-rtn-4"].memory
    assert rtn is not None
    assert rtn.gpu_bytes == 0
    assert {each.name: each.bytes for each in rtn.host_peak}["weights"] == 4 * SEVEN.parameters


def test_bitnet_holds_a_tensor_at_a_time_and_is_called_a_demonstration() -> None:
    """Weights shrink to an eighth, and answer unpacked on a GPU too."""
    planned = plan_of({**DEMO, "quantize": [{"method": "bitnet"}], "gate": None}, CUDA)
    given = {each.stage: each for each in estimates(planned, KNOWN, Devices(is_gpu=True))}
    stage, judged = given["quantize-bitnet"], given["infer-bitnet"]
    assert stage.memory is not None
    assert stage.memory.gpu_bytes == 0
    assert stage.memory.host_bytes < 2 * 10**9
    rest = SEVEN.parameters - SEVEN.linear_parameters
    expected = SEVEN.linear_parameters / 4 + 2 * rest + 2_000_000
    assert stage.bytes_out == pytest.approx(expected, rel=1e-4)
    assert "demonstration" in stage.assumed[0]
    assert judged.memory is not None
    weights = {each.name: each.bytes for each in judged.memory.gpu_peak}["weights"]
    assert weights == 2 * SEVEN.parameters


def test_autoround_tunes_a_block_at_a_time_on_a_gpu() -> None:
    """The whole model stays on the host; its authors measured 10 to 18 GB with 8 billion."""
    given = quantizers_on({"method": "autoround", "bits": 2})["quantize-autoround-2"].memory
    assert given is not None
    assert 8e9 < given.gpu_bytes < 18e9
    assert given.host_bytes > 2 * SEVEN.parameters


def test_bits_and_types_foretell_their_sizes() -> None:
    """Equal bits take equal room in GPTQ's format, and 8 bits nearly twice that of 4."""
    specs = [
        *({"method": method, "bits": 4} for method in ("gptq", "autoround", "rtn")),
        *({"method": "bitsandbytes", "type": type_} for type_ in ("nf4", "fp4", "int8")),
    ]
    sizes = {name: each.bytes_out or 0 for name, each in quantizers_on(*specs).items()}
    packed = {sizes[f"quantize-{method}-4"] for method in ("gptq", "autoround", "rtn")}
    assert len(packed) == 1
    assert sizes["quantize-nf4"] == sizes["quantize-fp4"]
    assert sizes["quantize-int8"] - sizes["quantize-fp4"] == pytest.approx(
        SEVEN.linear_parameters / 2, rel=0.05
    )
