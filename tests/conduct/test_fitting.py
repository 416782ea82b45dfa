"""`plan` looks at a model wherever it is, and ends with 78 where a stage cannot fit."""

import json
import shutil
from math import prod
from pathlib import Path
from typing import Any

import pytest

from modelmill.conduct.base_model import known_of
from modelmill.conduct.fitting import facts_on
from modelmill.conduct.prepare import Asked, preview
from modelmill.spec.loading import load_run
from modelmill.spec.profile import Profile
from modelmill.store.s3 import Store

from ..unit.spec.models import LLAMA, llama_tensors
from ..workshop import Workshop, safetensors

SMALL: dict[str, Any] = {
    **LLAMA,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 128,
}

MORE = """\
finetune: {batch_size: 4096, micro_batch_size: 4096}
quantize: [{method: gptq}]
"""


def write_llama(folder: Path, **changes: Any) -> Path:
    """Write a llama that a library would open, with zeros for weights."""
    folder.mkdir()
    config = {**SMALL, **changes}
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in llama_tensors(SMALL).items():
        start, end = end, end + 2 * prod(tensor.shape)
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    (folder / "model.safetensors").write_bytes(safetensors(header, end))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def llama(workshop: Workshop) -> Path:
    """Write a run of a llama whose batches are far too large for any GPU."""
    folder = write_llama(workshop.folder / "llama")
    workshop.write_run("llama.yaml", model="llama", more=MORE)
    return folder


LONG = ("--set", "data.max_length=65536")


def test_plan_shows_what_every_stage_will_take(workshop: Workshop, llama: Path) -> None:
    """Sizes in a table, their parts in JSON; without a device nothing is promised."""
    shown = workshop.modelmill("plan", "llama.yaml")
    assert shown.returncode == 0, shown.stderr
    assert "GPU" in shown.stdout
    assert "docs/fit.md" in shown.stderr
    rows = {row["stage"]: row["fit"] for row in workshop.read("plan", "llama.yaml")}
    weights = 2 * sum(prod(each.shape) for each in llama_tensors(SMALL).values())
    assert rows["finetune"]["host_parts"]["weights"] == 2 * weights
    assert "weights" not in rows["merge"]["host_parts"]
    assert {row["state"] for row in rows.values()} == {"unknown"}
    assert rows["fetch-model"]["bytes_in"] == sum(path.stat().st_size for path in llama.iterdir())


def test_plan_shows_what_shards_ask_for_together(workshop: Workshop, llama: Path) -> None:
    """Each takes what one would take; a queue must have room for all of them at once."""
    profile = "stages: {infer: {shards: 3, memory: 8Gi, shm: 1Gi}}\n"
    (workshop.folder / "shards.yaml").write_text(profile, encoding="utf-8")
    asked = ("plan", "llama.yaml", "--profile", "shards.yaml")
    shown = workshop.modelmill(*asked)
    assert shown.stderr.count("infer: on a cluster 3 pods share the rows of a model") == 1
    assert "they ask for 3 GPUs and 27Gi.  Elsewhere one process answers all" in shown.stderr
    rows = {row["stage"]: row for row in workshop.read(*asked)}
    assert rows["infer-base"]["fit"]["shared"] == {"shards": 3, "gpu": 3, "memory": "27Gi"}
    assert rows["finetune"]["fit"]["shared"] is None
    alone = {row["stage"]: row for row in workshop.read("plan", "llama.yaml")}
    sizes = ("gpu_bytes", "host_bytes", "disk_bytes")
    for name, row in alone.items():
        assert row["key"] == rows[name]["key"]
        assert [row["fit"][size] for size in sizes] == [rows[name]["fit"][size] for size in sizes]


def test_plan_for_a_device_that_is_too_small_ends_with_78(workshop: Workshop, llama: Path) -> None:
    """It says which stage, by how much, and what would make it fit."""
    refused = workshop.modelmill("plan", "llama.yaml", "--accelerator", "l4", *LONG)
    assert refused.returncode == 78
    assert "finetune does not fit: GPU memory:" in refused.stderr
    assert "finetune.micro_batch_size: 1" in refused.stderr
    assert "does not fit" in refused.stdout
    one = ("--set", "finetune.micro_batch_size=1", *LONG)
    mended = workshop.modelmill("plan", "llama.yaml", "--accelerator", "l4", *one)
    assert mended.returncode == 0, mended.stderr


def test_plan_for_another_device_has_the_keys_of_that_device(
    workshop: Workshop, llama: Path
) -> None:
    """Numbers depend on it, so it would be computed anew there."""
    asked = ("plan", "llama.yaml", "--set", "finetune.micro_batch_size=1", "--accelerator")
    keys = [
        {row["stage"]: row["key"] for row in workshop.read(*asked, device)}
        for device in ("cpu", "a100-80")
    ]
    assert keys[0]["fetch-model"] == keys[1]["fetch-model"]
    assert keys[0]["infer-base"] != keys[1]["infer-base"]
    assert facts_on("h100", Profile()).accelerator == "cuda"
    assert facts_on("cpu", Profile()).accelerator == "cpu"


def test_plan_of_a_quantized_base_is_refused_with_64(workshop: Workshop, llama: Path) -> None:
    """Before anything runs, with the way out."""
    write_llama(workshop.folder / "packed", quantization_config={"quant_method": "gptq"})
    workshop.write_run("packed.yaml", model="packed", more="finetune: {r: 4}\n")
    refused = workshop.modelmill("plan", "packed.yaml")
    assert refused.returncode == 64
    assert "quantized with gptq already" in refused.stderr
    assert "16-bit model" in refused.stderr


def test_plan_of_indivisible_groups_is_refused_with_64(workshop: Workshop, llama: Path) -> None:
    """The layers are named, and the size that works."""
    group = ("--set", "quantize.0.group_size=64")
    refused = workshop.modelmill("plan", "llama.yaml", *group)
    assert refused.returncode == 64
    assert "quantize[0].group_size: 64 does not divide" in refused.stderr
    assert "model.layers.*.mlp.down_proj (96)" in refused.stderr
    assert "takes 32" in refused.stderr


def test_run_of_what_the_model_rules_out_ends_with_64_before_anything_runs(
    workshop: Workshop, llama: Path
) -> None:
    """`run` says what `plan` says, and leaves no run behind."""
    refused = workshop.modelmill("run", "llama.yaml", "--set", "quantize.0.group_size=64")
    assert refused.returncode == 64
    assert "quantize[0].group_size: 64 does not divide" in refused.stderr
    assert "llama" not in {row["run"] for row in workshop.read("list")}


def test_plan_shows_which_engine_serves_each_model_fastest(workshop: Workshop, llama: Path) -> None:
    """One line each; in JSON beside the stage that measures the model."""
    less = ("--set", "finetune.micro_batch_size=1", "--accelerator", "l4")
    shown = workshop.modelmill("plan", "llama.yaml", *less)
    assert "served fastest by" in shown.stdout
    assert "4-bit symmetric GPTQ on CUDA" in shown.stdout
    rows = {row["stage"]: row["serving"] for row in workshop.read("plan", "llama.yaml", *less)}
    assert rows["infer-gptq-4"] == {
        "model": "gptq-4",
        "engine": "vLLM",
        "why": "4-bit symmetric GPTQ on CUDA",
    }
    assert rows["finetune"] is None
    here = {row["stage"]: row["serving"] for row in workshop.read("plan", "llama.yaml")}
    assert here["infer-gptq-4"]["engine"] == "transformers"


def test_plan_of_a_family_that_vllm_does_not_know_is_refused_with_64(workshop: Workshop) -> None:
    """Before anything runs, with the way out."""
    write_llama(workshop.folder / "codegen", model_type="codegen")
    workshop.write_run(
        "codegen.yaml", model="codegen", more="quantize: [{method: rtn, compat: [vllm]}]\n"
    )
    refused = workshop.modelmill("plan", "codegen.yaml")
    assert refused.returncode == 64
    assert "quantize[0].compat: vLLM has no model for codegen" in refused.stderr
    assert "transformers runs it" in refused.stderr


def test_model_that_nothing_is_known_about_is_planned_all_the_same(workshop: Workshop) -> None:
    """The workshop's own model says no sizes; the plan says so and goes on."""
    shown = workshop.modelmill("plan", "run.yaml", "--accelerator", "l4")
    assert shown.returncode == 0, shown.stderr
    assert "unknown until the model is fetched" in shown.stderr
    assert "hidden_size" in shown.stderr


def test_fetched_model_is_looked_at_in_its_artifact(
    workshop: Workshop, store: Store, llama: Path
) -> None:
    """When the folder it came from is gone, the artifact still says what it is."""
    shutil.copytree(llama, workshop.folder / "moved")
    workshop.write_run("moved.yaml", model="moved")
    assert workshop.modelmill("run", "moved.yaml").returncode == 0
    run = load_run(workshop.folder / "moved.yaml")
    plan = preview(store, run, Profile(), Asked("moved", workshop.folder))
    there = known_of(store, plan, workshop.folder)
    shutil.rmtree(workshop.folder / "moved")
    gone = known_of(store, plan, workshop.folder)
    assert gone.shape is not None
    assert gone.shape == there.shape
