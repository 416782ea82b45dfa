"""Fill the tables of docs/serving.md from the rules that `modelmill plan` goes by."""

from collections.abc import Sequence
from typing import Final

from pydantic import JsonValue

from docs.tables import filled, table
from modelmill.spec.profile import Facts
from modelmill.spec.run import RunSpec
from modelmill.spec.serving import serving_of
from modelmill.spec.vllm import BORROWED, FAMILIES, PLAIN_ONLY, UNSERVED

CUDA: Final = Facts(accelerator="cuda", dtype="bfloat16")

ASKED: Final[Sequence[tuple[str, dict[str, JsonValue]]]] = (
    *((f"{bits} bits", {"method": "gptq", "bits": bits}) for bits in (8, 4, 3, 2)),
    ("4 bits, `sym: false`", {"method": "gptq", "sym": False}),
    ("4 bits, `desc_act: true`", {"method": "gptq", "desc_act": True}),
    ("`bitsandbytes`", {"method": "bitsandbytes"}),
)
"""What can be written, by the settings that ask for it."""


def serving_page(text: str) -> str:
    """Put every table in its place; a table without a place is an error."""
    return filled(text, {"engines": _engines, "families": _families})


def _engines() -> str:
    asked = [{**spec, "name": f"row-{number}"} for number, (_, spec) in enumerate(ASKED)]
    run = RunSpec.model_validate(
        {
            "model": {"source": "model"},
            "data": {
                "train": "train.jsonl",
                "test": "test.jsonl",
                "template": {"prompt": "{question}", "completion": "{answer}"},
            },
            "quantize": asked,
        }
    )
    found = serving_of(run, CUDA, None)
    names = ["16 bits: `merged`, `finetuned`, `base`", *(name for name, _ in ASKED)]
    rows = [[name, each.engine, each.why] for name, each in zip(names, found, strict=True)]
    return table(["what is written", "fastest on CUDA", "why"], rows, words=3)


def _families() -> str:
    kinds = {
        "with a model of its own": FAMILIES - PLAIN_ONLY,
        "with a model of its own, in 16 bits only": PLAIN_ONLY,
        "with transformers' code": BORROWED,
        "not at all": UNSERVED,
    }
    rows = [[kind, ", ".join(sorted(names))] for kind, names in kinds.items()]
    return table(["vLLM runs", "`model_type`"], rows, words=2)
