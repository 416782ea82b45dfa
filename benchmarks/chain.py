"""What the chain costs beside the same work done by bare scripts, side by side in one run.

    .modelmill/environments/light/bin/python benchmarks/chain.py [--rounds N]

The peer is `benchmarks/bare`: TRL, PEFT, GPTQModel, transformers and boto3, as a careful user
would write them by hand, each script its own process, with the same settings, reading from
and writing to the same store.  modelmill also verifies every byte, proves its merge, checks
every tensor of what it quantized, chooses the base's best prompt and writes a report; that
is what its ratio may cost.  The last line is one JSON object; ratios are medians over rounds.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from example import CHECKOUT, HOME, MODEL, TEMPLATE, make_data, prepare_model, python

from modelmill.store.address import open_store
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.transfer import upload_many

TRAIN_ROWS, TEST_ROWS = 96, 64
EPOCHS, NEW_TOKENS, CALIBRATION_TOKENS = 1, 32, 4096


def run_spec(dtype: str) -> Mapping[str, object]:
    """Ask modelmill for what the bare scripts do, in JSON, which is YAML too."""
    return {
        "model": {"source": str(MODEL)},
        "data": {
            "train": "train.jsonl",
            "eval": 0.1,
            "test": "test.jsonl",
            "template": TEMPLATE,
            "max_length": 192,
        },
        "finetune": {
            "r": 16,
            "lora_alpha": 32,
            "num_train_epochs": EPOCHS,
            "learning_rate": 2e-3,
            "batch_size": 4,
            "eval_steps": 0.99,
        },
        "quantize": [
            {
                "method": "gptq",
                "bits": 4,
                "group_size": 64,
                "calibration": {"tokens": CALIBRATION_TOKENS},
            }
        ],
        "infer": {
            "max_new_tokens": NEW_TOKENS,
            "batch_size": 16,
            "dtype": dtype,
            "metrics": {"nll": {}, "exact_match": {}},
        },
    }


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", default="float32", help="of inference, on both sides")
    asked = parser.parse_args()
    prepare_model()
    rounds = []
    with workplace(asked.dtype) as folder, EmbeddedStore(folder / "store") as embedded:
        os.environ.update(embedded.environment)
        upload_inputs(embedded.url, folder)
        for number in range(asked.rounds):
            bare = run_bare(f"{embedded.url}/bare", number, asked.dtype)
            mill = run_modelmill(f"{embedded.url}/mill{number}", folder)
            rounds.append({"bare": bare, "modelmill": mill})
            print(json.dumps(rounds[-1]), file=sys.stderr)

    def ratio(*stages: str) -> float:
        return round(
            statistics.median(
                sum(each["modelmill"][stage] for stage in stages)
                / sum(each["bare"][stage] for stage in stages)
                for each in rounds
            ),
            3,
        )

    inferred = [name for name in rounds[0]["bare"] if name.startswith("infer")]
    print(
        json.dumps(
            {
                "time_ratio": ratio("total"),
                "finetune_ratio": ratio("finetune"),
                "merge_ratio": ratio("merge"),
                "quantize_ratio": ratio("quantize-gptq-4"),
                "infer_ratio": ratio(*inferred),
                "rounds": rounds,
            }
        )
    )


@contextmanager
def workplace(dtype: str) -> Iterator[Path]:
    """Lay out a run file and its data in a folder of their own."""
    folder = Path(tempfile.mkdtemp(prefix="chain-"))
    try:
        make_data(folder, TRAIN_ROWS, TEST_ROWS)
        (folder / "run.yaml").write_text(json.dumps(run_spec(dtype)), encoding="utf-8")
        yield folder
    finally:
        shutil.rmtree(folder)


def upload_inputs(url: str, folder: Path) -> None:
    """Put model and data where the bare scripts read them; modelmill uploads its own."""
    files = {f"bare/model/{path.name}": path for path in MODEL.iterdir()}
    files |= {f"bare/{name}": folder / name for name in ("train.jsonl", "test.jsonl")}
    upload_many(open_store(url), files)


def run_bare(url: str, number: int, dtype: str) -> Mapping[str, float]:
    """Run the scripts one after the other and time each process."""
    out = f"{url}/out{number}"
    model, train = f"{url}/model/", f"{url}/train.jsonl"
    test = ("--test", f"{url}/test.jsonl", "--dtype", dtype, "--max-new-tokens", str(NEW_TOKENS))
    epochs, tokens = ("--epochs", str(EPOCHS)), ("--tokens", str(CALIBRATION_TOKENS))
    adapter, merged, small = f"{out}/adapter", f"{out}/merged", f"{out}/gptq-4"
    calls = {
        "finetune": ["finetune.py", "--model", model, "--train", train, "--out", adapter, *epochs],
        "merge": ["merge.py", "--model", model, "--adapter", f"{adapter}/", "--out", merged],
        "quantize-gptq-4": [
            *("quantize_gptq.py", "--model", f"{merged}/", "--train", train, "--out", small),
            *tokens,
        ],
        "infer-base": ["infer.py", "--model", model, "--out", f"{out}/base", *test],
        "infer-base-own": [
            *("infer.py", "--model", model, "--out", f"{out}/own", *test),
            *("--form", "3-shot", "--shots", train),
        ],
        "infer-merged": ["infer.py", "--model", f"{merged}/", "--out", f"{out}/answers", *test],
        "infer-gptq-4": ["infer.py", "--model", f"{small}/", "--out", f"{out}/gptq", *test],
    }
    seconds: dict[str, float] = {}
    for stage, (script, *arguments) in calls.items():
        environment = "train" if stage in ("finetune", "merge") else "quantize"
        started = time.perf_counter()
        subprocess.run(
            [python(environment), CHECKOUT / "benchmarks" / "bare" / script, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tempfile.gettempdir(),
        )
        seconds[stage] = round(time.perf_counter() - started, 2)
    return {**seconds, "total": round(sum(seconds.values()), 2)}


def run_modelmill(url: str, folder: Path) -> Mapping[str, float]:
    """Run the chain and take each stage's time from its first moment to its commit."""
    started = time.perf_counter()
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "modelmill", "run", folder / "run.yaml", "--name", "bench"),
            *("--store", url, "--home", HOME, "--report-folder", folder / "reports"),
            *("-o", "json"),
        ],
        check=True,
        stdout=subprocess.PIPE,
    )
    total = round(time.perf_counter() - started, 2)
    stages = json.loads(ended.stdout)["stages"]
    return {**{each["stage"]: each["seconds"] for each in stages}, "total": total}


if __name__ == "__main__":
    main()
