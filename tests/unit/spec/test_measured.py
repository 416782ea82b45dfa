"""Formulas stay near what was measured; docs/fit.md shows by how much they are off."""

import json
from pathlib import Path
from typing import Any

import pytest

from modelmill.spec.estimate import group_of
from modelmill.spec.footprint import Form, Rows, finetune_memory, infer_memory
from modelmill.spec.memory import BYTES_OF, quantized_bytes
from modelmill.spec.quantizer_footprint import calibration_parts, quantize_memory
from modelmill.spec.rank_footprint import Ranks, memory_of_ranks, share_of
from modelmill.spec.settings import FinetuneSettings, InferSettings, QuantizeSettings
from modelmill.spec.shape import ModelShape

PEAKS: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "docs/measured/peaks.json").read_text(encoding="utf-8")
)
SHAPES = {name: ModelShape.model_validate(each) for name, each in PEAKS["models"].items()}
STAGES = [(run, stage) for run in PEAKS["runs"] for stage in run["stages"]]


def of_kind(kind: str) -> list[Any]:
    """List the measured stages of a kind, with names for pytest."""
    return [
        pytest.param(run, stage, id=f"{run['run']}-{stage['stage']}")
        for run, stage in STAGES
        if stage["settings"]["kind"] == kind
    ]


@pytest.mark.parametrize(("run", "stage"), of_kind("quantize"))
def test_quantized_size_is_within_one_percent(run: dict[str, Any], stage: dict[str, Any]) -> None:
    """Bits, scales, zero points, groups, and everything that stays in 16 bits."""
    settings = QuantizeSettings.model_validate(stage["settings"])
    shape = SHAPES[run["model"]]
    size = quantized_bytes(shape, settings.quantize, group_of(shape, settings.quantize))
    assert size == pytest.approx(stage["weight_bytes"], rel=0.01)


@pytest.mark.parametrize(("run", "stage"), of_kind("finetune"))
def test_fine_tune_peak_is_within_a_fifth(run: dict[str, Any], stage: dict[str, Any]) -> None:
    """On two cores, where the allocator adds what no formula knows."""
    settings = FinetuneSettings.model_validate(stage["settings"])
    rows = Rows.model_validate(run["rows"])
    ranks = stage.get("ranks", 1)
    own = finetune_memory(SHAPES[run["model"]], share_of(settings, ranks), rows, is_gpu=False)
    memory = memory_of_ranks(own, Ranks(ranks))
    assert memory.resident_bytes == pytest.approx(stage["peak_rss_bytes"], rel=0.2)


def told(what: str, model: str) -> float:
    """Read a figure of the notebooks, as GB."""
    found = [e["told"] for e in PEAKS["origin"] if (e["what"], e["model"]) == (what, model)]
    return 10**9 * float(found[0])


@pytest.mark.parametrize("model", ["bloom-7b1", "falcon-7b"])
def test_notebook_that_quantized_took_what_the_parts_add_up_to(model: str) -> None:
    """The whole model in 16 bits on the GPU, and 262,144 tokens of C4."""
    shape = SHAPES[model]
    work = sum(each.bytes for each in calibration_parts(shape, 128 * 2048, "float16"))
    held = shape.parameters * BYTES_OF["float16"]
    assert held + work == pytest.approx(told("quantize", model), rel=0.1)


@pytest.mark.parametrize("model", ["bloom-7b1", "falcon-7b"])
def test_notebook_that_answered_took_what_the_parts_add_up_to(model: str) -> None:
    """In float32, as its merge had written it."""
    asked = {
        "prompt": "contract",
        "shots": None,
        "max_new_tokens": 128,
        "batch_size": 1,
        "dtype": "float32",
        "nll": False,
        "contract": {"max_length": 256},
        "seed": None,
    }
    settings = InferSettings.model_validate(asked)
    rows = Rows(longest=256, learned=128, prompt=256)
    memory = infer_memory(SHAPES[model], settings, rows, Form(), cores=0)
    assert memory.gpu_bytes == pytest.approx(told("infer", model), rel=0.1)


def test_quantizer_brings_one_block_at_a_time_to_a_gpu() -> None:
    """So it takes much less there than the notebooks did, and the host holds the model."""
    asked = {"quantize": {"method": "gptq"}, "contract": {"max_length": 512}, "seed": 0}
    settings = QuantizeSettings.model_validate(asked)
    shape = SHAPES["bloom-7b1"]
    memory = quantize_memory(shape, settings, 128, is_gpu=True)
    assert memory.gpu_bytes < told("quantize", "bloom-7b1") / 2
    assert memory.host_bytes > 2 * shape.parameters
