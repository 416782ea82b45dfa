"""The closed model of `report.json`, which every other view of a run is drawn from.

Knows the shape and what each field means.  Must not know how the values are found
(`judge`, `describe`) nor how they look (`page`, `markdown`, `table`), and imports nothing that
is computed with: the command line reads reports without numpy.  Readers may rely on
what is here: fields are added, never renamed.
"""

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import JsonValue

from modelmill.report.facts import Status
from modelmill.spec.names import Kind
from modelmill.spec.records import Device, Figures, InputRecord, Part, Record
from modelmill.spec.settings import Pin

MetricName = Literal["nll", "exact_match", "sql_execution"]

Verdict = Literal["good", "bad", "undecided"]
"""`good`: measurably within what the gate allows; `bad`: measurably beyond it; `undecided`:
the test rows cannot tell."""

METRIC_ORDER: Final[tuple[MetricName, ...]] = ("sql_execution", "exact_match", "nll")
"""Which metric speaks first: one that reads answers before one that reads probabilities."""

RunOutcome = Literal["passed", "failed", "undecided", "ungated", "incomplete"]
"""How the run came out: `incomplete` where a stage or a verdict is missing."""


class Score(Record):
    """A metric's value with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    """Rows it was taken over."""
    excluded: Mapping[str, int] = {}
    """Rows it could not be taken over, by reason."""


class Difference(Record):
    """How much worse a model is than the one it is held against, row by row."""

    worse: float
    """In the metric's own unit; positive is worse, whatever the metric's direction."""
    low: float
    high: float
    n: int
    """Rows that both models answered."""
    n_to_decide: int | None = None
    """Rows that would settle an undecided verdict, if the difference stays as it is."""


class PromptScores(Record):
    """How one way of asking a model came out."""

    stage: str
    form: str
    """`contract`, `chat` or `3-shot`."""
    metrics: Mapping[MetricName, Score]
    slices: Mapping[str, Mapping[MetricName, Score]] = {}
    """By the value of the slice field."""
    rows: int
    quarantined: int
    """Rows without an answer."""
    tokens_per_second: float | None = None


class Cost(Record):
    """What the stages that made a model took."""

    stages: tuple[str, ...]
    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int


class ModelEntry(Record):
    """One row of the comparison."""

    model: str
    method: str
    """How its weights are held; empty where no stage could say."""
    bits: int | None
    size_bytes: int | None
    """Weight files on disk."""
    tokens_per_second: float | None
    metrics: Mapping[MetricName, Score]
    verdict: Verdict | None
    """Against the model the gate names; None for that model itself, without a gate, and
    where there is nothing to judge."""
    gated: bool = False
    """Whether a bad verdict fails the run."""
    difference: Difference | None = None
    prompt: str = ""
    """The form its scores come from."""
    prompts: Mapping[str, PromptScores] = {}
    """Every form it was asked in; the base has two."""
    slices: Mapping[str, Mapping[MetricName, Score]] = {}
    bits_per_weight: float | None = None
    """All bytes of the weight files over all parameters, embeddings included."""
    parameters: int | None = None
    size_share: float | None = None
    """Of the size of the 16-bit model it was made from."""
    made: Cost | None = None
    answering: Cost | None = None
    engine: str = ""
    dtype: str = ""
    device: str = ""
    batch_size: int | None = None
    problem: str = ""
    """Why there are no scores."""


class GateEntry(Record):
    """What was asked of the models, and whether it holds."""

    metric: MetricName
    against: str
    max_worse: float
    models: tuple[str, ...]
    outcome: Literal["passed", "failed", "undecided", "incomplete"]
    sentence: str


class Span(Record):
    """One attempt at a stage, as the conductor saw it."""

    attempt: str
    started: str
    ended: str
    """Empty while it runs or where its end was never seen."""
    outcome: Literal["committed", "failed", "stopped", "unknown"]
    exit_code: int | None = None


class StageEntry(Record):
    """One stage: what it cost and what it left."""

    stage: str
    status: Status
    seconds: float | None
    peak_rss_bytes: int | None
    peak_gpu_bytes: int | None
    bytes_in: int | None
    bytes_out: int | None
    attempts: int
    adopted_from: str
    settings: Mapping[str, JsonValue]
    kind: Kind
    key: str
    parts: tuple[Part, ...] = ()
    spans: tuple[Span, ...] = ()
    figures: Figures | None = None
    warnings: tuple[str, ...] = ()
    exit_code: int | None = None
    message: str = ""
    manifest_sha256: str = ""
    created: str = ""
    made_by: str = ""
    """The run that made the commit."""
    inputs: Mapping[str, InputRecord] = {}
    effective: Mapping[str, JsonValue] = {}
    versions: Mapping[str, str] = {}
    device: Device | None = None


class Control(Record):
    """The metric's own test: whether it notices a wrong answer."""

    metric: MetricName
    mutations: int
    """References changed in one place so that they mean something else."""
    caught: int
    """Those the metric scored as wrong."""
    share: float
    least: float
    """Below this share the metric is not to be trusted."""


class Answer(Record):
    """What one model said to one prompt."""

    model: str
    output: str
    right: bool | None
    """By the metric of the samples; None where it has no say."""
    nll: float | None
    problem: str = ""


class Sample(Record):
    """One test row with every model's answer."""

    row: int
    slice: str
    prompt: str
    reference: str
    answers: tuple[Answer, ...]


class Samples(Record):
    """The rows that are shown, and how they were picked."""

    rows: tuple[Sample, ...]
    metric: MetricName | None
    """What right and wrong go by; None where no metric judges a single answer."""


class SourceEntry(Record):
    """Where an input came from."""

    asked: str
    pin: Pin


class Lineage(Record):
    """What identifies the run."""

    plan_sha256: str
    created: str
    accelerator: str
    dtype: str
    sources: tuple[SourceEntry, ...]
    settings: Mapping[str, JsonValue]
    """Of the run, as asked, with defaults."""


class MixedEntry(Record):
    """What one of several sources contributes to the training rows."""

    asked: str
    weight: float
    rows: int
    """Left to learn from after the eval share."""
    taken: int
    """By weight: some twice, or only some."""


class DataEntry(Record):
    """What was found in the rows a stage fetched."""

    stage: str
    rows: Mapping[str, int]
    duplicates: Mapping[str, int]
    overlap: Mapping[str, int]
    mixed: tuple[MixedEntry, ...] = ()
    """Of train, where it is a list of sources."""


class ReportDocument(Record):
    """Everything the report says about one run."""

    format: Literal[1] = 1
    run: str
    created: str
    outcome: RunOutcome
    headline: str
    stages: tuple[StageEntry, ...]
    models: tuple[ModelEntry, ...]
    gate: GateEntry | None
    slice: str | None
    data: tuple[DataEntry, ...]
    samples: Samples
    controls: tuple[Control, ...]
    lineage: Lineage
    notes: tuple[str, ...]
    """Sentences a reader must know: about the model, and every stage's warnings."""
