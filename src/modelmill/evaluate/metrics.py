"""The metrics a run can ask for: functions from one model's predictions to row scores.

A row is scored by what the row itself holds, and excluded for reasons that do not depend on
the model where they can be helped, so that models are compared on the same rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from modelmill.evaluate.answers import extract_answer, is_query
from modelmill.evaluate.scale import SCALES, Scale
from modelmill.evaluate.scores import Scores
from modelmill.evaluate.sql.tokens import canonical_text, statements_of, tokens_of
from modelmill.evaluate.sql_execution import SqlExecution
from modelmill.spec.infer import MetricName, MetricsSpec
from modelmill.spec.records import Prediction


class Metric(Protocol):
    """Anything that scores the predictions of one model."""

    @property
    def name(self) -> MetricName:
        """What the spec calls it."""
        ...

    @property
    def scale(self) -> Scale:
        """How its values are read."""
        ...

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """Score or exclude every row.

        Raises:
            MetricFailed: only a plug-in does.
        """
        ...


@dataclass(frozen=True)
class Nll:
    """Mean negative log-likelihood of the reference answer, in nats per token.

    A row's score is the mean over its own tokens, and the metric is the mean over rows: the
    row is what the test set samples and what the bootstrap resamples, so long answers do not
    weigh more.  A corpus figure weighted by tokens differs from it.
    """

    name: ClassVar[MetricName] = "nll"
    scale: ClassVar[Scale] = SCALES["nll"]

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """Take each row's nll; quarantined and unmeasured rows are excluded."""
        values: dict[int, float] = {}
        excluded: dict[int, str] = {}
        for prediction in predictions:
            if prediction.error:
                excluded[prediction.row] = "the model could not be run on the row"
            elif prediction.nll is None:
                excluded[prediction.row] = "the row has no nll"
            else:
                values[prediction.row] = prediction.nll
        return Scores(
            metric=self.name,
            scale=self.scale,
            values=values,
            excluded=excluded,
        )


@dataclass(frozen=True)
class ExactMatch:
    """Share of answers whose normal form equals the reference's; quarantined rows are wrong."""

    name: ClassVar[MetricName] = "exact_match"
    scale: ClassVar[Scale] = SCALES["exact_match"]

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """Compare the normal forms of answer and reference, row by row."""
        values = {
            prediction.row: float(
                not prediction.error
                and normal_form(extract_answer(prediction.output, prediction.reference))
                == normal_form(prediction.reference)
            )
            for prediction in predictions
        }
        return Scores(
            metric=self.name,
            scale=self.scale,
            values=values,
        )


def normal_form(answer: str) -> str:
    """Reduce an answer to what counts when answers are compared as text.

    An SQL query becomes its tokens: white space, comments and a trailing semicolon vanish,
    unquoted words are upper-cased (SQLite ignores their case), literals and quoted names stay
    as written.  In any other answer, runs of white space become one space and case counts.
    """
    if not is_query(answer):
        return " ".join(answer.split())
    return " ; ".join(map(canonical_text, statements_of(tokens_of(answer))))


def metrics_of(spec: MetricsSpec) -> tuple[Metric, ...]:
    """Make the metrics a spec asks for, in the spec's order."""
    metrics: list[Metric] = []
    if spec.nll is not None:
        metrics.append(Nll())
    if spec.exact_match is not None:
        metrics.append(ExactMatch())
    if spec.sql_execution is not None:
        metrics.append(SqlExecution(spec.sql_execution.schema_field))
    return tuple(metrics)
