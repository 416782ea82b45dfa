"""A metric of another package is held to what it promises, and breaks alone."""

import math
from collections.abc import Callable

import pytest

from modelmill.evaluate.plugin import Answered, PluginMetric, TextMetric
from modelmill.spec.errors import MetricFailed
from modelmill.spec.records import Prediction


def prediction(row: int, output: str, error: str = "") -> Prediction:
    """Answer a row whose reference is a query."""
    return Prediction(
        row=row,
        prompt="prompt",
        reference="SELECT a FROM t",
        fields={"level": row},
        output=output,
        error=error,
    )


def metric(declared: TextMetric) -> PluginMetric:
    """Use a metric as a run would."""
    return PluginMetric("mine", declared, {}, "a-package 1.0")


def test_plugin_is_given_the_row_and_the_extracted_answer() -> None:
    """The answer is found by the rule of all metrics, and the whole output is there too."""
    seen: list[Answered] = []

    def look(row: Answered, _: object) -> float:
        seen.append(row)
        return 0.5

    scores = metric(TextMetric(score=look)).score([prediction(7, "Sure! ```SELECT a FROM t;```")])
    assert scores.values == {7: 0.5}
    assert scores.metric == "plugins.mine"
    (row,) = seen
    assert (row.answer, row.fields) == ("SELECT a FROM t", {"level": 7})
    assert row.output.startswith("Sure!")


@pytest.mark.parametrize(
    ("declared", "worst"),
    [
        (TextMetric(score=lambda *_: 1.0), 0.0),
        (TextMetric(score=lambda *_: 1.0, higher_is_better=False), 1.0),
        (TextMetric(score=lambda *_: 1.0, higher_is_better=False, high=None), None),
    ],
)
def test_row_without_an_answer_gets_the_worst_score(
    declared: TextMetric, worst: float | None
) -> None:
    """A model that cannot be run on a row does not gain by it; without a worst, it is excluded."""
    scores = metric(declared).score([prediction(0, "x"), prediction(1, "", error="too long")])
    assert scores.values.get(1) == worst
    assert (1 in scores.excluded) == (worst is None)


def _raise(*_: object) -> float:
    raise KeyError("a secret of the data")


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (_raise, "raised KeyError in test_plugin.py, line "),
        (lambda *_: math.nan, "returned nan, but a score is a finite number"),
        (lambda *_: math.inf, "returned inf, but a score is a finite number"),
        (lambda *_: 1.5, "returned 1.5, but declares that no score is above 1"),
        (lambda *_: -0.1, "returned -0.1, but declares that no score is below 0"),
        (lambda *_: "much", "raised ValueError"),
    ],
)
def test_broken_promise_names_plugin_package_and_row(
    score: Callable[..., float], said: str
) -> None:
    """Whatever a plug-in does on a row, it is said where, without the words of the data."""
    with pytest.raises(MetricFailed) as caught:
        metric(TextMetric(score=score)).score([prediction(31, "x")])
    assert "The metric plug-in 'mine' (a-package 1.0)" in caught.value.what
    assert said in caught.value.what
    assert caught.value.at == "test row 31"
    assert caught.value.exit_code == 65
    assert "secret" not in str(caught.value)


def test_binary_plugin_says_right_and_wrong() -> None:
    """Scores of 0 and 1 are right and wrong in the direction of the metric; others are refused."""

    def one_if_a(row: Answered, _: object) -> float:
        return "a" in row.output

    rows = [prediction(0, "a"), prediction(1, "b")]
    up = metric(TextMetric(score=one_if_a, is_binary=True)).score(rows)
    down = metric(TextMetric(score=one_if_a, is_binary=True, higher_is_better=False)).score(rows)
    assert up.right() == {0: True, 1: False}
    assert down.right() == {0: False, 1: True}
    with pytest.raises(MetricFailed, match="declares that every score is 0 or 1"):
        metric(TextMetric(score=lambda *_: 0.5, is_binary=True)).score(rows)


def test_promises_that_contradict_each_other_are_refused() -> None:
    """An author hears of it at import, not a user in a report."""
    with pytest.raises(ValueError, match="from 0 to 1"):
        TextMetric(score=lambda *_: 0.0, is_binary=True, high=10)
    with pytest.raises(ValueError, match="must be below"):
        TextMetric(score=lambda *_: 0.0, low=1, high=1)
