"""The closed model of `compare.json`: two runs side by side.

Knows the shape and what each field means.  Must not know how the values are found
(`compare`) nor how they look (`compare_page`, `compare_table`), and imports nothing that is
computed with.  Differences are the second run minus the first.  Readers may rely on what is
here: fields are added, never renamed.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue

from modelmill.evaluate.scale import Scale
from modelmill.report.document import Cost, Flips, MetricProblem, Score, SliceField
from modelmill.report.facts import Status
from modelmill.report.spending import RunSpending
from modelmill.spec.figures import Finetuned
from modelmill.spec.infer import MetricName
from modelmill.spec.records import Record

Change = Literal["better", "worse", "undecided", "same"]
"""Whether the second run is measurably better or worse; `undecided`: the rows cannot tell;
`same`: one infer stage made the answers of both."""


class ComparedRun(Record):
    """What identifies one of the two runs."""

    run: str
    state: str
    """How it ended, or where it is, in words."""
    created: str
    plan_sha256: str
    samples: int
    """Rows it allows to be shown."""
    unfinished: tuple[str, ...] = ()
    """Sentences about stages that are not committed."""
    spending: RunSpending | None = None
    """What it held itself; what it adopted was held by another run."""


class SettingDifference(Record):
    """One thing that was asked for differently, or found differently."""

    key: str
    """Dotted, as in `run.yaml`, quantized models by name; `sources.*`, `place.*` and `again.*` for
    what the plan adds to it."""
    a: JsonValue = None
    b: JsonValue = None
    only_in: Literal["a", "b"] | None = None
    """Where the other run has no such key."""


class RowMatch(Record):
    """Whether both runs were asked the same test rows."""

    same_by: Literal["key", "content"] | None
    """`key`: one fetch-test made both; `content`: equal rows, perhaps in another order; None:
    they are not the same, and nothing is compared row by row."""
    a: int
    """Test rows of the first run."""
    b: int
    sentence: str


class ScoreDifference(Record):
    """How much higher the second run's score is, with its 95 % interval."""

    value: float
    low: float
    high: float
    is_paired: bool
    """Row by row; otherwise both runs' rows are taken as samples of their own."""
    n: int
    """Rows that both have a score for; of unpaired scores, those of the smaller run."""
    change: Change


class ComparedScore(Record):
    """One metric of one model in both runs."""

    metric: MetricName
    a: Score | None
    b: Score | None
    difference: ScoreDifference | None
    flips: Flips | None = None
    """Of a metric that tells right from wrong, where rows are the same; `before` is the first
    run."""


class SlicedScore(Record):
    """One metric of one model in both runs, over some of the rows."""

    metric: MetricName
    a: Score | None
    b: Score | None


class Held(Record):
    """What a model is in one run, beside its scores."""

    method: str = ""
    bits: int | None = None
    size_bytes: int | None = None
    bits_per_weight: float | None = None
    tokens_per_second: float | None = None
    speed_engine: str = ""
    """That the speed is measured in."""
    made: Cost | None = None
    answering: Cost | None = None
    device: str = ""
    prompt: str = ""
    """The form of prompt its scores come from."""
    problem: str = ""
    """Why there are no scores."""


class ComparedModel(Record):
    """One model that both runs have."""

    model: str
    a: Held
    b: Held
    scores: tuple[ComparedScore, ...]
    sliced: Mapping[str, Mapping[str, tuple[SlicedScore, ...]]] = {}
    """By slice field, then by its value."""


class StageCost(Record):
    """What one stage took in one run."""

    status: Status
    seconds: float | None = None
    peak_rss_bytes: int | None = None
    peak_gpu_bytes: int | None = None


class ComparedStage(Record):
    """One stage of either run."""

    stage: str
    a: StageCost | None
    b: StageCost | None
    is_shared: bool
    """Whether both have the same key, so that it was computed once."""


class Training(Record):
    """How training went in both runs."""

    a: Finetuned | None
    b: Finetuned | None


class ComparisonDocument(Record):
    """Everything there is to say about two runs side by side."""

    format: Literal[1] = 1
    a: ComparedRun
    b: ComparedRun
    headline: str
    settings: tuple[SettingDifference, ...]
    rows: RowMatch
    models: tuple[ComparedModel, ...]
    only_in_a: tuple[str, ...]
    """Models that the other run does not have."""
    only_in_b: tuple[str, ...]
    samples: int
    """Flipped rows shown at most: what both runs allow."""
    sample_metric: MetricName | None
    """What right and wrong go by where rows are shown."""
    scales: Mapping[MetricName, Scale]
    slice_fields: tuple[SliceField, ...]
    stages: tuple[ComparedStage, ...]
    training: Training
    problems: tuple[MetricProblem, ...]
    """Metric plug-ins that could not be computed here."""
    notes: tuple[str, ...]
