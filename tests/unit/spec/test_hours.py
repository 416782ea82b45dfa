"""Hours are foretold as ranges with a basis, and left out where nothing is known."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelmill.cli.planned import print_hours
from modelmill.report.spending import StageSpending, spent_by_stage
from modelmill.spec.accelerators import ACCELERATORS, AcceleratorName
from modelmill.spec.estimate import Known
from modelmill.spec.hours import foretell
from modelmill.spec.prices import Prices
from modelmill.spec.profile import Facts, Profile
from modelmill.spec.records import Foretold

from .models import llama
from .test_plan import DEMO, plan_of

SEVEN = llama()
CUDA = Facts(accelerator="cuda", dtype="bfloat16")
CPU = Facts(accelerator="cpu", dtype="float32")
PRICES = {"currency": "EUR", "per_hour": {"h100": 2.5, "cpu": 0.05}}

GOLDEN = """
stage              on                        hours           EUR
fetch-model        cpu                           -             -
fetch-data         cpu                           -             -
fetch-test         cpu                           -             -
finetune           h100  1 min 54 s to 31 min 44 s  0.08 to 1.32
merge              cpu                           -             -
quantize-gptq-4    h100  21 min 20 s to 1 h 05 min  0.89 to 2.71
quantize-nf4       h100                          -             -
infer-base         h100                          -             -
infer-base-own     h100                          -             -
infer-merged       h100                          -             -
infer-gptq-4       h100                          -             -
infer-nf4          h100                          -             -
all GPUs                 23 min 15 s to 1 h 37 min  0.97 to 4.04
all without a GPU                                -             -
"""


def foretold_on(
    gpu: str, facts: Facts = CUDA, size: int = 9_000_000, **changes: Any
) -> dict[str, Foretold]:
    """Foretell a run of seven billion parameters."""
    more = {"finetune": {}, "quantize": [{"method": "gptq"}, {"method": "bitsandbytes"}], **changes}
    plan = plan_of({**DEMO, **more}, facts)
    sizes = {pin.address: size for pin in plan.pins.values()}
    known = Known(shape=SEVEN, bytes_by_address=sizes)
    return dict(foretell(plan, known, Profile(), gpu))


def seconds(told: Foretold) -> tuple[float, float]:
    """Read a range that is there."""
    assert told.low_seconds is not None
    assert told.high_seconds is not None
    return told.low_seconds, told.high_seconds


@given(st.sampled_from([each for each in ACCELERATORS if each != "cpu"]), st.integers(1, 10**12))
def test_more_rows_and_epochs_take_longer(gpu: AcceleratorName, size: int) -> None:
    """Ranges are proportional to what there is to learn from, and never empty."""
    low, high = seconds(foretold_on(gpu, size=size)["finetune"])
    assert 0 < low < high
    twice = seconds(foretold_on(gpu, size=2 * size)["finetune"])
    assert twice == pytest.approx((2 * low, 2 * high))
    three = foretold_on(gpu, size=size, finetune={"num_train_epochs": 3})["finetune"]
    assert seconds(three) == pytest.approx((3 * low, 3 * high))


def test_training_every_weight_takes_half_as_long_again() -> None:
    """Six operations for each weight and token, not four; checkpointing adds two."""
    low = seconds(foretold_on("h100")["finetune"])[0]
    for changes, factor in (({"method": "full"}, 1.5), ({"gradient_checkpointing": True}, 1.5)):
        changed = foretold_on("h100", finetune=changes)["finetune"]
        assert seconds(changed)[0] == pytest.approx(factor * low)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (foretold_on("h100")["infer-base"], "how long answers will be"),
        (foretold_on("h100")["merge"], "the store and the network"),
        (foretold_on("h100")["quantize-nf4"], "weights are read and written"),
        (foretold_on("mine")["finetune"], "which GPU"),
        (foretold_on("")["finetune"], "which GPU"),
        (foretold_on("h100", CPU)["finetune"], "processors differ"),
        (foretold_on("h100", finetune={"precision": "float32"})["finetune"], "float32"),
    ],
)
def test_without_a_basis_there_is_no_number(told: Foretold, words: str) -> None:
    """A word says why instead."""
    assert told.low_seconds is None
    assert told.high_seconds is None
    assert told.basis.startswith("no basis: ")
    assert words in told.basis


def test_what_was_measured_goes_before_what_is_reckoned() -> None:
    """On a CPU too, where nothing else is known."""
    plan = plan_of(DEMO, CPU)
    known = Known(measured_seconds={"finetune": 100.0})
    told = foretell(plan, known, Profile(), "")["finetune"]
    assert (told.device, told.low_seconds, told.high_seconds) == ("cpu", 80.0, 125.0)
    assert "measured before: 100 s" in told.basis


def test_devices_are_those_of_the_profile() -> None:
    """Two GPUs for each of three shards are six; stages without one are held as they are."""
    place = Profile.model_validate(
        {
            "images": {"registry": "registry.example"},
            "stages": {"infer": {"gpu": 2, "shards": 3}, "finetune": {"gpu": 4}},
        }
    )
    told = foretell(plan_of(DEMO, CUDA), Known(), place, "h100")
    held = {name: (each.device, each.devices) for name, each in told.items()}
    assert held["infer-base"] == ("h100", 6)
    assert held["finetune"] == ("h100", 4)
    assert held["merge"] == ("cpu", 1)


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"prices": {"per_hour": {"h100": 1}}}, "currency: required"),
        ({"prices": {"currency": "euro"}}, "currency"),
        ({"prices": {"currency": "EUR", "per_hour": {"h100": -1}}}, "greater than or equal"),
        ({"gpu_type": "h200", "prices": PRICES}, "has no 'h200'"),
        ({"gpu_type": "cpu"}, "gpu_type: a cpu is none"),
    ],
)
def test_profile_with_a_useless_price_list_is_refused(profile: dict[str, Any], words: str) -> None:
    """Before a run is planned with it, in words."""
    with pytest.raises(ValidationError, match=words):
        Profile.model_validate(profile)
    assert Profile.model_validate({"gpu_type": "h100", "prices": PRICES}).prices.per_hour


def spent(told: dict[str, Foretold], prices: Prices) -> dict[str, StageSpending]:
    """Price what was foretold."""
    return {name: spent_by_stage(each, (), prices) for name, each in told.items()}


def test_plan_prints_hours_prices_and_what_they_rest_on(capsys: pytest.CaptureFixture[str]) -> None:
    """A range for what has a basis, a dash for what has none; sums of what is known."""
    told = foretold_on("h100")
    print_hours(spent(told, Prices.model_validate(PRICES)), "EUR")
    shown = capsys.readouterr()
    assert shown.out.replace("\N{EN DASH}", "-") == GOLDEN
    assert (
        "finetune: 26.4 billion FLOPs for each of 1.71 million to 2.85 million tokens "
        "(5 to 3 bytes of the files each), at 40 % to 4 % of 989 TFLOPS in 16 bits"
    ) in shown.err


def test_plan_without_prices_has_hours_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """And of a place without GPUs and without a basis it says nothing."""
    print_hours(spent(foretold_on("h100"), Prices()), "")
    shown = capsys.readouterr()
    assert "1 h 05 min" in shown.out
    assert "EUR" not in shown.out + shown.err
    print_hours(spent(foretold_on("", CPU), Prices()), "")
    assert capsys.readouterr() == ("", "")
