"""A run's own report: flipped rows of gated models, several slices, metric plug-ins."""

from collections.abc import Callable

import pytest

from modelmill.evaluate.plugin import Answered, PluginMetric, Plugins, TextMetric
from modelmill.report.compose import render
from modelmill.report.describe import report_document
from modelmill.report.document import ModelEntry, ReportDocument
from modelmill.report.facts import RunFacts
from modelmill.report.judge import judge
from modelmill.spec.errors import Problem, SpecError

from .test_page import outline_of

Invent = Callable[..., RunFacts]


def model_of(document: ReportDocument, name: str) -> ModelEntry:
    """Find a model's row."""
    return next(model for model in document.models if model.model == name)


def test_gated_models_have_their_flips(document: ReportDocument) -> None:
    """For every metric that says right and wrong: counts, McNemar's p, and rows within samples."""
    assert {model.model for model in document.models if model.flips} == {"gptq-4", "nf4"}
    by_sql, by_text = model_of(document, "nf4").flips
    assert (by_sql.metric, by_text.metric) == ("sql_execution", "exact_match")
    merged, nf4 = (model_of(document, name).metrics["sql_execution"] for name in ("merged", "nf4"))
    assert by_sql.lost - by_sql.gained == round((merged.value - nf4.value) * by_sql.n)
    assert 0 < by_sql.p_value <= 1
    assert len(by_sql.rows) == min(5, by_sql.lost + by_sql.gained)
    assert by_text.rows == ()
    for row in by_sql.rows:
        assert (row.before.model, row.after.model) == ("merged", "nf4")
        assert row.before.right is not row.after.right
        assert row.change == ("lost" if row.before.right else "gained")


def test_flips_show_no_row_where_none_may_be_shown(invent: Invent) -> None:
    """With `samples: 0` only counts are left."""
    document, pages = render(invent({"report": {"samples": 0}}, rows=24))
    flips = [flips for model in document.models for flips in model.flips]
    assert any(each.lost + each.gained for each in flips)
    assert all(each.rows == () for each in flips)
    assert b"Answers that flipped" in pages["report.html"]
    assert b"SELECT" not in pages["report.html"]


def test_several_fields_are_scored_apart(invent: Invent) -> None:
    """The first field stays where it was, and every field has its groups, in their order."""
    facts = invent({"report": {"slice": ["phrasing", "question", "nothing"]}}, rows=60)
    document, pages = render(facts)
    assert document.slice == "phrasing"
    assert [field.field for field in document.slice_fields] == ["phrasing", "question", "nothing"]
    merged = model_of(document, "merged")
    assert merged.slices == merged.sliced["phrasing"]
    assert set(merged.sliced) == {"phrasing"}
    problems = [field.problem for field in document.slice_fields]
    assert problems[0] == ""
    assert "too many for groups" in problems[1]
    assert problems[2] == "no test row has a field 'nothing'"
    assert document.samples.rows[0].sliced.keys() == {"phrasing"}
    page = pages["report.html"].decode()
    assert "Not taken apart: no test row has a field &#39;nothing&#39;." in page
    assert outline_of(page).wrong == []
    assert any("nothing" in note for note in document.notes)


def starts_alike(row: Answered, _: object) -> float:
    """Score by how much of the reference's beginning the answer has."""
    return len(set(row.answer[:20]) & set(row.reference[:20])) / len(set(row.reference[:20]))


def breaks(row: Answered, _: object) -> float:
    """Break on what the broken model writes."""
    if row.output.startswith("###"):
        raise RuntimeError(row.output)
    return 1.0


def plugin(name: str, declared: TextMetric) -> Plugins:
    """Have one plug-in."""
    return {name: PluginMetric(name, declared, {}, "a-package 1.0")}


ALIKE = TextMetric(score=starts_alike, title="Starts alike")


def asking(invent: Invent, name: str, metric: str) -> RunFacts:
    """Invent a run that asks for a plug-in, and gates by a metric."""
    gate = {"models": ["gptq-4", "gptq-2"], "metric": metric, "max_worse": 0.2}
    infer = {"metrics": {"nll": {}, "exact_match": {}, "plugins": {name: {}}}}
    return invent({"infer": infer, "gate": gate}, rows=12)


def test_gate_can_use_a_plugin(invent: Invent) -> None:
    """A plug-in's scores have intervals, a place in every table, and can fail a run."""
    facts = asking(invent, "alike", "plugins.alike")
    document, pages = render(facts, plugin("alike", ALIKE))
    assert list(document.scales) == ["exact_match", "plugins.alike", "nll"]
    assert document.outcome == "failed"
    assert document.gate is not None
    assert "worse than merged in Starts alike" in document.gate.sentence
    assert model_of(document, "gptq-2").verdict == "bad"
    assert model_of(document, "gptq-4").verdict == "good"
    assert document.problems == ()
    page = pages["report.html"].decode()
    assert "A metric of another package, a-package 1.0; higher is better, from 0 to 1." in page
    assert b"Starts alike" in pages["report.md"]
    assert outline_of(page).wrong == []


def test_failing_plugin_takes_nothing_else_with_it(invent: Invent) -> None:
    """The model it failed on lacks that score, with plug-in and row; all else is there."""
    facts = asking(invent, "weak", "nll")
    declared = TextMetric(score=breaks, is_binary=True)
    document, pages = render(facts, plugin("weak", declared))
    (problem,) = document.problems
    assert (problem.metric, problem.model, problem.exit_code) == ("plugins.weak", "gptq-2", 65)
    assert "'weak' (a-package 1.0) raised RuntimeError" in problem.message
    assert "test row 0" in problem.message
    assert "###" not in problem.message
    broken, merged = model_of(document, "gptq-2"), model_of(document, "merged")
    assert set(broken.metrics) == {"nll", "exact_match"}
    assert set(merged.metrics) == {"nll", "exact_match", "plugins.weak"}
    assert document.outcome == "failed"
    assert b"has no scores" in pages["report.html"]


@pytest.mark.parametrize("metric", ["plugins.gone", "nll"])
def test_plugin_that_is_not_installed_is_a_note(invent: Invent, metric: str) -> None:
    """Other metrics are judged; a gate that needs it is incomplete."""
    facts = asking(invent, "gone", metric)
    missing = SpecError("metric plug-ins", [Problem("infer.metrics.plugins.gone", "not installed")])
    judgement = judge(facts, {"gone": missing})
    document = report_document(facts, judgement)
    assert [each.exit_code for each in document.problems] == [64]
    assert "exact_match" in model_of(document, "merged").metrics
    assert (document.outcome == "incomplete") == (metric == "plugins.gone")
