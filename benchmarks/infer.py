"""How fast test rows are answered on this machine, beside scripts by hand, in one run.

    .modelmill/environments/light/bin/python benchmarks/infer.py [--rows N] [--rounds N]

The peers are `benchmarks/bare/infer.py`: one prompt at a time in float32, as a first script does
it, and sorted batches of 16 in float32 and in bfloat16, as a careful one does.  Ours is the
stage `infer-base` of a run, in the dtype that it chooses by itself.  Compared are tokens generated
by the second, loading not counted.  The last line is one JSON object; ratios are
medians over rounds, above 1 where we are faster; every second round runs the other way round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from example import CHECKOUT, HOME, MODEL, TEMPLATE, make_data, prepare_model, python

from modelmill.store.embedded import EmbeddedStore

NEW_TOKENS = 48
OURS = "modelmill"
PEERS: Mapping[str, tuple[str, ...]] = {
    "one_by_one": ("--dtype", "float32", "--batch-size", "1"),
    "float32": ("--dtype", "float32", "--batch-size", "16"),
    "bfloat16": ("--dtype", "bfloat16", "--batch-size", "16"),
}


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    prepare_model()
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="infer-") as name:
        folder = Path(name)
        make_data(folder, 96, asked.rows)
        (folder / "run.yaml").write_text(json.dumps(run_spec()), encoding="utf-8")
        with EmbeddedStore(folder / "store") as embedded:
            os.environ.update(embedded.environment)
            for number in range(asked.rounds):
                names = [*PEERS, OURS]
                speeds = {
                    name: modelmill(folder, f"{embedded.url}/{number}")
                    if name == OURS
                    else bare(folder, PEERS[name])
                    # What else the machine does may grow or shrink meanwhile.
                    for name in (reversed(names) if number % 2 else names)
                }
                rounds.append(speeds)
                print(json.dumps(speeds), file=sys.stderr)
    print(
        json.dumps(
            {
                "vs_one_by_one": ratio(rounds, ["one_by_one"]),
                "vs_best_script": ratio(rounds, ["float32", "bfloat16"]),
                "tokens_per_second": rounds,
            }
        )
    )


def run_spec() -> Mapping[str, object]:
    """Ask for the base's answers and nothing else, in JSON, which is YAML too."""
    return {
        "model": {"source": str(MODEL)},
        "data": {
            "test": "test.jsonl",
            "template": TEMPLATE,
            "max_length": 192,
        },
        "infer": {"max_new_tokens": NEW_TOKENS, "batch_size": 16, "metrics": {"nll": {}}},
    }


def bare(folder: Path, options: tuple[str, ...]) -> float:
    """Let the script answer; returns its tokens per second."""
    ended = subprocess.run(
        [
            python("quantize"),
            *(CHECKOUT / "benchmarks" / "bare" / "infer.py", "--model", MODEL),
            *("--test", folder / "test.jsonl", "--out", folder / "bare"),
            *("--max-new-tokens", str(NEW_TOKENS), *options),
        ],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tempfile.gettempdir(),
    )
    return float(json.loads(ended.stdout.splitlines()[-1])["tokens_per_second"])


def modelmill(folder: Path, store: str) -> float:
    """Run the chain, in a place where nothing is committed yet; returns what its report says."""
    subprocess.run(
        [
            *(sys.executable, "-m", "modelmill", "run", folder / "run.yaml", "--name", "bench"),
            *("--store", store, "--home", HOME, "--report-folder", folder / "reports"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    report = json.loads((folder / "reports" / "bench" / "report.json").read_bytes())
    (base,) = report["models"]
    return float(base["tokens_per_second"])


def ratio(rounds: list[dict[str, float]], peers: list[str]) -> float:
    """Hold our speed against the fastest of some, in the middle of all rounds."""
    return round(
        statistics.median(each[OURS] / max(each[peer] for peer in peers) for each in rounds),
        2,
    )


if __name__ == "__main__":
    main()
