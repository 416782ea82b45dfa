"""Intervals, slices and verdicts are what their textbooks say, and reproducible."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.evaluate.gate import gate_failed, judge
from modelmill.evaluate.scale import SCALES
from modelmill.evaluate.scores import Scores, summarize
from modelmill.evaluate.statistics import (
    difference_interval,
    independent_difference,
    mcnemar,
    mean_interval,
    rows_needed,
    wilson_interval,
)
from modelmill.spec.errors import InputMissing
from modelmill.spec.infer import MetricName


def _scores(values: list[float], *, metric: MetricName = "nll", first_row: int = 0) -> Scores:
    return Scores(
        metric=metric,
        scale=SCALES[metric],
        values=dict(enumerate(values, first_row)),
    )


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_interval_is_the_published_one(
    successes: int, n: int, low: float, high: float
) -> None:
    """Wilson's interval equals published values to four digits."""
    interval = wilson_interval(successes, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_its_estimate(case: tuple[int, int]) -> None:
    """The interval lies in [0, 1], contains the share and has a width."""
    interval = wilson_interval(*case)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low < interval.high


def test_mean_interval_is_close_to_the_normal_one() -> None:
    """On many well-behaved rows the bootstrap agrees with the normal approximation."""
    values = np.random.default_rng(1).normal(2.0, 0.5, size=400)
    interval = mean_interval(values, seed=0)
    half = 1.96 * values.std(ddof=1) / 20
    assert interval.high - interval.value == pytest.approx(half, rel=0.15)
    assert interval.value - interval.low == pytest.approx(half, rel=0.15)
    assert mean_interval(values, seed=0) == interval


def test_mean_interval_of_many_rows_is_made_in_chunks() -> None:
    """More rows than fit one chunk of resamples still give an interval."""
    interval = mean_interval(np.arange(2_500.0), seed=0)
    assert interval.low < 1249.5 < interval.high


def test_equal_shares_on_few_rows_are_not_certain() -> None:
    """Where no row differs, the interval still shrinks only with the number of rows."""
    few = difference_interval(np.zeros(12), seed=0, of_shares=True)
    many = difference_interval(np.zeros(400), seed=0, of_shares=True)
    assert few.high > 0.1
    assert 0 < many.high < 0.01


def test_paired_differences_are_narrower_than_unpaired_ones() -> None:
    """Rows that are hard for both models do not widen the interval of their difference."""
    hard = np.random.default_rng(2).normal(0, 1, size=200)
    noise = np.random.default_rng(3).normal(0, 0.01, size=200)
    (verdict,) = judge({"a": _scores([*hard]), "b": _scores([*(hard + noise)])}, "a", 0.02, seed=0)
    assert verdict.verdict == "good"
    assert verdict.low is not None
    assert verdict.high is not None
    assert verdict.high - verdict.low < 0.01


def test_gate_tells_good_bad_and_undecided_apart() -> None:
    """Each outcome follows from where the interval lies, whichever way the metric points."""
    rng = np.random.default_rng(4)
    base = rng.normal(1, 0.2, size=100)
    models = {
        "merged": _scores([*base]),
        "same": _scores([*(base + rng.normal(0, 0.01, 100))]),
        "worse": _scores([*(base + 0.5 + rng.normal(0, 0.01, 100))]),
        "noisy": _scores([*(base + 0.05 + rng.normal(0, 0.3, 100))]),
    }
    verdicts = {verdict.model: verdict for verdict in judge(models, "merged", 0.02, seed=0)}
    assert {model: verdict.verdict for model, verdict in verdicts.items()} == {
        "same": "good",
        "worse": "bad",
        "noisy": "undecided",
    }
    assert verdicts["same"].rows_needed is None
    assert (verdicts["noisy"].rows_needed or 0) > 100
    assert gate_failed(verdicts.values(), {"same", "worse"})
    assert not gate_failed(verdicts.values(), {"same", "noisy", "absent"})


def test_gate_signs_by_the_metric() -> None:
    """For a share, where higher is better, fewer right answers are a positive difference."""
    right, wrong = [1.0] * 50, [0.0] * 50
    models = {
        "merged": _scores(right + wrong, metric="exact_match"),
        "broken": _scores(wrong + wrong, metric="exact_match"),
        "better": _scores(right + right, metric="exact_match"),
    }
    broken, better = judge(models, "merged", 0.1, seed=0)
    assert (broken.difference, broken.verdict) == (0.5, "bad")
    assert (better.difference, better.verdict) == (-0.5, "good")


def test_gate_compares_shared_rows_only() -> None:
    """Rows that only one model has a score for do not enter; none shared decides nothing."""
    models = {
        "merged": _scores([1.0] * 30),
        "half": _scores([1.0] * 30, first_row=15),
        "other": _scores([1.0] * 30, first_row=90),
    }
    half, other = judge(models, "merged", 0.1, seed=0)
    assert (half.n, half.verdict) == (15, "good")
    assert (other.n, other.verdict, other.difference) == (0, "undecided", None)


def test_gate_decides_nothing_on_a_handful_of_rows() -> None:
    """Five equal rows have no spread, and are no evidence."""
    models = {"merged": _scores([1.0] * 5), "same": _scores([1.0] * 5)}
    (verdict,) = judge(models, "merged", 0.1, seed=0)
    assert (verdict.verdict, verdict.rows_needed) == ("undecided", 10)


def test_gate_against_a_model_without_scores_is_an_error() -> None:
    """A comparison with nothing names the model that is missing."""
    with pytest.raises(InputMissing, match="'merged'"):
        judge({"gptq-4": _scores([1.0])}, "merged", 0.1, seed=0)


ROWS = st.lists(st.floats(-3, 3), min_size=1, max_size=40)
ORDER = {"bad": 0, "undecided": 1, "good": 2}


@settings(max_examples=40, deadline=None)
@given(ROWS, st.floats(0, 2), st.floats(0, 2))
def test_verdict_never_gets_worse_when_more_is_allowed(
    differences: list[float], one: float, other: float
) -> None:
    """Raising max_worse moves a verdict from bad over undecided to good, never back."""
    models = {"merged": _scores([0.0] * len(differences)), "model": _scores(differences)}
    (strict,) = judge(models, "merged", min(one, other), seed=0)
    (loose,) = judge(models, "merged", max(one, other), seed=0)
    assert ORDER[strict.verdict] <= ORDER[loose.verdict]


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [
        # Binomial tails, by hand: 2 * (1 + 5) / 2**5; 2 * 1 / 2**6; and so on.
        (1, 4, 0.375),
        (0, 6, 0.03125),
        (6, 0, 0.03125),
        (0, 0, 1.0),
        (3, 3, 1.0),
        (5, 15, 2 * 21_700 / 2**20),
    ],
)
def test_mcnemar_is_the_exact_one(lost: int, gained: int, p: float) -> None:
    """The p of McNemar's test is twice the smaller tail of a fair coin."""
    assert mcnemar(lost, gained) == pytest.approx(p)


@given(st.integers(0, 4000), st.integers(0, 4000))
def test_mcnemar_is_a_probability_and_knows_no_direction(lost: int, gained: int) -> None:
    """Whichever way rows flipped, p is the same, and it is a float for thousands of them."""
    p = mcnemar(lost, gained)
    assert 0 <= p <= 1
    assert p == mcnemar(gained, lost)


def test_independent_difference_is_the_published_one() -> None:
    """Differences of two shares equal Newcombe 1998 (II), table II, method 10."""
    before, after = wilson_interval(48, 80), wilson_interval(56, 70)
    interval = independent_difference(before, after)
    assert (interval.value, interval.low, interval.high) == pytest.approx(
        (0.2, 0.0524, 0.3339), abs=6e-5
    )


def test_unpaired_interval_is_wider_than_the_paired_one() -> None:
    """Rows that are hard for both widen a difference that does not know which row is which."""
    hard = np.random.default_rng(2).normal(0, 1, size=200)
    after = hard + np.random.default_rng(3).normal(0, 0.1, size=200)
    paired = difference_interval(after - hard, seed=0, of_shares=False)
    unpaired = independent_difference(mean_interval(hard, 0), mean_interval(after, 0))
    assert unpaired.value == pytest.approx(paired.value)
    assert unpaired.high - unpaired.low > 5 * (paired.high - paired.low)


def test_rows_needed_decide() -> None:
    """Drawing about as many rows as predicted does put the bound outside the interval."""
    rng = np.random.default_rng(5)
    sample = rng.normal(0.0, 0.3, size=100)
    needed = rows_needed(sample, bound=0.02, of_shares=False)
    assert needed is not None
    more = rng.normal(sample.mean(), 0.3, size=2 * needed)
    assert mean_interval(more, seed=0).high < 0.02


def test_no_number_of_rows_decides_a_difference_that_is_the_bound() -> None:
    """A mean exactly at the bound stays undecided however many rows there are."""
    assert rows_needed(np.array([0.0, 0.2]), bound=0.1, of_shares=False) is None


def test_summary_counts_what_it_leaves_out() -> None:
    """Excluded rows are counted by reason, and a metric without rows has no value."""
    scores = Scores(
        metric="exact_match",
        scale=SCALES["exact_match"],
        values={0: 1.0, 1: 0.0},
        excluded={2: "no schema", 3: "no schema"},
    )
    summary = summarize(scores, seed=0)
    assert (summary.value, summary.n, summary.excluded) == (0.5, 2, {"no schema": 2})
    nothing = summarize(scores, 0, rows=[3])
    assert (nothing.value, nothing.low, nothing.n, nothing.excluded) == (
        None, None, 0, {"no schema": 1},
    )  # fmt: skip
