"""The whole chain with real kernels on the GPU that is here: what each stage took.

    make gpu-check        or        .modelmill/environments/light/bin/python benchmarks/gpu.py

QLoRA in bfloat16 on NF4, merge, GPTQ and NF4, answers of every model.  Ends well, with one
line, where there is no GPU; `--any-device` runs the same on a CPU.  A stage that says it
worked on something else than the GPU is an error.  The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from example import HOME, MODEL, TEMPLATE, make_data, prepare_model, python

from modelmill.cli.show import print_table
from modelmill.store.embedded import EmbeddedStore

ON_GPU = ("finetune", "quantize", "infer")
"""Stages that have something to do there; a merge adds on the host."""

COLUMNS = ("stage", "seconds", "work_seconds", "tokens_per_second", "peak_gpu_mib", "with")

Row = Mapping[str, str | float | None]


def main() -> None:
    """Look for a GPU, run the chain, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--any-device", action="store_true", help="also without a GPU")
    parser.add_argument("--model", type=Path, help="a folder; the example's when absent")
    parser.add_argument("--test-rows", type=int, default=256)
    parser.add_argument("--train-rows", type=int, default=512)
    asked = parser.parse_args()
    device = gpu(python("train"))
    if device is None and not asked.any_device:
        print("There is no CUDA device here, so there is nothing to check.")
        return
    if asked.model is None:
        prepare_model()
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        folder = Path(name)
        make_data(folder, asked.train_rows, asked.test_rows)
        spec = run_spec(asked.model or MODEL)
        (folder / "run.yaml").write_text(json.dumps(spec), encoding="utf-8")
        with EmbeddedStore(folder / "store") as embedded:
            os.environ.update(embedded.environment)
            stages = run(folder, embedded.url)
    rows = list(rows_of(stages))
    print_table(COLUMNS, [[_cell(row[column]) for column in COLUMNS] for row in rows])
    print(json.dumps({"device": device, "stages": rows}))
    elsewhere = [] if device is None else list(not_on_gpu(stages))
    if elsewhere:
        sys.exit(f"not on the GPU: {', '.join(elsewhere)}")


def gpu(interpreter: Path) -> str | None:
    """Name the GPU as the stages' own torch does."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    ended = subprocess.run([interpreter, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return ended.stdout.strip() or None


def run_spec(model: Path) -> Mapping[str, object]:
    """Ask for every kernel there is, in JSON, which is YAML too."""
    return {
        "model": {"source": str(model.resolve())},
        "data": {
            "train": "train.jsonl",
            "eval": 0.1,
            "test": "test.jsonl",
            "template": TEMPLATE,
            "max_length": 512,
        },
        "finetune": {"load_in": "nf4", "num_train_epochs": 1, "learning_rate": 2e-3},
        "quantize": [
            {"method": "gptq", "bits": 4, "calibration": {"tokens": 8192}},
            {"method": "bitsandbytes"},
        ],
        "infer": {
            "max_new_tokens": 48,
            "batch_size": 64,
            "adapter": True,
            "metrics": {"nll": {}, "exact_match": {}},
        },
    }


def run(folder: Path, store: str) -> Sequence[Mapping[str, Any]]:
    """Run the chain where nothing is committed yet; returns the report's stages."""
    subprocess.run(
        [
            *(sys.executable, "-m", "modelmill", "run", folder / "run.yaml", "--name", "gpu-check"),
            *("--store", store, "--home", HOME, "--report-folder", folder / "report"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    report = json.loads((folder / "report" / "gpu-check" / "report.json").read_bytes())
    stages: Sequence[Mapping[str, Any]] = report["stages"]
    return stages


def rows_of(stages: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Take what each working stage has measured of itself."""
    for stage in stages:
        if stage["kind"].startswith("fetch"):
            continue
        figures = stage["figures"]
        speed = figures.get("tokens_per_second")
        yield {
            "stage": stage["stage"],
            "seconds": round(stage["seconds"], 1),
            "work_seconds": round(
                sum(part["seconds"] for part in stage["parts"] if part["name"] == "work"), 1
            ),
            "tokens_per_second": None if speed is None else round(speed, 1),
            "peak_gpu_mib": round(stage["peak_gpu_bytes"] / 2**20),
            "with": figures.get("engine") or figures.get("precision") or "",
        }


def not_on_gpu(stages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Name the stages that have a GPU and used none of its memory."""
    for stage in stages:
        if stage["kind"] in ON_GPU and not stage["peak_gpu_bytes"]:
            yield stage["stage"]


def _cell(value: str | float | None) -> str:
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
