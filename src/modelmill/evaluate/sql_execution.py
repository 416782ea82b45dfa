"""The metric that runs reference and answer and compares what they return.

Rows that cannot judge anybody - no schema, a reference that does not run, LIMIT without
ORDER BY, no database that tells the reference from wrong queries - are excluded for every
model alike, because the decision looks at the row's schema and reference only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from modelmill.evaluate.answers import extract_query
from modelmill.evaluate.scale import SCALES, Scale
from modelmill.evaluate.scores import Control, Scores
from modelmill.evaluate.sql.execution import QueryError
from modelmill.evaluate.sql.suite import Suite, Unusable, is_equivalent, suite_for
from modelmill.evaluate.sql.tokens import statements_of, tokens_of
from modelmill.spec.infer import MetricName
from modelmill.spec.records import Prediction


@dataclass(frozen=True)
class SqlExecution:
    """Share of answers that return the reference's rows on databases built to tell.

    Quarantined rows and answers that do not run are wrong.  The share of the references' own
    mutations that the databases catch comes with the scores as a negative control.
    """

    schema: str
    """The data field that holds the CREATE TABLE statements."""

    name: ClassVar[MetricName] = "sql_execution"
    scale: ClassVar[Scale] = SCALES["sql_execution"]

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """Judge every row; the same reference is prepared once for all models."""
        values: dict[int, float] = {}
        excluded: dict[int, str] = {}
        suites: list[Suite] = []
        for prediction in predictions:
            suite = self._suite(prediction)
            if isinstance(suite, Unusable):
                excluded[prediction.row] = suite.reason
            else:
                suites.append(suite)
                values[prediction.row] = float(_is_right(suite, prediction))
        control = Control(
            mutations=sum(suite.mutations for suite in suites),
            caught=sum(suite.caught for suite in suites),
        )
        return Scores(
            metric=self.name,
            scale=self.scale,
            values=values,
            excluded=excluded,
            control=control,
        )

    def _suite(self, prediction: Prediction) -> Suite | Unusable:
        schema = prediction.fields.get(self.schema)
        if not isinstance(schema, str):
            return Unusable(f"the row has no schema in '{self.schema}'")
        return suite_for(schema, prediction.reference)


def _is_right(suite: Suite, prediction: Prediction) -> bool:
    if prediction.error:
        return False
    statements = list(statements_of(tokens_of(extract_query(prediction.output))))
    if len(statements) != 1:
        return False
    try:
        return is_equivalent(suite, statements[0])
    except QueryError:
        return False
