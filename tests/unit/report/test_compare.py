"""Two runs side by side: what differs, paired where rows are the same, and no row too many."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from modelmill.report.compare import RunSide, compare
from modelmill.report.compare_table import comparison_table, settings_table
from modelmill.report.comparison import ComparedModel, ComparedScore, ComparisonDocument
from modelmill.report.compose import render_comparison
from modelmill.report.facts import RunFacts
from modelmill.spec.records import Prediction

from .test_page import HOSTILE, outline_of

Invent = Callable[..., RunFacts]
Alter = Callable[..., RunFacts]

LOWER = {"finetune": {"learning_rate": 1e-4}}


def other(facts: RunFacts) -> RunFacts:
    """Call a run by another name."""
    return replace(facts, run="other")


def compared(a: RunFacts, b: RunFacts) -> ComparisonDocument:
    """Compare two runs that have ended."""
    return compare(RunSide(a, "done"), RunSide(b, "done"), {})


def model_of(document: ComparisonDocument, name: str) -> ComparedModel:
    """Find a model."""
    return next(model for model in document.models if model.model == name)


def score_of(document: ComparisonDocument, model: str, metric: str) -> ComparedScore:
    """Find a score."""
    return next(score for score in model_of(document, model).scores if score.metric == metric)


def half_broken(facts: RunFacts, alter: Alter) -> RunFacts:
    """Let merged answer like gptq-2 on every second row."""
    merged, broken = facts.find("infer-merged"), facts.find("infer-gptq-2")
    assert merged is not None
    assert broken is not None
    mixed = tuple(
        bad if good.row % 2 else good
        for good, bad in zip(merged.predictions, broken.predictions, strict=True)
    )
    return alter(facts, "infer-merged", predictions=mixed)


@pytest.fixture(scope="module")
def document(facts: RunFacts, invent: Invent, change: Alter) -> ComparisonDocument:
    """Compare the complete run with one whose merged model is half broken."""
    return compared(facts, half_broken(other(invent(LOWER)), change))


def test_only_what_differs_is_listed(invent: Invent, small: RunFacts) -> None:
    """Settings by their dotted keys, a section that one run lacks as one, nothing else."""
    changed = invent(
        {
            **LOWER,
            "quantize": [{"method": "gptq", "bits": 4, "group_size": 32}],
            "gate": None,
            "seed": 3,
        },
        rows=12,
    )
    settings = {each.key: each for each in compared(small, other(changed)).settings}
    assert set(settings) == {
        "finetune.learning_rate",
        "quantize.gptq-4.group_size",
        "quantize.nf4",
        "quantize.gptq-2",
        "gate",
        "seed",
    }
    assert settings["seed"].model_dump(exclude={"key"}) == {"a": 0, "b": 3, "only_in": None}
    assert settings["quantize.gptq-2"].only_in == "a"
    assert settings["gate"].b is None
    assert compared(small, other(small)).settings == ()


def test_same_source_with_other_content_is_named(small: RunFacts) -> None:
    """Two runs that read the same address at different times may not have read the same."""
    pins = dict(small.plan.pins)
    pins["s3://data/train.jsonl"] = pins["s3://data/train.jsonl"].model_copy(
        update={"digest": "f" * 64}
    )
    later = replace(other(small), plan=small.plan.model_copy(update={"pins": pins}))
    (difference,) = compared(small, later).settings
    assert difference.key == "sources.s3://data/train.jsonl"


def test_paired_difference_says_which_run_is_better(document: ComparisonDocument) -> None:
    """The sign is second minus first; better follows from the metric's direction."""
    for metric, sign in (("sql_execution", -1), ("exact_match", -1), ("nll", 1)):
        difference = score_of(document, "merged", metric).difference
        assert difference is not None
        assert difference.is_paired
        assert difference.change == "worse"
        assert sign * difference.low > 0
        assert sign * difference.high > 0
    untouched = score_of(document, "nf4", "sql_execution").difference
    assert untouched is not None
    assert (untouched.value, untouched.change) == (0.0, "undecided")
    assert document.headline.startswith("SQL execution, other against demo: merged (-")
    assert "is worse" in document.headline


def test_one_infer_stage_means_the_same_answers(document: ComparisonDocument) -> None:
    """The base does not depend on fine-tuning: it was asked once, and nothing is left open."""
    base = score_of(document, "base", "sql_execution").difference
    assert base is not None
    assert base.change == "same"
    shared = {stage.stage for stage in document.stages if stage.is_shared}
    assert shared == {"fetch-model", "fetch-data", "fetch-test", "infer-base", "infer-base-own"}


def test_flips_are_counted_and_tested(document: ComparisonDocument) -> None:
    """Rows that were lost and gained, with McNemar's exact p; none for a mean."""
    flips = score_of(document, "merged", "sql_execution").flips
    assert flips is not None
    a, b = (
        score_of(document, "merged", "sql_execution").a,
        score_of(document, "merged", "sql_execution").b,
    )
    assert a is not None
    assert b is not None
    assert flips.lost - flips.gained == round((a.value - b.value) * flips.n)
    assert flips.gained == 0
    assert flips.p_value == pytest.approx(2 / 2**flips.lost)
    assert score_of(document, "merged", "nll").flips is None


@pytest.mark.parametrize(("a", "b", "shown"), [(5, 2, 2), (2, 5, 2), (0, 5, 0), (5, 0, 0)])
def test_rows_are_shown_only_as_both_runs_allow(
    invent: Invent, change: Alter, a: int, b: int, shown: int
) -> None:
    """The stricter run decides, and no text of the data stands in any file where it says 0."""
    one = invent({"report": {"samples": a, "slice": "phrasing"}}, rows=12)
    two = half_broken(
        other(invent({**LOWER, "report": {"samples": b, "slice": "phrasing"}}, rows=12)), change
    )
    document = compared(one, two)
    files = b"".join(render_comparison(document).values())
    flips = score_of(document, "merged", "sql_execution").flips
    assert flips is not None
    assert flips.lost > 2
    assert len(flips.rows) == shown
    assert (b"SELECT" in files) == (shown > 0)
    assert (b"ships" in files or b"rivers" in files) == (shown > 0)
    exact = score_of(document, "merged", "exact_match").flips
    assert exact is not None
    assert exact.rows == ()


def test_shown_row_has_prompt_reference_and_both_answers(document: ComparisonDocument) -> None:
    """What one run had right and the other wrong can be read without either run's report."""
    flips = score_of(document, "merged", "sql_execution").flips
    assert flips is not None
    row = flips.rows[0]
    assert (row.change, row.before.right, row.after.right) == ("lost", True, False)
    assert (row.before.model, row.after.model) == ("demo", "other")
    assert row.reference in row.prompt or row.reference.startswith("SELECT")
    assert row.before.output != row.after.output


def with_rows(facts: RunFacts, alter: Alter, new: Callable[[Prediction], Prediction]) -> RunFacts:
    """Change every answered row of a run, and the key of its fetch-test."""
    test = facts.find("fetch-test")
    assert test is not None
    facts = alter(facts, "fetch-test", stage=test.stage.model_copy(update={"key": "f" * 64}))
    for stage in facts.stages:
        if stage.predictions:
            answered = tuple(map(new, stage.predictions))
            facts = alter(facts, stage.stage.name, predictions=answered)
    return facts


def test_equal_rows_in_another_order_are_paired(small: RunFacts, change: Alter) -> None:
    """Fetched apart and turned round, rows that hold the same are still compared one by one."""
    turned = with_rows(
        other(small), change, lambda each: each.model_copy(update={"row": 100 - each.row})
    )
    document = compared(small, turned)
    assert document.rows.same_by == "content"
    difference = score_of(document, "merged", "nll").difference
    assert difference is not None
    assert difference.is_paired
    assert difference.value == pytest.approx(0.0)
    assert difference.low == pytest.approx(difference.high)
    flips = score_of(document, "merged", "sql_execution").flips
    assert flips is not None
    assert flips.lost == flips.gained == 0


def test_other_rows_are_compared_unpaired_and_said_so(small: RunFacts, change: Alter) -> None:
    """Where one row differs no row is held against another, and intervals are wider."""
    renamed = with_rows(
        other(small),
        change,
        lambda each: each.model_copy(
            update={"reference": f"{each.reference} LIMIT 1"} if each.row == 3 else {}
        ),
    )
    document = compared(small, renamed)
    assert document.rows.same_by is None
    assert document.rows.sentence.startswith("The test rows are not the same (12 and 12)")
    score = score_of(document, "merged", "nll")
    assert score.difference is not None
    assert not score.difference.is_paired
    assert score.difference.high - score.difference.low > 0.01
    assert score.flips is None
    assert b"no answer can be held against another" in render_comparison(document)["compare.html"]


def test_unfinished_run_is_said_in_words(small: RunFacts, fail: Alter) -> None:
    """What is there is compared; what is not has its reason, and the page is whole."""
    late = fail(other(small), "quantize-nf4", "needs 9 GB")
    document = compare(RunSide(small, "done"), RunSide(late, "failed with 78: needs 9 GB"), {})
    assert document.b.unfinished == (
        "quantize-nf4 failed with 78",
        "infer-nf4 could not begin: an input is not there",
    )
    nf4 = model_of(document, "nf4")
    assert nf4.b.problem == "infer-nf4 could not begin: an input is not there"
    assert nf4.scores[0].b is None
    assert nf4.scores[0].difference is None
    page = render_comparison(document)["compare.html"].decode()
    assert "failed with 78: needs 9 GB" in page
    assert "infer-nf4 could not begin" in page


@pytest.mark.parametrize("stage", ["fetch-model", "fetch-test", "finetune", "infer-merged"])
def test_any_stage_may_be_missing(small: RunFacts, fail: Alter, stage: str) -> None:
    """However early a run broke off, the comparison is a whole page."""
    document = compared(small, fail(other(small), stage))
    outline = outline_of(render_comparison(document)["compare.html"].decode())
    assert outline.wrong == []
    assert outline.open == []


def test_metrics_of_one_run_only_are_named(invent: Invent, small: RunFacts) -> None:
    """Scores are compared by what both ask for alike, and the rest is said."""
    infer = {"metrics": {"nll": {}, "sql_execution": {"schema": "question"}}}
    document = compared(small, other(invent({"infer": infer, "gate": None}, rows=12)))
    assert list(document.scales) == ["nll"]
    assert document.notes == (
        "exact_match is not compared: only demo asks for it",
        "sql_execution is not compared: its settings differ",
    )


def test_models_of_one_run_only_are_named(invent: Invent, small: RunFacts) -> None:
    """A model that the other run does not have is no row of zeros."""
    less = invent({"quantize": [{"method": "gptq", "bits": 4}], "gate": None}, rows=12)
    document = compared(small, other(less))
    assert [model.model for model in document.models] == ["base", "merged", "gptq-4"]
    assert (document.only_in_a, document.only_in_b) == (("nf4", "gptq-2"), ())


def test_slices_of_either_run_are_set_side_by_side(document: ComparisonDocument) -> None:
    """Every group of rows has the scores of both runs."""
    sliced = model_of(document, "merged").sliced["phrasing"]
    assert set(sliced) == {"known", "new"}
    for scores in sliced.values():
        for score in scores:
            assert score.a is not None
            assert score.b is not None
            assert score.a.n == score.b.n


def test_tables_say_what_the_document_says(document: ComparisonDocument) -> None:
    """The terminal shows settings, scores with differences, and costs of both."""
    assert settings_table(document).rows == (("finetune.learning_rate", "0.0002", "0.0001"),)
    rows = comparison_table(document).rows
    assert rows[0][:2] == ("base", "SQL execution")
    merged = next(index for index, row in enumerate(rows) if row[0] == "merged")
    assert "worse; " in rows[merged][5]
    assert " lost, 0 gained, p " in rows[merged][5]
    assert "time to make" in {row[1] for row in rows}


def test_page_is_whole_and_equal_documents_give_equal_bytes(document: ComparisonDocument) -> None:
    """One file without scripts or anything from elsewhere; both curves in one plot with a text."""
    files = render_comparison(document)
    assert files == render_comparison(document)
    page = files["compare.html"].decode()
    outline = outline_of(page)
    assert outline.wrong == []
    assert outline.open == []
    assert "://" not in page
    assert page.count('class="plot"') == 1
    assert 'role="img" aria-label="demo: Training loss' in page
    assert ComparisonDocument.model_validate(json.loads(files["compare.json"])) == document


def test_foreign_text_stays_text(small: RunFacts, change: Alter) -> None:
    """Markup and terminal codes in names, answers and settings are shown, not obeyed."""
    hostile = half_broken(replace(small, run=HOSTILE), change)
    test = with_rows(
        hostile, change, lambda each: each.model_copy(update={"prompt": HOSTILE, "output": HOSTILE})
    )
    document = compare(RunSide(small, HOSTILE), RunSide(test, "done"), {})
    page = render_comparison(document)["compare.html"].decode()
    assert "<script" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert outline_of(page).wrong == []
    cells = [cell for row in comparison_table(document).rows for cell in row]
    assert not any("\x1b" in cell for cell in cells)
