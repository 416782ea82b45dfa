"""The closed model of `report.json`, which every other view of a run is drawn from.

Knows the shape and what each field means.  Must not know how the values are found
(`judge`, `describe`) nor how they look (`page`, `markdown`, `table`), and imports nothing that
is computed with: the command line reads reports without numpy.  Readers may rely on
what is here: fields are added, never renamed.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue

from modelmill.evaluate.scale import SCALES, Scale
from modelmill.report.facts import Status
from modelmill.report.spending import RunSpending, StageSpending
from modelmill.spec.figures import Figures, Part
from modelmill.spec.infer import MetricName
from modelmill.spec.names import Kind
from modelmill.spec.records import Device, InputRecord, Record
from modelmill.spec.settings import Pin

Verdict = Literal["good", "bad", "undecided"]
"""`good`: measurably within what the gate allows; `bad`: measurably beyond it; `undecided`:
the test rows cannot tell."""

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


class Answer(Record):
    """What one model said to one prompt."""

    model: str
    output: str
    right: bool | None
    """By the metric of the samples; None where it has no say."""
    nll: float | None
    problem: str = ""


class FlippedRow(Record):
    """One test row that one model has right and the other wrong."""

    row: int
    change: Literal["lost", "gained"]
    prompt: str
    reference: str
    before: Answer
    after: Answer


class Flips(Record):
    """What became of single answers between two models, by one metric."""

    metric: MetricName
    n: int
    """Rows that both have a score for."""
    lost: int
    """Right before, wrong after."""
    gained: int
    """Wrong before, right after."""
    p_value: float
    """Of McNemar's exact test, two-sided: how likely a split at least as uneven is if neither
    model is better."""
    rows: tuple[FlippedRow, ...] = ()
    """At most `report.samples` of them, and by the metric of the samples only."""


class MetricProblem(Record):
    """Why a metric plug-in has no scores, of all models or of one."""

    metric: MetricName
    model: str = ""
    """Empty for all."""
    message: str
    exit_code: int


class PromptScores(Record):
    """How one way of asking a model came out."""

    stage: str
    form: str
    """`contract`, `chat` or `3-shot`."""
    metrics: Mapping[MetricName, Score]
    slices: Mapping[str, Mapping[MetricName, Score]] = {}
    """By the value of the first slice field."""
    sliced: Mapping[str, Mapping[str, Mapping[MetricName, Score]]] = {}
    """By every slice field, then by its value."""
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
    """By the value of the first slice field."""
    sliced: Mapping[str, Mapping[str, Mapping[MetricName, Score]]] = {}
    """By every slice field, then by its value."""
    flips: tuple[Flips, ...] = ()
    """Of a gated model: held against the one the gate names, one for each metric that tells
    right from wrong."""
    bits_per_weight: float | None = None
    """All bytes of the weight files over all parameters, embeddings included."""
    parameters: int | None = None
    size_share: float | None = None
    """Of the size of the 16-bit model it was made from."""
    made: Cost | None = None
    answering: Cost | None = None
    engine: str = ""
    """That answered what is judged."""
    speed_engine: str = ""
    """That `tokens_per_second` is measured in: the fastest for this model that was there."""
    speed_why: str = ""
    dtype: str = ""
    device: str = ""
    batch_size: int | None = None
    problem: str = ""
    """Why there are no scores."""
    uri: str = ""
    """Where its files are committed, to be loaded in place."""


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
    spending: StageSpending | None = None
    """None where it did not run here, and in reports of an earlier version."""


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


class Sample(Record):
    """One test row with every model's answer."""

    row: int
    slice: str
    """Its value of the first slice field."""
    sliced: Mapping[str, str] = {}
    """Its value of every slice field that it has."""
    prompt: str
    reference: str
    answers: tuple[Answer, ...]


class Samples(Record):
    """The rows that are shown, and how they were picked."""

    rows: tuple[Sample, ...]
    metric: MetricName | None
    """What right and wrong go by; None where no metric judges a single answer."""


class SliceField(Record):
    """How rows were put into groups by one field."""

    field: str
    values: tuple[str, ...]
    """The groups in their order."""
    is_binned: bool = False
    """Whether they are ranges of numbers."""
    problem: str = ""
    """Why there are none."""


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


class SharedValues(Record):
    """How many of a field's different test values models have learned from."""

    shared: int
    of: int


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
    """Different prompts that stand in two splits, by `test/train`."""
    near_duplicates: Mapping[str, int] = {}
    """Rows with the words of an earlier one, whatever their order and numbers."""
    near_overlap: Mapping[str, int] = {}
    """As `overlap`, by the words of the prompts."""
    fields: Mapping[str, Mapping[str, SharedValues]] = {}
    """By field (the schema, and those of `report.slice`) and `test/train`."""
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
    """The first field whose values are scored apart."""
    slice_fields: tuple[SliceField, ...] = ()
    """All of them."""
    scales: Mapping[MetricName, Scale] = {}
    """How the values of each metric of the run are read."""
    problems: tuple[MetricProblem, ...] = ()
    """Metric plug-ins that could not be computed; they end the run with their exit code."""
    data: tuple[DataEntry, ...]
    samples: Samples
    controls: tuple[Control, ...]
    lineage: Lineage
    spending: RunSpending | None = None
    """None where nothing ran, and in reports of an earlier version."""
    notes: tuple[str, ...]
    """Sentences a reader must know: about the model, and every stage's warnings."""
    adapter_uri: str = ""
    """Where the adapter is committed, which is not always a model of the comparison."""

    @property
    def places(self) -> Mapping[str, str]:
        """Say where every committed model is, the adapter too, to be loaded in place."""
        models = {each.model: each.uri for each in self.models} | {"adapter": self.adapter_uri}
        return {model: uri for model, uri in models.items() if uri}


def scale_of(scales: Mapping[MetricName, Scale], metric: MetricName) -> Scale:
    """Find how a metric is read, also where an older report does not say."""
    return scales.get(metric) or SCALES.get(metric) or Scale(title=metric)
