"""What a merge costs beside PEFT's, from S3 to S3, each in a process of its own.

    .venv/bin/python benchmarks/merge.py [--parameters 1.1B|tiny] [--rounds N] [--no-room]

The peer is `benchmarks/bare/merge.py` in bfloat16: download, `merge_and_unload`, save, upload,
and nothing checked.  Ours is the stage as a run starts it: every byte that comes is compared
with its digest, the sum is taken in float32, every tensor is computed once more in another
way, base, adapter and merged model answer the probe prompts, and a manifest is committed.
The model is random, in five shards.  `bit_exact` compares with `merge_and_unload` in float32,
rounded once.  With `--no-room` the stage's volume cannot hold the weights, which stay in the
store then.  The last line is one JSON object; ratios are medians over rounds.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modelmill.models.adapter import save_adapter
from modelmill.models.layout import Form, lay_out, write_index, write_shards
from modelmill.models.shards import open_tensors
from modelmill.spec.layout import make_plan, sources_of
from modelmill.spec.names import (
    ENV_ATTEMPT,
    ENV_PLAN_SHA256,
    ENV_RUN,
    ENV_STAGE,
    ENV_STORE,
    ENV_WORK,
    ENV_WORK_BYTES,
)
from modelmill.spec.plan import Plan, plan_bytes
from modelmill.spec.profile import Facts
from modelmill.spec.records import Device, Manifest
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import Pin
from modelmill.stages.attempt import SPARE_BYTES
from modelmill.store.address import open_store
from modelmill.store.artifact import (
    attempt_id,
    attempt_prefix,
    commit,
    pull,
    read_manifest,
    stage_files,
)
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.runs import put_plan
from modelmill.store.s3 import Store
from modelmill.store.transfer import upload_many

CHECKOUT = Path(__file__).resolve().parents[1]
STAGE_PYTHON = CHECKOUT / ".modelmill" / "environments" / "train" / "bin" / "python"
"""What a merge stage runs in; PEFT imports GPTQModel where it is installed, which is 0.3 GB."""
SHARDS, RANK, RUN = 5, 16, "merge"
SHAPES = {
    "1.1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22},
    "tiny": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2},
}
HEADS = {"1.1B": (32, 4), "tiny": (4, 2)}
VOCABULARY = {"1.1B": 32000, "tiny": 1024}
SPREAD = 0.02
"""Of random weights, as models are initialised with."""


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    seconds: float
    cpu_seconds: float
    """Of all threads: what remains comparable while others use the machine."""
    peak_bytes: int


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parameters", choices=sorted(SHAPES), default="1.1B")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--no-room", action="store_true", help="the stage's volume has none for the weights"
    )
    parser.add_argument("--python", default=STAGE_PYTHON, type=Path, help="of both processes")
    asked = parser.parse_args()
    python = str(asked.python)
    with workplace() as folder, EmbeddedStore(folder / "store") as embedded:
        os.environ.update(embedded.environment)
        store = open_store(embedded.url)
        make_inputs(folder, asked.parameters)
        files = {
            f"bare/{path.relative_to(folder).as_posix()}": path
            for name in ("model", "tuned/adapter")
            for path in sorted((folder / name).iterdir())
        }
        upload_many(store, files)
        rounds = []
        for number in range(asked.rounds):
            plan = commit_inputs(store, folder, number)
            bare = run_bare(
                python, f"{embedded.url}/bare", f"{embedded.url}/out{number}", "bfloat16"
            )
            mill = run_stage(python, store, plan, folder, has_room=not asked.no_room)
            rounds.append({"bare": bare, "modelmill": mill})
            print(f"bare {bare}, modelmill {mill}", file=sys.stderr)
        run_bare(python, str(folder), str(folder / "reference"), "float32")
        merged, parts, effective = take_result(store, plan, folder)
        ratio = {
            what: round(
                statistics.median(
                    getattr(each["modelmill"], what) / getattr(each["bare"], what)
                    for each in rounds
                ),
                3,
            )
            for what in ("seconds", "cpu_seconds", "peak_bytes")
        }
        print(
            json.dumps(
                {
                    "time_ratio": ratio["seconds"],
                    "cpu_ratio": ratio["cpu_seconds"],
                    "memory_ratio": ratio["peak_bytes"],
                    "bit_exact": are_equal(merged, folder / "reference"),
                    "parameters": asked.parameters,
                    "bare": [vars(each["bare"]) for each in rounds],
                    "modelmill": [vars(each["modelmill"]) for each in rounds],
                    "parts": parts,
                    "effective": effective,
                }
            )
        )


@contextmanager
def workplace() -> Iterator[Path]:
    """Make a folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="merge-"))
    temporary = folder / "temporary"
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary)  # the bare script leaves its downloads there
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def make_inputs(folder: Path, parameters: str) -> None:
    """Write a random base in shards, its tokenizer, and a random adapter of every linear layer."""
    heads, groups = HEADS[parameters]
    config = LlamaConfig(
        **SHAPES[parameters],
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=VOCABULARY[parameters],
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    forms = [
        Form(name, torch.bfloat16, tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
    ]
    total_bytes = sum(form.size_bytes for form in forms)
    largest_bytes = max(form.size_bytes for form in forms)
    shards = lay_out(forms, math.ceil(total_bytes / SHARDS) + largest_bytes // 2)
    base = folder / "model"
    base.mkdir()
    torch.manual_seed(1)
    for _ in write_shards(shards, base, random_tensor):
        pass
    write_index(shards, base, sum(form.elements for form in forms))
    config.save_pretrained(base)
    make_tokenizer(VOCABULARY[parameters]).save_pretrained(base)
    write_adapter(model, folder / "tuned" / "adapter")


def random_tensor(form: Form) -> torch.Tensor:
    """Make a weight as models are initialised with; of a norm, ones."""
    if len(form.shape) == 1:
        return torch.ones(form.shape, dtype=form.dtype)
    return torch.empty(form.shape).normal_(std=SPREAD).to(form.dtype)


def write_adapter(model: LlamaForCausalLM, folder: Path) -> None:
    """Write a trained-looking adapter of every linear layer of the blocks."""
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
    for module in adapted.modules():
        for name, place in list(module.named_parameters(recurse=False)):
            if place.requires_grad:
                value = torch.empty(place.shape).normal_(std=SPREAD)
                setattr(module, name, torch.nn.Parameter(value))
    save_adapter(adapted, folder)


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer on our own documentation."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(size, 8192),
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train([str(path) for path in sorted((CHECKOUT / "docs").rglob("*.md"))], trainer)
    ends = {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **ends)


def commit_inputs(store: Store, folder: Path, number: int) -> Plan:
    """Plan a run that merges the adapter, and commit what its merge reads."""
    run = RunSpec.model_validate(
        {
            "model": {"source": "s3://bench/model"},
            "data": {
                "test": "s3://bench/test.jsonl",
                "template": {"prompt": "{question}", "completion": "{answer}"},
            },
            "finetune": {"adapter": "s3://bench/adapter"},
        }
    )
    # Another state of the sources in every round, so that nothing is committed yet.
    pins = {source: Pin(address=source, digest=f"{number}") for source in sources_of(run)}
    plan = make_plan(run, Facts(accelerator="cpu", dtype="float32"), pins)
    for given in plan.stage("merge").inputs:
        attempt = attempt_id()
        root = folder / ("model" if given.role == "model" else "tuned")
        prefix = attempt_prefix(given.kind, given.key, attempt)
        commit(
            store,
            Manifest(
                kind=given.kind,
                key=given.key,
                stage=given.stage,
                run=RUN,
                attempt=attempt,
                created="2026-01-01T00:00:00+00:00",
                settings={},
                inputs={},
                versions={},
                device=Device(accelerator="cpu", name="benchmark"),
                files=stage_files(store, prefix, root),
            ),
        )
    return plan


def run_bare(python: str, source: str, out: str, dtype: str) -> Cost:
    """Merge by hand; from S3 if the source is there."""
    ending = "/" if source.startswith("s3://") else ""
    adapter = "tuned/adapter"
    return timed(
        [
            *(python, str(CHECKOUT / "benchmarks" / "bare" / "merge.py"), "--dtype", dtype),
            *("--model", f"{source}/model{ending}", "--adapter", f"{source}/{adapter}{ending}"),
            *("--out", out),
        ],
        {},
    )


def run_stage(python: str, store: Store, plan: Plan, folder: Path, *, has_room: bool) -> Cost:
    """Start the stage as a conductor does."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    environment = {
        ENV_STORE: store.url,
        ENV_RUN: RUN,
        ENV_STAGE: "merge",
        ENV_PLAN_SHA256: put_plan(store, RUN, plan_bytes(plan)),
        ENV_ATTEMPT: attempt_id(),
        ENV_WORK: str(work),
    }
    if not has_room:
        weights = size_of(folder / "model", "*.safetensors")
        everything = size_of(folder / "model") + size_of(folder / "tuned" / "adapter")
        # Halfway between what the rest takes and what all of it would.
        environment[ENV_WORK_BYTES] = str(2 * everything - weights + SPARE_BYTES)
    return timed([python, "-m", "modelmill.stages"], environment)


def size_of(folder: Path, pattern: str = "*") -> int:
    """Add up files, in bytes."""
    return sum(path.stat().st_size for path in folder.glob(pattern))


def timed(arguments: Sequence[str], environment: Mapping[str, str]) -> Cost:
    """Run a process and wait for what it cost."""
    started = time.perf_counter()
    process = subprocess.Popen(
        arguments,
        env={**os.environ, **environment},
        cwd=os.environ["TMPDIR"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {process.returncode}:\n{said}")
    seconds = time.perf_counter() - started
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Cost(round(seconds, 2), round(cpu_seconds, 2), usage.ru_maxrss * 1024)


def take_result(store: Store, plan: Plan, folder: Path) -> tuple[Path, object, object]:
    """Pull what the stage has committed, and what it measured."""
    stage = plan.stage("merge")
    committed = read_manifest(store, stage.kind, stage.key)
    assert committed is not None
    target = folder / "merged"
    pull(store, committed, target)
    measured = json.loads((target / "measurements.json").read_text(encoding="utf-8"))
    parts = {part["name"]: round(part["seconds"], 2) for part in measured["parts"]}
    return target, parts, measured["effective"]


def are_equal(one: Path, other: Path) -> bool:
    """Compare two checkpoints tensor by tensor, bit by bit."""
    with open_tensors(one) as ours, open_tensors(other) as theirs:
        return ours.tensors.keys() == theirs.tensors.keys() and all(
            ours.read(name).dtype == theirs.read(name).dtype
            and torch.equal(ours.read(name).view(torch.int16), theirs.read(name).view(torch.int16))
            for name in ours.tensors
        )


if __name__ == "__main__":
    main()
