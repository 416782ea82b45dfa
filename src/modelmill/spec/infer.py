"""How every model answers the test rows, and how the answers are judged."""

from typing import Literal

from pydantic import ConfigDict, Field

from modelmill.spec.closed import Dtype, FieldName, Spec


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

    def names(self) -> tuple[str, ...]:
        """List the metrics that will be computed."""
        every = (
            ("nll", self.nll),
            ("exact_match", self.exact_match),
            ("sql_execution", self.sql_execution),
        )
        return tuple(name for name, metric in every if metric is not None)


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
    metric: Literal["nll", "exact_match", "sql_execution"] = "nll"
    """What is compared, row by row; one of `infer.metrics`."""
    against: str | None = None
    """The model they are compared with; when absent, the 16-bit one that was quantized."""
    max_worse: float = Field(ge=0)
    """Absolute, in the metric's own unit."""
