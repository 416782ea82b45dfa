"""Locks hold no version with a known hole that matters here, and nothing we do without."""

import pytest

from .locks import IMAGES, lock_of, names

LOCKED = tuple(sorted(path.parent.name for path in IMAGES.glob("*/requirements.lock")))

FIXED = {
    "jinja2": (3, 1, 6),  # CVE-2025-27516: out of the sandbox by a filter
    "pyarrow": (14, 0, 1),  # CVE-2023-47248: a schema that is a pickle
    "torch": (2, 10),  # CVE-2025-32434, CVE-2026-24747
    "transformers": (5, 3),  # CVE-2026-4372, CVE-2026-5241, CVE-2026-1839
    "vllm": (0, 18),  # CVE-2026-22807, CVE-2026-27893, CVE-2025-62164
}
"""The first version without the hole."""

WITHOUT = {"kernels", "llama-cpp-python", "mlflow", "ray", "sglang"}
"""Code from a hub, servers that listen, and a store of pickles."""


def _version(line: str) -> tuple[int, ...]:
    text = line.partition("==")[2].partition(" ")[0].partition("+")[0]
    return tuple(int(part) for part in text.split(".") if part.isdigit())


@pytest.mark.parametrize("image", LOCKED)
def test_lock_is_past_the_fix(image: str) -> None:
    """Whatever of these packages an image has, it is new enough."""
    pins = [pin for pin in lock_of(image).values() if pin.name in FIXED]
    assert [pin.line for pin in pins if _version(pin.line) < FIXED[pin.name]] == []


def test_version_before_the_fix_would_be_noticed() -> None:
    """The comparison is of numbers, not of text."""
    assert _version("torch==2.9.1 ; sys_platform == 'linux'") < FIXED["torch"]
    assert _version("torch==2.10.0+cpu") >= FIXED["torch"]


@pytest.mark.parametrize("image", LOCKED)
def test_no_image_has_what_we_do_without(image: str) -> None:
    """An image that cannot do a thing cannot be made to do it."""
    assert names(lock_of(image)) & WITHOUT == set()


@pytest.mark.parametrize("image", ["light", "finetune", "merge", "quantize", "infer", "infer-vllm"])
def test_image_that_checks_models_can_try_their_templates(image: str) -> None:
    """The safety check needs Jinja wherever a stage reads a model."""
    assert "jinja2" in names(lock_of(image))
