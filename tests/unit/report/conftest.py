"""A run that never happened, complete to the last record.

The base mostly fails, merged mostly succeeds, two variants are close to it, one is broken.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest

from modelmill.report.compose import render
from modelmill.report.document import ReportDocument
from modelmill.report.facts import RunFacts, StageFacts
from modelmill.spec import figures, records
from modelmill.spec.layout import make_plan, sources_of
from modelmill.spec.plan import Plan, Stage, plan_bytes
from modelmill.spec.profile import Facts
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import Pin

PARAMETERS = 134_515_008


class Invented(NamedTuple):
    """What a model is like."""

    size_bytes: int
    bits: int
    method: str
    right: float
    nll: float
    tokens_per_second: float


MODELS = {
    "base": Invented(269_060_552, 16, "original", 0.08, 1.9, 96),
    "base-own": Invented(269_060_552, 16, "original", 0.22, 1.1, 41),
    "merged": Invented(269_060_552, 16, "original", 0.68, 0.150, 97),
    "gptq-4": Invented(110_433_280, 4, "gptq", 0.64, 0.158, 58),
    "nf4": Invented(118_021_120, 4, "bitsandbytes", 0.61, 0.161, 33),
    "gptq-2": Invented(84_213_760, 2, "gptq", 0.0, 6.4, 31),
}
FETCH_SECONDS = {"fetch-model": 3.4, "fetch-data": 0.8, "fetch-test": 0.7}
QUANTIZE_SECONDS = {"quantize-gptq-4": 74.0, "quantize-nf4": 12.5, "quantize-gptq-2": 77.0}
SECONDS = {**FETCH_SECONDS, "finetune": 236.0, "merge": 14.2, **QUANTIZE_SECONDS}
PARTS = {"pull": 0.02, "load": 0.08, "work": 0.85, "save": 0.03, "push": 0.02}
TOO_LONG = "3 rows were longer than max_length and were dropped"
RUN = {
    "model": {
        "source": "s3://models/smol",
        "note": (
            "This base is a dequantized Q4_1: sizes are compared with the 16-bit merge, and "
            "quality after 4 bits may flatter."
        ),
    },
    "data": {
        "train": "s3://data/train.jsonl",
        "eval": "s3://data/eval.jsonl",
        "test": "s3://data/test.jsonl",
        "template": {
            "prompt": "### Schema\n{context}\n### Question\n{question}\n### SQL\n",
            "completion": "{answer}",
        },
    },
    "finetune": {},
    "quantize": [
        {"method": "gptq", "bits": 4},
        {"method": "bitsandbytes", "type": "nf4"},
        {"method": "gptq", "bits": 2},
    ],
    "infer": {
        "max_new_tokens": 48,
        "metrics": {"nll": {}, "exact_match": {}, "sql_execution": {"schema": "context"}},
    },
    "gate": {"models": ["gptq-4", "nf4"], "metric": "nll", "max_worse": 0.05},
    "report": {"samples": 5, "slice": "phrasing"},
}
TABLES = ("ships", "museums", "orchards", "rivers")
CALIBRATED = {
    "calibration_rows": 61,
    "calibration_tokens": 6144,
    "calibration_text_tokens": 2048,
    "calibration_unused": 1439,
    "calibration_longer": 7,
}
START = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)


def plan_of(changes: Mapping[str, object] | None = None) -> Plan:
    """Plan the invented run, with some of its sections replaced."""
    run = RunSpec.model_validate({**RUN, **(changes or {})})
    pins = {
        source: Pin(address=source, digest=f"{index:064x}")
        for index, source in enumerate(sources_of(run), 1)
    }
    return make_plan(run, Facts(accelerator="cpu", dtype="bfloat16"), pins)


def build_facts(changes: Mapping[str, object] | None = None, rows: int = 48) -> RunFacts:
    """Invent what became of every stage."""
    plan = plan_of(changes)
    digest = f"{len(plan_bytes(plan)):064x}"
    stages: list[StageFacts] = []
    events: list[records.Event] = []
    now = START
    for stage in plan.stages:
        facts = _stage_facts(stage, now, rows)
        adopted = stage.name == "fetch-model"
        if adopted:
            facts = replace(facts, status="adopted", adopted_from="yesterday", attempts=0)
            events.append(_event("adopted", stage, now, from_run="yesterday"))
        else:
            assert facts.measurements is not None
            end = now + timedelta(seconds=facts.measurements.seconds + 2.5)
            events.append(_event("started", stage, now))
            events.append(_event("committed", stage, end))
            now = end + timedelta(seconds=0.4)
        stages.append(facts)
    return RunFacts(
        run="demo",
        plan=plan,
        plan_sha256=digest,
        created=_time(START),
        stages=tuple(stages),
        events=tuple(events),
    )


def with_stage(facts: RunFacts, name: str, **changes: object) -> RunFacts:
    """Change what became of one stage."""
    return replace(
        facts,
        stages=tuple(
            replace(stage, **changes) if stage.stage.name == name else stage  # type: ignore[arg-type]
            for stage in facts.stages
        ),
    )


def failed(facts: RunFacts, name: str, message: str = "out of memory") -> RunFacts:
    """Let one stage fail and skip everything that needs it."""
    lost = {name}
    for stage in facts.plan.stages:
        if any(each.stage in lost for each in stage.inputs):
            lost.add(stage.name)
    for lost_name in lost:
        facts = with_stage(
            facts,
            lost_name,
            status="failed" if lost_name == name else "skipped",
            manifest=None,
            manifest_sha256="",
            measurements=None,
            predictions=(),
            exit_code=78 if lost_name == name else None,
            message=message if lost_name == name else "",
        )
    return replace(facts, events=tuple(_events_without(facts.events, name, lost)))


def _events_without(
    events: tuple[records.Event, ...], failed_stage: str, lost: set[str]
) -> Iterator[records.Event]:
    for event in events:
        if event.stage == failed_stage and event.event == "committed":
            yield event.model_copy(update={"event": "failed", "exit_code": 78})
        elif event.stage == failed_stage or event.stage not in lost:
            yield event


@pytest.fixture(scope="session")
def facts() -> RunFacts:
    """Give the complete run."""
    return build_facts()


@pytest.fixture(scope="session")
def document(facts: RunFacts) -> ReportDocument:
    """Give the complete run's document."""
    return render(facts)[0]


@pytest.fixture(scope="session")
def small() -> RunFacts:
    """Give a complete run of few rows, for tests that judge it again and again."""
    return build_facts(rows=12)


@pytest.fixture(scope="session")
def invent() -> Callable[..., RunFacts]:
    """Give the way to invent a run: `invent({"gate": ...}, rows=12)`."""
    return build_facts


@pytest.fixture(scope="session")
def change() -> Callable[..., RunFacts]:
    """Give the way to change a stage: `change(facts, "merge", attempts=2)`."""
    return with_stage


@pytest.fixture(scope="session")
def fail() -> Callable[..., RunFacts]:
    """Give the way to let a stage fail: `fail(facts, "merge", "its message")`."""
    return failed


def _stage_facts(stage: Stage, now: datetime, rows: int) -> StageFacts:
    variant = stage.name.removeprefix("infer-")
    found = _figures(stage, rows)
    seconds = SECONDS.get(stage.name) or rows * 24 / MODELS[variant].tokens_per_second + 6
    return StageFacts(
        stage=stage,
        status="done",
        manifest=_manifest(stage, now),
        manifest_sha256=f"{len(stage.name):064x}",
        measurements=figures.Measurements(
            parts=tuple(
                figures.Part(name=name, seconds=share * seconds) for name, share in PARTS.items()
            ),
            seconds=seconds,
            peak_rss_bytes=3_900_000_000 if stage.kind == "finetune" else 1_400_000_000,
            bytes_in=270_000_000,
            bytes_out=40_000_000,
            figures=found,
            warnings=(TOO_LONG,) if stage.kind == "finetune" else (),
        ),
        predictions=tuple(_prediction(variant, row) for row in range(rows))
        if stage.kind == "infer"
        else (),
        attempts=1,
    )


def _manifest(stage: Stage, now: datetime) -> records.Manifest:
    return records.Manifest(
        kind=stage.kind,
        key=stage.key,
        stage=stage.name,
        run="yesterday" if stage.name == "fetch-model" else "demo",
        attempt=f"20261122T090000Z-{len(stage.name):032x}",
        created=_time(now),
        settings=stage.settings.model_dump(mode="json"),
        effective={"precision": "bfloat16"} if stage.kind == "finetune" else {},
        inputs={
            each.role: records.InputRecord(
                kind=each.kind, key=each.key, manifest_sha256=f"{len(each.stage):064x}"
            )
            for each in stage.inputs
        },
        versions={"modelmill": "0.1.0", "python": "3.11.2", "torch": "2.14.1"},
        device=records.Device(accelerator="cpu", name="AMD EPYC 9654, 2 cores"),
        files=(records.FileRecord(path="model.safetensors", size_bytes=1, sha256=f"{1:064x}"),),
    )


def _figures(stage: Stage, rows: int) -> figures.Figures:
    variant = stage.name.partition("-")[2]
    match stage.kind:
        case "fetch-model":
            return figures.ModelFetched(
                architecture="LlamaForCausalLM",
                parameters=PARAMETERS,
                size_bytes=MODELS["base"].size_bytes,
                dtype="bfloat16",
            )
        case "fetch-data":
            return figures.DataFetched(
                rows={"train": 300, "eval": 40},
                duplicates={"train": 2, "eval": 0},
                overlap={"train/eval": 1},
            )
        case "fetch-test":
            return figures.DataFetched(rows={"test": rows}, duplicates={"test": 0})
        case "finetune":
            return _finetuned()
        case "merge":
            return figures.Merged(
                dtype="bfloat16",
                size_bytes=MODELS["merged"].size_bytes,
                adapter_tensors=420,
                prompts=4,
                effect=0.31,
                difference=0.021,
                bound=0.1,
                noise_floor=0.004,
            )
        case "quantize":
            model = MODELS[variant]
            return figures.Quantized(
                method=model.method,
                bits=model.bits,
                group_size=64,
                modules=210,
                size_bytes=model.size_bytes,
                parameters=PARAMETERS,
                bits_per_weight=8 * model.size_bytes / PARAMETERS,
                **(CALIBRATED if model.method == "gptq" else {}),
            )
        case _:
            return _inferred(variant, rows)


def _finetuned() -> figures.Finetuned:
    generator = random.Random(3)
    curve = []
    for step in range(1, 58):
        loss = 0.16 + 1.7 * 0.9**step + generator.uniform(-0.03, 0.03)
        is_evaluated = step % 6 == 0 or step == 57
        eval_loss = 0.19 + 1.6 * 0.89**step if is_evaluated else None
        curve.append(figures.CurvePoint(step=step, epoch=step / 19, loss=loss, eval_loss=eval_loss))
    return figures.Finetuned(
        steps=57,
        train_rows=297,
        eval_rows=40,
        too_long=3,
        tokens=81_240,
        trainable_parameters=4_884_480,
        parameters=PARAMETERS,
        micro_batch_size=4,
        precision="bfloat16",
        precision_reason="bfloat16 took 0.61 of float32's time per matrix product",
        best_step=57,
        best_eval_loss=0.192,
        curve=tuple(curve),
    )


def _inferred(variant: str, rows: int) -> figures.Inferred:
    model = MODELS[variant]
    return figures.Inferred(
        rows=rows,
        quarantined=1 if variant == "nf4" else 0,
        generated_tokens=24 * rows,
        generate_seconds=24 * rows / MODELS[variant].tokens_per_second,
        tokens_per_second=MODELS[variant].tokens_per_second,
        engine="transformers",
        dtype="bfloat16",
        device="AMD EPYC 9654, 2 cores",
        batch_size=16,
        method=model.method,
        bits=model.bits,
        size_bytes=model.size_bytes,
        parameters=PARAMETERS,
        prompt_form="3-shot" if variant == "base-own" else "contract",
    )


def _prediction(variant: str, row: int) -> records.Prediction:
    shared = random.Random(row)
    own = random.Random(f"{variant}/{row}")
    table = shared.choice(TABLES)
    place, year = f"{shared.choice('ABCDE')}stad", shared.randrange(1800, 2000)
    asked, other = shared.sample(("name", "region"), 2)
    difficulty = shared.random()
    operator = shared.choice(("<", ">"))
    context = f"CREATE TABLE {table} (name TEXT, region TEXT, founded INTEGER, visitors INTEGER)"
    question = f"Which {asked} of {table} has {other} {place} and was founded {operator} {year}?"
    named, old = f"{other} = '{place}'", f"founded {operator} {year}"
    reference = f"SELECT {asked} FROM {table} WHERE {named} AND {old}"  # noqa: S608
    right = 0.8 * difficulty + 0.2 * own.random() < MODELS[variant].right
    wrong = (
        reference.replace(f"SELECT {asked}", f"SELECT {other}"),
        reference.replace(f" AND {old}", ""),
        reference.replace(str(year), str(year + 1)),
    )
    broken = variant == "gptq-2"
    output = reference if right else own.choice(wrong)
    if broken:
        output = "### ### the the ( ( SELECT"
    if right and own.random() < 0.2:
        output = output.replace(f"{named} AND {old}", f"{old} AND {named};")
    noise = own.uniform(-0.2, 0.25) if variant == "nf4" else own.uniform(-0.01, 0.01)
    quarantined = variant == "nf4" and row == 7
    return records.Prediction(
        row=row,
        prompt=f"### Schema\n{context}\n### Question\n{question}\n### SQL\n",
        reference=reference,
        fields={
            "context": context,
            "question": question,
            "answer": reference,
            "phrasing": "new" if row % 3 == 0 else "known",
        },
        output="" if quarantined else output,
        tokens=24,
        nll=None if quarantined else MODELS[variant].nll * (0.6 + 0.8 * difficulty) + noise,
        nll_tokens=24,
        error="the prompt has more tokens than the model can read" if quarantined else "",
    )


def _event(event: str, stage: Stage, time: datetime, *, from_run: str = "") -> records.Event:
    return records.Event.model_validate(
        {
            "time": _time(time),
            "event": event,
            "stage": stage.name,
            "key": stage.key,
            "from_run": from_run,
        }
    )


def _time(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
