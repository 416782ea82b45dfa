"""A profile says what a place offers, complete, and refuses what contradicts itself."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelmill.spec.cluster import STAGE_DEFAULTS, StagePods
from modelmill.spec.names import KINDS, kind_of
from modelmill.spec.profile import Facts, Profile, cluster_facts
from modelmill.spec.quantity import amount, total, whole_bytes, whole_cores

from .strategies import profiles


@given(profiles())
def test_profile_survives_being_written_out(data: dict[str, Any]) -> None:
    """What the submitter reads is what the conductor reads from the release's values."""
    profile = Profile.model_validate(data)
    assert Profile.model_validate(profile.model_dump(mode="json")) == profile


def test_defaults_of_a_kind_stay_where_another_setting_is_given() -> None:
    """`stages: {finetune: {queue: x}}` does not take its GPU away."""
    finetune = Profile.model_validate({"stages": {"finetune": {"queue": "x"}}}).stages["finetune"]
    assert (finetune.queue, finetune.gpu, finetune.memory) == ("x", 1, "48Gi")
    assert set(Profile().stages) == set(KINDS)
    assert set(STAGE_DEFAULTS) == set(KINDS)


@pytest.mark.parametrize(
    ("profile", "facts"),
    [
        ({}, ("cuda", "bfloat16")),
        ({"accelerator": "cpu"}, ("cpu", "float32")),
        ({"dtype": "float16"}, ("cuda", "float16")),
        ({"stages": {kind: {"gpu": 0} for kind in KINDS}}, ("cpu", "float32")),
        ({"accelerator": "cpu", "stages": {"infer": {"gpu": 1}}}, ("cpu", "float32")),
    ],
)
def test_facts_of_a_cluster_follow_from_what_stages_ask_for(
    profile: dict[str, Any], facts: tuple[str, str]
) -> None:
    """The conductor has no GPU itself, so it cannot look for one."""
    found = cluster_facts(Profile.model_validate(profile))
    assert found == Facts.model_validate({"accelerator": facts[0], "dtype": facts[1]})


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"stages": {"infer": {"gpu": 0}}}, "other kinds have one"),
        ({"accelerator": "cuda", "stages": {"infer": {"gpu": 0}}}, "so it needs one"),
        ({"stages": {"finetun": {}}}, "'fetch-model', 'fetch-data'"),
        ({"stages": {"finetune": {"gpus": 1}}}, "Extra inputs"),
        ({"stages": {"finetune": {"memory": "16 GB"}}}, "pattern"),
        ({"stages": {"finetune": {"cpu": True}}}, "valid string"),
        ({"pods": {"labels": {"a b": "c"}}}, "pattern"),
        ({"pods": {"labels": {"a": "x" * 64}}}, "63"),
        ({"pods": {"tolerations": [{"operator": "Equal"}]}}, "must be Exists"),
        ({"pods": {"tolerations": [{"key": "a", "tolerationSeconds": 3}]}}, "must be NoExecute"),
        (
            {"pods": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
            "must be empty",
        ),
        ({"proxy": {"https_proxy": "http://user:word@proxy"}}, "pattern"),
        ({"store": {"endpoint_url": "https://key:word@s3"}}, "pattern"),
        ({"store": {"url": "bucket"}}, "pattern"),
        ({"images": {"registry": "https://r"}}, "pattern"),
        ({"images": {"digests": {"merge": "latest"}}}, "pattern"),
        ({"conductor": {"cpu": "2"}}, "pattern"),
        ({"stages": {"infer": {"shards": 0}}}, "greater than or equal to 1"),
        ({"stages": {"infer": {"shards": 65}}}, "less than or equal to 64"),
        ({"stages": {"merge": {"shards": 2}}}, "stages.merge.shards: only infer"),
    ],
)
def test_wrong_profile_is_refused(profile: dict[str, Any], said: str) -> None:
    """A cluster never gets to see what cannot be right."""
    with pytest.raises(ValidationError, match=said):
        Profile.model_validate(profile)


@given(st.lists(st.tuples(st.integers(1, 4096), st.sampled_from(["", "Ki", "Mi", "Gi", "M", "G"]))))
def test_total_is_the_sum_in_a_spelling_that_reads_back(sizes: list[tuple[int, str]]) -> None:
    """Nothing is lost by writing a sum in a larger unit."""
    texts = [f"{number}{unit}" for number, unit in sizes]
    assert whole_bytes(total(*texts)) == sum(map(whole_bytes, texts))


def test_quantities_are_those_of_kubernetes() -> None:
    """Powers of ten and of two, thousandths, and numbers that YAML made of them."""
    assert (whole_bytes("1Ki"), whole_bytes("1k"), whole_bytes("1.5Gi")) == (1024, 1000, 1610612736)
    assert amount("500m") * 2 == amount("1")
    assert [whole_cores(each) for each in ("0", "500m", "2", "2500m")] == [1, 1, 2, 3]
    assert StagePods.model_validate({"cpu": 4.0, "memory": 2147483648}).memory == "2147483648"
    assert StagePods.model_validate({"cpu": 0.5}).cpu == "0.5"
    with pytest.raises(ValueError, match="16GB"):
        amount("16GB")


@pytest.mark.parametrize(
    ("stage", "kind"),
    [("fetch-model", "fetch-model"), ("quantize-gptq-4", "quantize"), ("infer-base-own", "infer")],
)
def test_kind_of_a_stage_is_the_beginning_of_its_name(stage: str, kind: str) -> None:
    """A variant does not change what a stage does."""
    assert kind_of(stage) == kind


def test_unknown_stage_has_no_kind() -> None:
    """A name that starts like a kind is not enough."""
    with pytest.raises(ValueError, match="merger"):
        kind_of("merger")
