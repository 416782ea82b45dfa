"""Fill the tables of docs/fit.md: estimates beside what was measured.

The measurements are in `measured/peaks.json`; every estimate is made here, by the functions that
`modelmill plan` uses.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from docs.tables import filled, table
from modelmill.spec.accelerators import ACCELERATORS
from modelmill.spec.estimate import group_of
from modelmill.spec.finetune import FinetuneSpec, LoadIn
from modelmill.spec.footprint import (
    CONTEXT_BYTES,
    Form,
    Memory,
    Rows,
    finetune_memory,
    infer_memory,
    merge_memory,
)
from modelmill.spec.hours import seconds_of, training_flops
from modelmill.spec.memory import BYTES_OF, quantized_bytes
from modelmill.spec.quantize import GptqSpec
from modelmill.spec.quantizer_footprint import calibration_parts, quantize_memory
from modelmill.spec.rank_footprint import Ranks, memory_of_ranks, share_of
from modelmill.spec.settings import (
    ContractSettings,
    FinetuneSettings,
    InferSettings,
    MergeSettings,
    QuantizeSettings,
    StageSettings,
)
from modelmill.spec.shape import ModelShape

PEAKS: Final = Path(__file__).parent / "measured" / "peaks.json"

AIM: Final = 0.1
GIB: Final = 2**30
GB: Final = 10**9

A100: Final = ACCELERATORS["a100-40"]

ROWS_TOLD: Final = 23_527
"""Of one fine-tune of the original: 1,219 s at 19.3 rows a second.  Assumed of the others."""
TOKENS_ASSUMED: Final = (50, 100, 200)
"""Of a row: a schema of one table, a question and its answer have about a hundred."""
TRAINING_TOLD: Final[Mapping[str, tuple[LoadIn, int]]] = {
    "bloom-7b1": ("nf4", 83),
    "falcon-7b": ("int8", 65),
}
"""Minutes on one A100 with 40 GB."""

TRAINED_TOKENS: Final = (512, 2048, 8192)
"""Of one forward pass: 1, 4 and 16 rows of 512."""


class _Measured(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MeasuredStage(_Measured):
    """A stage of a run, and what it took."""

    stage: str
    settings: StageSettings
    form: Form = Form()
    ranks: int = 1
    peak_rss_bytes: int
    weight_bytes: int | None = None
    is_older: bool = False
    """Whether what it does with memory has changed since; `docs.peaks` takes the mark away."""


class MeasuredRun(_Measured):
    """A run on two CPU cores."""

    run: str
    model: str
    created: str
    rows: Rows
    gives_runtime: bool = False
    """Whether what libraries take was read off this run, so that it proves nothing."""
    stages: tuple[MeasuredStage, ...]


class Told(_Measured):
    """A figure of the hand-run original."""

    what: Literal["infer", "gptq-infer", "quantize", "train"]
    model: str
    told: float
    """In GB or GiB; nobody says which."""
    assumed: str
    bits: Literal[2, 3, 4, 8] = 8
    load_in: LoadIn | None = None
    words: str = ""


class Peaks(_Measured):
    """Everything that estimates are held against."""

    models: Mapping[str, ModelShape]
    runs: tuple[MeasuredRun, ...]
    origin: tuple[Told, ...]


def fit_page(text: str) -> str:
    """Put every table in its place; a table without a place is an error."""
    peaks = Peaks.model_validate_json(PEAKS.read_bytes())
    tables: Mapping[str, Callable[[Peaks], str]] = {
        "runs": _runs,
        "summary": _summary,
        "written": _written,
        "origin": _origin,
        "training": _training,
        "hours": _hours,
    }
    return filled(text, {name: partial(make, peaks) for name, make in tables.items()})


def estimate(shape: ModelShape, stage: MeasuredStage, rows: Rows) -> Memory:
    """Estimate a measured stage as `plan` would, had it known how long the rows are."""
    match stage.settings:
        case FinetuneSettings() as settings:
            own = finetune_memory(shape, share_of(settings, stage.ranks), rows, is_gpu=False)
            return memory_of_ranks(own, Ranks(stage.ranks))
        case MergeSettings() as settings:
            return merge_memory(shape, settings)
        case QuantizeSettings() as settings:
            group = group_of(shape, settings.quantize)
            return quantize_memory(shape, settings, group, is_gpu=False)
        case InferSettings() as settings:
            return infer_memory(shape, settings, rows, stage.form, cores=2)
    raise ValueError(stage.stage)


def _each(peaks: Peaks) -> Iterator[tuple[MeasuredRun, MeasuredStage, int]]:
    for run in peaks.runs:
        for stage in run.stages:
            if not run.gives_runtime:
                shape = peaks.models[run.model]
                yield run, stage, estimate(shape, stage, run.rows).resident_bytes


def _error(estimated: float, measured: float) -> float:
    return estimated / measured - 1


def _percent(error: float) -> str:
    return f"{100 * error:+.0f} %"


def _runs(peaks: Peaks) -> str:
    return table(
        ("run", "model", "stage", "estimate", "measured", "error"),
        (
            (
                *(run.run, run.model, stage.stage),
                f"{estimated / GB:.2f} GB",
                f"{stage.peak_rss_bytes / GB:.2f} GB{' *' if stage.is_older else ''}",
                _percent(_error(estimated, stage.peak_rss_bytes)),
            )
            for run, stage, estimated in _each(peaks)
        ),
        words=3,
    )


def _summary(peaks: Peaks) -> str:
    errors = [
        (abs(_error(given, stage.peak_rss_bytes)), stage.is_older)
        for _, stage, given in _each(peaks)
    ]
    words = f"The aim is {AIM:.0%}: {_near(error for error, _ in errors)}."
    present = [error for error, is_older in errors if not is_older]
    if len(present) < len(errors):
        words += (
            f"\nWhat has a * was measured before the mill gave freed blocks back and answered "
            f"batches side by side; without it {_near(present)}."
        )
    return words


def _near(errors: Iterable[float]) -> str:
    errors = list(errors)
    near = sum(error <= AIM for error in errors)
    return (
        f"{near} of {len(errors)} estimates are as near; half of them are within "
        f"{median(errors):.0%}, and the farthest is {max(errors):.0%} off"
    )


def _written(peaks: Peaks) -> str:
    return table(
        ("run", "stage", "estimate", "measured", "error"),
        (
            (
                *(run.run, stage.stage),
                f"{estimated / 10**6:.1f} MB",
                f"{stage.weight_bytes / 10**6:.1f} MB",
                f"{100 * _error(estimated, stage.weight_bytes):+.1f} %",
            )
            for run in peaks.runs
            for stage in run.stages
            if stage.weight_bytes and not run.gives_runtime
            for estimated in [_weights(peaks.models[run.model], stage.settings)]
        ),
        words=2,
    )


def _weights(shape: ModelShape, settings: StageSettings) -> int:
    match settings:
        case MergeSettings():
            return shape.parameters * BYTES_OF[settings.merge.dtype]
        case QuantizeSettings():
            return quantized_bytes(shape, settings.quantize, group_of(shape, settings.quantize))
    raise ValueError(settings.kind)


def _origin(peaks: Peaks) -> str:
    return table(
        ("model", "what", "assumed", "estimate", "told", "if GB", "if GiB"),
        (
            (
                *(told.model, told.words, told.assumed),
                f"{estimated / GB:.1f} GB",
                f"{told.told:g}",
                _percent(_error(estimated, told.told * GB)),
                _percent(_error(estimated, told.told * GIB)),
            )
            for told in peaks.origin
            if told.what != "train"
            for estimated in [_told_bytes(peaks.models[told.model], told)]
        ),
        words=3,
    )


def _told_bytes(shape: ModelShape, told: Told) -> int:
    if told.what == "quantize":
        # The whole model was on the GPU; the mill's quantizer brings one block at a time.
        work = calibration_parts(shape, 128 * 2048, "float16")
        held = shape.parameters * BYTES_OF["float16"]
        return CONTEXT_BYTES + held + sum(each.bytes for each in work)
    is_packed = told.what == "gptq-infer"
    quantized = GptqSpec(method="gptq", bits=told.bits) if is_packed else None
    group = group_of(shape, quantized) if quantized else 0
    settings = InferSettings(
        prompt="contract",
        shots=None,
        max_new_tokens=128,
        batch_size=1,
        dtype="float16" if is_packed else "float32",
        nll=False,
        contract=ContractSettings(max_length=256),
        seed=None,
    )
    rows = Rows(longest=256, learned=128, prompt=256)
    form = Form(quantized=quantized, group_size=group)
    return infer_memory(shape, settings, rows, form, cores=0).gpu_bytes


def _training(peaks: Peaks) -> str:
    return table(
        ("model", "held in", *(f"{tokens} tokens" for tokens in TRAINED_TOKENS), "told"),
        (
            (
                *(told.model, told.words),
                *(f"{_trained(peaks, told, tokens) / GB:.0f} GB" for tokens in TRAINED_TOKENS),
                f"{told.told:g}" if told.told else told.assumed,
            )
            for told in peaks.origin
            if told.what == "train"
        ),
        words=2,
    )


def _trained(peaks: Peaks, told: Told, tokens: int) -> int:
    settings = FinetuneSettings(
        finetune=FinetuneSpec(
            load_in=told.load_in,
            batch_size=tokens // 512,
            micro_batch_size=tokens // 512,
            precision="float16" if told.load_in else "float32",
        ),
        contract=ContractSettings(max_length=512),
        too_long="error",
        seed=0,
    )
    rows = Rows(longest=512, learned=512, prompt=512)
    return finetune_memory(peaks.models[told.model], settings, rows, is_gpu=True).gpu_bytes


def _hours(peaks: Peaks) -> str:
    return table(
        ("model", "held in", *(f"{tokens} tokens" for tokens in TOKENS_ASSUMED), "told"),
        (
            (
                *(model, "4 bits" if load_in == "nf4" else "8 bits"),
                *(_minutes(peaks.models[model], load_in, each) for each in TOKENS_ASSUMED),
                f"{told} min",
            )
            for model, (load_in, told) in TRAINING_TOLD.items()
        ),
        words=2,
    )


def _minutes(shape: ModelShape, load_in: LoadIn, tokens: int) -> str:
    settings = FinetuneSettings(
        finetune=FinetuneSpec(load_in=load_in),
        contract=ContractSettings(max_length=512),
        too_long="error",
        seed=0,
    )
    flops = training_flops(shape, settings) * tokens * ROWS_TOLD
    low, high = (seconds / 60 for seconds in seconds_of(flops, A100))
    return f"{low:.0f} to {high:.0f} min"
