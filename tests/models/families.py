"""Prove family by family what each way of quantizing makes of a model that was fine-tuned.

    python -m tests.models.families [--family NAME ...] [--method NAME ...]

from the root of the checkout.  Tiny random models go through the stages themselves: LoRA on NF4,
merge, every method, infer.  What comes out is compared with the merged model, with rounding in
plain arithmetic where a method looks at no data, and between readers; `docs/measured/families.json`
keeps the numbers and `make generate` draws docs/families.md from them.  Families and methods that
are not asked for keep the numbers they have.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, get_args

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTQConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from modelmill.models.families import close_known_holes, expected_linears
from modelmill.models.open import open_config
from modelmill.models.weights import weight_files
from modelmill.spec.errors import InternalError, ModelmillError, SpecError
from modelmill.spec.figures import Inferred, Merged
from modelmill.spec.finetune import FinetuneSpec
from modelmill.spec.quantize import BitnetSpec, BitsandbytesSpec, PackedSpec, QuantizeSpec, bits_of
from modelmill.spec.run import MergeSpec
from modelmill.spec.settings import (
    ContractSettings,
    FinetuneSettings,
    InferSettings,
    MergeSettings,
)
from modelmill.stages import finetune, infer, merge
from modelmill.stages.entrypoint import as_failure
from modelmill.stages.infer.opened import open_any
from modelmill.stages.stage import Folders

from ..quantize.plain import plain_weight
from ..quantize.running import autoround, gptq, quantize, rtn
from ..tiny_stages import Family, RecordingPulse, make_model, make_rows, write_rows

RECORD: Final = Path(__file__).parents[2] / "docs/measured/families.json"

METHODS: Final[Mapping[str, QuantizeSpec]] = {
    **{f"gptq-{bits}": gptq(bits, group_size=32 if bits == 2 else "auto") for bits in (8, 4, 3, 2)},
    "autoround-4": autoround(4, iters=8),
    "autoround-2": autoround(2, iters=8, group_size=32),
    "rtn-4": rtn(4),
    "nf4": BitsandbytesSpec(method="bitsandbytes"),
    "fp4": BitsandbytesSpec(method="bitsandbytes", type="fp4"),
    "int8": BitsandbytesSpec(method="bitsandbytes", type="int8"),
    "bitnet": BitnetSpec(method="bitnet"),
}
"""What is tried on every family; another way of quantizing is another line."""

CONTRACT: Final = ContractSettings(max_length=128)
CPU: Final = torch.device("cpu")

LOST_AT_MOST: Final[Mapping[int, float]] = {8: 0.05, 4: 0.7, 3: 1.1, 2: 1.6}
"""Of the merged model's logits, by bits: random weights are the worst there are to round."""
WORSE_AT_MOST: Final = 1.5
"""Times what is recorded of the same cell."""
APART_AT_MOST: Final = 0.05
"""Between two readers of one file: kernels compute in 16 bits, and LLM.int8 rounds what flows in
to 8."""
FROM_PLAIN_AT_MOST: Final = 0.25
"""Times what is lost: plain arithmetic knows no double quantization, which rounds the scales."""


@dataclass(frozen=True)
class Cell:
    """What one method made of one family; differences are relative, of logits."""

    method: str
    bits: int
    expected_layers: int = 0
    layers: int = 0
    """Quantized, counted in the files."""
    lost: float | None = None
    """From the merged model."""
    from_plain: float | None = None
    """From what plain arithmetic makes of the merged weights; None where data decides."""
    readers: Mapping[str, float | str] | None = None
    """Difference to the file as infer opens it, or the class of what the reader raised."""
    answered: int = 0
    """Rows that infer answered."""
    refused: str = ""
    """The class of the refusal, and its first words."""
    seconds: float = 0


@dataclass(frozen=True)
class Proof:
    """What became of one family."""

    family: Family
    architecture: str
    merge_difference: float
    """Between adapter and merged model, as a share of the adapter's effect."""
    cells: tuple[Cell, ...]


def amiss(cell: Cell, before: Cell | None = None) -> list[str]:
    """List what a cell should not say; a refusal is an answer, unless it is a new one.

    Args:
        cell: as it came out.
        before: as it is recorded; other machines add in another order, and no worse.
    """
    if cell.refused:
        is_new = before is not None and not before.refused
        return [cell.refused] if is_new or cell.refused.startswith(InternalError.__name__) else []
    wrong = []
    limit = LOST_AT_MOST[cell.bits]
    if before is not None and before.lost is not None:
        limit = min(limit, WORSE_AT_MOST * before.lost)
    if cell.layers != cell.expected_layers or not cell.layers:
        wrong.append(f"{cell.layers} of {cell.expected_layers} layers")
    if cell.lost is None or not 0 < cell.lost < limit:
        wrong.append(f"lost {cell.lost}")
    if cell.from_plain is not None and not cell.from_plain < FROM_PLAIN_AT_MOST * (cell.lost or 0):
        wrong.append(f"{cell.from_plain} from plain arithmetic")
    wrong += [
        f"{name} is {apart} apart"
        for name, apart in (cell.readers or {}).items()
        if not isinstance(apart, str) and not apart < APART_AT_MOST
    ]
    if not cell.answered:
        wrong.append("no row answered")
    return wrong


def prove(
    family: Family,
    methods: Mapping[str, QuantizeSpec],
    work: Path,
    damage: Callable[[Path], None] = lambda _: None,
) -> Proof:
    """Take a family through the stages, once to the merged model and from there by each method.

    Args:
        family: of the tiny model.
        methods: by name.
        work: an empty folder.
        damage: what to do to every quantized model before it is looked at.
    """
    data = work / "data"
    for split, count in (("train", 48), ("eval", 4), ("test", 4)):
        write_rows(make_rows(count, count), data / f"{split}.jsonl")
    base = make_model(family, work / "base")
    tuned = _finetuned(base, data, work / "tuned")
    merged, difference = _merged(base, tuned, work / "merged")
    bench = _Bench(merged, data, damage, _logits(open_any(merged, torch.float32, CPU).model))
    cells = tuple(bench.cell(name, spec) for name, spec in methods.items())
    return Proof(family, str((open_config(base).architectures or [""])[0]), difference, cells)


def _finetuned(base: Path, data: Path, output: Path) -> Path:
    spec = FinetuneSpec(load_in="nf4", r=4, num_train_epochs=2, learning_rate=1e-2, batch_size=8)
    settings = FinetuneSettings(finetune=spec, contract=CONTRACT, too_long="error", seed=1)
    _run(finetune.run, settings, {"model": base, "data": data}, output)
    return output


def _merged(base: Path, tuned: Path, output: Path) -> tuple[Path, float]:
    settings = MergeSettings(merge=MergeSpec(), load_in="nf4")
    figures = _run(merge.run, settings, {"model": base, "adapter": tuned}, output)
    assert isinstance(figures, Merged)
    return output, figures.difference


def _run(run: Callable, settings: object, inputs: dict[str, Path], output: Path) -> object:
    resume = output.with_name(f"{output.name}-resume")
    for folder in (output, resume):
        folder.mkdir()
    return run(settings, Folders(inputs, output, resume), RecordingPulse()).figures


@dataclass(frozen=True)
class _Bench:
    """A merged model, and what its quantized copies are held against."""

    merged: Path
    data: Path
    damage: Callable[[Path], None]
    expected: torch.Tensor
    """The merged model's logits."""

    def cell(self, name: str, spec: QuantizeSpec) -> Cell:
        """Quantize by one method and look at what came out."""
        started = time.monotonic()
        try:
            cell = self._quantized(name, spec)
        except Exception as error:  # noqa: BLE001 - a stage that falls is an answer too
            cell = Cell(name, bits_of(spec), refused=_refusal(as_failure(error)))
        return replace(cell, seconds=round(time.monotonic() - started, 1))

    def _quantized(self, name: str, spec: QuantizeSpec) -> Cell:
        output = self.merged.with_name(name)
        figures = quantize(spec, self.merged, self.data, output)
        self.damage(output)
        layers = expected_linears(open_config(self.merged))
        meant = _logits(open_any(output, torch.float32, CPU).model)
        plain = _plain(spec, self.merged, layers)
        return Cell(
            method=name,
            bits=figures.bits,
            expected_layers=len(layers),
            layers=_packed_layers(output),
            lost=apart(meant, self.expected),
            from_plain=None if plain is None else apart(meant, _logits(plain)),
            readers=dict(_read(spec, output, meant)),
            answered=_answered(output, self.data, output.with_name(f"{name}-infer")),
        )


def _refusal(error: ModelmillError) -> str:
    """Say the class and the reason, without the names of layers."""
    reasons = [each.reason for each in error.problems] if isinstance(error, SpecError) else []
    return f"{type(error).__name__}: {(reasons or [error.what])[0].partition(';')[0]}"


def _packed_layers(folder: Path) -> int:
    """Count the layers whose weights are integers, in the files alone."""
    stored = [each for path in weight_files(folder) for each in load_file(path).items()]
    return sum(
        name.endswith(".qweight") or (name.endswith(".weight") and not each.is_floating_point())
        for name, each in stored
    )


def spoil_scale(folder: Path) -> None:
    """Make the first layer's first scales ten times as large."""
    path = weight_files(folder)[0]
    tensors = load_file(path)
    names = [each for each in sorted(tensors) if each.endswith((".scales", ".absmax", ".SCB"))]
    scales = tensors[names[0]]
    tensors[names[0]] = (
        255 - scales if scales.dtype == torch.uint8 else (10 * scales.float()).to(scales.dtype)
    )
    save_file(tensors, path, metadata={"format": "pt"})


def _plain(spec: QuantizeSpec, merged: Path, layers: Mapping[str, int]) -> PreTrainedModel | None:
    model = open_any(merged, torch.float32, CPU).model
    for name in layers:
        layer = model.get_submodule(name)
        turned = isinstance(layer, Conv1D)
        weight = layer.weight.detach()
        found = plain_weight(spec, weight.T.contiguous() if turned else weight)
        if found is None:
            return None
        layer.weight.data = found.T.contiguous() if turned else found
    return model


def _answered(model: Path, data: Path, output: Path) -> int:
    settings = InferSettings(
        prompt="contract",
        shots=None,
        max_new_tokens=4,
        batch_size=4,
        dtype="float32",
        nll=True,
        contract=CONTRACT,
        seed=None,
    )
    figures = _run(infer.run, settings, {"model": model, "test": data}, output)
    assert isinstance(figures, Inferred)
    return figures.rows - figures.quarantined


def _read(
    spec: QuantizeSpec, folder: Path, meant: torch.Tensor
) -> Iterator[tuple[str, float | str]]:
    """Open a file with every reader there is here, and compare logits."""
    readers = {"transformers": _by_transformers}
    if isinstance(spec, PackedSpec):
        readers = {"transformers": _by_transformers_and_gptq, "GPTQModel": _by_gptqmodel}
    for name, opened in readers.items():
        try:
            yield name, apart(_logits(opened(folder)), meant)
        except Exception as error:  # noqa: BLE001 - whatever a reader cannot do is the answer
            yield name, type(error).__name__


def _by_transformers(folder: Path) -> PreTrainedModel:
    """Open as a user of transformers would, with the one cure that a Falcon needs."""
    close_known_holes(open_config(folder))
    return AutoModelForCausalLM.from_pretrained(folder)


def _by_transformers_and_gptq(folder: Path) -> PreTrainedModel:
    """As above, with the kernel that needs no compiler."""
    config = open_config(folder)
    close_known_holes(config)
    asked = GPTQConfig(bits=config.quantization_config["bits"], backend="gptq_torch")
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float16, quantization_config=asked
    )


def _by_gptqmodel(folder: Path) -> PreTrainedModel:
    from gptqmodel import BACKEND

    from modelmill.stages.infer.gptq_engine import open_packed

    return open_packed(folder, torch.float16, backend=BACKEND.GPTQ_TORCH, device="cpu")[0]


def _logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(20, 100).reshape(2, 40)
    # Kernels would compile themselves at the first call: a minute for the same numbers.
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        return model.eval()(ids).logits.float()


def apart(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Compute the relative difference of logits."""
    return float(f"{((logits - expected).norm() / expected.norm()).item():.3g}")


def record(proofs: Sequence[Proof], path: Path = RECORD) -> None:
    """Write numbers over those of the same family and method, and leave the others."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"families": []}
    families = {each["family"]: each for each in known["families"]}
    for proof in proofs:
        said = json.loads(json.dumps(asdict(proof)))
        before = families.get(proof.family, {"cells": []})["cells"]
        cells = {cell["method"]: cell for cell in (*before, *said["cells"])}
        order = [*METHODS, *cells]
        said["cells"] = sorted(cells.values(), key=lambda cell: order.index(cell["method"]))
        families[proof.family] = said
    order = list(get_args(Family))
    document = {
        "versions": {name: version(name) for name in VERSIONS},
        "families": sorted(families.values(), key=lambda each: order.index(each["family"])),
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


VERSIONS: Final = ("torch", "transformers", "peft", "bitsandbytes", "gptqmodel", "auto-round")


def main() -> int:
    """Prove what is asked for, family by family, and say what is amiss."""
    parser = argparse.ArgumentParser(description="Prove what quantizing makes of every family.")
    parser.add_argument("--family", action="append", choices=get_args(Family))
    parser.add_argument("--method", action="append", choices=tuple(METHODS))
    asked = parser.parse_args()
    methods = {name: METHODS[name] for name in asked.method or METHODS}
    wrong = 0
    for family in asked.family or get_args(Family):
        with TemporaryDirectory() as work:
            proof = prove(family, methods, Path(work))
        record([proof])
        for cell in proof.cells:
            problems = amiss(cell)
            wrong += bool(problems)
            said = "; ".join(problems) or cell.refused or f"lost {cell.lost}"
            print(f"{family:<10} {cell.method:<12} {cell.seconds:6.1f} s  {said}", flush=True)  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
