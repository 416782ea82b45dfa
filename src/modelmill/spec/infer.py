"""How every model answers the test rows, and how the answers are judged."""

import operator
from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, StringConstraints, model_validator

from modelmill.spec.closed import LARGEST_INTEGER, Dtype, FieldName, Spec

PLUGINS: Final = "plugins."
"""What the name of a metric begins with that comes from a plug-in."""

_PLUGIN = r"[a-z][a-z0-9_]{0,39}"
PluginName = Annotated[str, StringConstraints(pattern=rf"^{_PLUGIN}$")]
"""Of an entry point in the group `modelmill.metrics`."""
PluginMetricName = Annotated[str, StringConstraints(pattern=rf"^plugins\.{_PLUGIN}$")]
MetricName = Literal["nll", "exact_match", "sql_execution"] | PluginMetricName
"""What a metric is called in the gate and in reports."""


class NllMetric(Spec):
    """Mean negative log-likelihood of the reference answer, in nats per token."""


class ExactMatchMetric(Spec):
    """Share of answers equal to the reference after normalising."""


class SqlExecutionMetric(Spec):
    """Share of answers that return the reference's rows on databases built to tell."""

    schema_field: FieldName = Field(alias="schema")
    """The data field that holds the `CREATE TABLE` statements."""

    model_config = ConfigDict(serialize_by_alias=True)


class MetricsSpec(Spec):
    """Which scores each model gets."""

    nll: NllMetric | None = NllMetric()
    exact_match: ExactMatchMetric | None = None
    sql_execution: SqlExecutionMetric | None = None
    # Left out where there are none, so that plans keep the digests they had without plug-ins.
    plugins: Mapping[PluginName, Mapping[str, JsonValue]] = Field({}, exclude_if=operator.not_)
    """Metrics of other packages, by name, each with settings of its own; see metrics.md."""

    def names(self) -> tuple[MetricName, ...]:
        """List the metrics that will be computed."""
        every: tuple[tuple[MetricName, Spec | None], ...] = (
            ("nll", self.nll),
            ("exact_match", self.exact_match),
            ("sql_execution", self.sql_execution),
        )
        return (
            *(name for name, metric in every if metric is not None),
            *(f"{PLUGINS}{name}" for name in sorted(self.plugins)),
        )

    @model_validator(mode="after")
    def _settings_survive_helm(self) -> Self:
        """Refuse integers that would change on the way: nobody else looks at these settings."""
        wrong = [
            f"plugins.{name}: {value} is larger than what Helm keeps (2^53)"
            for name, settings in self.plugins.items()
            for value in _numbers({**settings})
            if abs(value) > LARGEST_INTEGER
        ]
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


def _numbers(value: JsonValue) -> Iterator[float]:
    match value:
        case dict():
            for inner in value.values():
                yield from _numbers(inner)
        case list():
            for inner in value:
                yield from _numbers(inner)
        case int() | float():
            yield value


class InferSpec(Spec):
    """How every model answers the test rows."""

    max_new_tokens: int = Field(128, ge=1, le=65536)
    """An answer ends at the model's own end of text, or here."""
    batch_size: int = Field(16, ge=1, le=4096)
    """One batching for all models of a run: quantized kernels round differently by batch."""
    dtype: Literal["auto"] | Dtype = "auto"
    """One compute dtype for all models; `auto` is the profile's."""
    shots: int = Field(3, ge=1, le=16)
    """Examples in the base's own few-shot prompt."""
    adapter: bool = False
    """Judge the adapter unmerged too, on the base as it was held in training: row `adapter`."""
    metrics: MetricsSpec = MetricsSpec()


class GateSpec(Spec):
    """Which models must not be worse than another one."""

    models: tuple[str, ...] = Field(min_length=1)
    """Those that must hold; the others get a verdict too."""
    metric: MetricName = "nll"
    """What is compared, row by row; one of `infer.metrics`, a plug-in as `plugins.NAME`."""
    against: str | None = None
    """The model they are compared with; when absent, the 16-bit one that was quantized."""
    max_worse: float = Field(ge=0)
    """Absolute, in the metric's own unit."""
