"""Stand in for the stages that need a model library: same entrypoint, same store, no torch.

A shell script in `environments/*/bin/python` starts this file instead of the interpreter.
What it shall do is JSON in MODELMILL_STAND_IN: by stage, `nll`, `exit`, `dawdle` (seconds),
`hang` or `once` (a file whose absence makes `exit` happen).
"""

import json
import os
import shutil
import sys
import time

from modelmill.spec.figures import Finetuned, Inferred, Merged, Quantized
from modelmill.spec.names import ENV_STAGE
from modelmill.spec.records import Prediction
from modelmill.spec.settings import FinetuneSettings, InferSettings, QuantizeSettings, Settings
from modelmill.stages import attempt, entrypoint
from modelmill.stages.rows import load_rows
from modelmill.stages.stage import Folders, Outcome, Pulse

STAGE = os.environ[ENV_STAGE]


def run(settings: Settings, folders: Folders, pulse: Pulse) -> Outcome:
    """Write what the stage would, small."""
    asked = json.loads(os.environ.get("MODELMILL_STAND_IN", "{}")).get(STAGE, {})
    with pulse.part("work"):
        if "dawdle" in asked:
            print("dawdling", flush=True)  # noqa: T201 - the log is under test
        for tenth in range(10 * asked.get("dawdle", 0)):
            pulse.progress(tenth, 10 * asked["dawdle"], "steps")
            time.sleep(0.1)
        if "hang" in asked:
            time.sleep(600)
        if "exit" in asked:
            print("about to fall", flush=True)  # noqa: T201 - the log is under test
            os._exit(asked["exit"])
        match settings:
            case FinetuneSettings():
                return _finetune(folders)
            case InferSettings():
                return _infer(folders, asked.get("nll", 1.0))
            case _:
                for name in ("model.safetensors", "config.json", "tokenizer.json"):
                    shutil.copy(folders.inputs["model"] / name, folders.output)
                return _quantized() if isinstance(settings, QuantizeSettings) else _merged()


def _finetune(folders: Folders) -> Outcome:
    model = folders.inputs["model"]
    adapter = folders.output / "adapter"
    adapter.mkdir()
    shutil.copy(model / "model.safetensors", adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folders.output / "tokenizer").mkdir()
    shutil.copy(model / "tokenizer.json", folders.output / "tokenizer")
    for name in ("prompt.json", "probe.jsonl"):
        (folders.output / name).write_text("{}", encoding="utf-8")
    return Outcome(
        Finetuned(
            steps=1,
            train_rows=1,
            eval_rows=1,
            tokens=1,
            trainable_parameters=1,
            parameters=16,
            micro_batch_size=1,
            precision="float32",
            precision_reason="a stand-in",
            curve=(),
        )
    )


def _merged() -> Outcome:
    return Outcome(
        Merged(
            dtype="bfloat16",
            size_bytes=64,
            adapter_tensors=1,
            prompts=1,
            effect=1.0,
            difference=0.0,
            bound=0.1,
            noise_floor=0.0,
        )
    )


def _quantized() -> Outcome:
    return Outcome(
        Quantized(
            method="gptq", bits=4, modules=1, size_bytes=64, parameters=16, bits_per_weight=4.0
        )
    )


def _infer(folders: Folders, nll: float) -> Outcome:
    rows = load_rows(folders.inputs["test"] / "test.jsonl")
    predictions = [
        Prediction(
            row=row.row,
            prompt=row.prompt,
            reference=row.completion,
            fields=row.fields,
            output=row.completion,
            tokens=1,
            nll=nll + row.row / 1000,
            nll_tokens=4,
        )
        for row in rows
    ]
    (folders.output / "predictions.jsonl").write_text(
        "".join(each.model_dump_json() + "\n" for each in predictions), encoding="utf-8"
    )
    return Outcome(
        Inferred(
            rows=len(rows),
            quarantined=0,
            generated_tokens=len(rows),
            generate_seconds=1.0,
            tokens_per_second=1.0,
            engine="a stand-in",
            dtype="float32",
            device="cpu",
            batch_size=1,
            method="none",
            bits=16,
            size_bytes=64,
            parameters=16,
            prompt_form="contract",
        )
    )


if __name__ == "__main__":
    attempt.MODULES = {
        kind: module if kind.startswith("fetch") else "__main__"
        for kind, module in attempt.MODULES.items()
    }
    sys.exit(entrypoint.main())
