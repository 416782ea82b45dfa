"""Scores, the base's better form, verdicts and the gate."""

from collections.abc import Callable

import pytest

from modelmill.report.describe import report_document
from modelmill.report.document import ModelEntry, ReportDocument
from modelmill.report.facts import RunFacts
from modelmill.report.judge import judge


def model_of(document: ReportDocument, name: str) -> ModelEntry:
    """Find a model's row."""
    return next(model for model in document.models if model.model == name)


def test_base_is_shown_in_its_better_form(document: ReportDocument) -> None:
    """One row `base`, with the scores of the form that answers better; both are kept."""
    base = model_of(document, "base")
    assert base.prompt == "3-shot"
    assert set(base.prompts) == {"contract", "3-shot"}
    own, contract = base.prompts["3-shot"], base.prompts["contract"]
    assert base.metrics == own.metrics
    assert own.metrics["sql_execution"].value > contract.metrics["sql_execution"].value


def test_base_s_form_is_chosen_by_answers_and_not_by_nll(
    small: RunFacts, change: Callable[..., RunFacts]
) -> None:
    """A form with a lower NLL but worse answers is not the better one."""
    stage = small.find("infer-base")
    merged = small.find("infer-merged")
    assert stage is not None
    assert merged is not None
    better = tuple(each.model_copy(update={"nll": 5.0}) for each in merged.predictions)
    facts = change(small, "infer-base", predictions=better)
    base = judge(facts).models[0]
    assert base.chosen is not None
    assert base.chosen.form == "contract"
    assert base.chosen.metrics["nll"].value == pytest.approx(5.0)


def test_equal_forms_fall_to_the_contract(small: RunFacts, change: Callable[..., RunFacts]) -> None:
    """Where both forms answer alike, the form every other model gets is shown."""
    own = small.find("infer-base-own")
    assert own is not None
    base = judge(change(small, "infer-base", predictions=own.predictions)).models[0]
    assert base.chosen is not None
    assert base.chosen.form == "contract"


def test_verdicts_of_every_model(document: ReportDocument) -> None:
    """Close is good, noisy is undecided with the rows that would decide, broken is bad."""
    verdicts = {model.model: model.verdict for model in document.models}
    assert verdicts == {
        "base": "bad",
        "merged": None,
        "gptq-4": "good",
        "nf4": "undecided",
        "gptq-2": "bad",
    }
    undecided = model_of(document, "nf4").difference
    assert undecided is not None
    assert undecided.low <= 0.05 < undecided.high
    assert undecided.n_to_decide is not None
    assert undecided.n_to_decide > undecided.n


def test_a_bad_model_fails_the_run_only_when_gated(invent: Callable[..., RunFacts]) -> None:
    """gptq-2 is as bad in both runs; only the gate that names it fails."""
    outcomes = {}
    for models in (["gptq-4"], ["gptq-4", "gptq-2"]):
        facts = invent({"gate": {"models": models, "metric": "nll", "max_worse": 0.05}}, rows=12)
        outcomes[len(models)] = judge(facts).outcome
    assert outcomes == {1: "passed", 2: "failed"}


def test_a_failed_gate_outweighs_a_failed_stage(
    invent: Callable[..., RunFacts], fail: Callable[..., RunFacts]
) -> None:
    """What is known to be bad is not hidden behind something that is missing."""
    gate = {"models": ["gptq-2", "nf4"], "metric": "nll", "max_worse": 0.05}
    facts = fail(invent({"gate": gate}, rows=12), "quantize-nf4")
    assert judge(facts).outcome == "failed"


def test_nothing_is_judged_without_the_model_to_judge_against(
    small: RunFacts, fail: Callable[..., RunFacts]
) -> None:
    """Without merged there are scores but no verdicts, and the gate says why."""
    judgement = judge(fail(small, "infer-merged"))
    assert judgement.outcome == "incomplete"
    assert judgement.gate is not None
    assert judgement.gate.outcome == "incomplete"
    assert "gptq-4 could not be judged" in judgement.gate.sentence
    assert all(model.verdict is None for model in judgement.models)


def test_a_run_without_a_gate_has_scores_and_no_verdicts(invent: Callable[..., RunFacts]) -> None:
    """No gate is no failure."""
    judgement = judge(invent({"gate": None}, rows=12))
    assert judgement.outcome == "ungated"
    assert judgement.gate is None
    assert all(model.verdict is None and model.chosen for model in judgement.models)


def test_slices_part_the_rows(document: ReportDocument) -> None:
    """Every row is in exactly one slice, and both slices are scored for every model."""
    for model in document.models:
        assert set(model.slices) == {"known", "new"}
        counts = [model.slices[value]["sql_execution"].n for value in ("known", "new")]
        assert sum(counts) == model.metrics["sql_execution"].n


def test_quarantined_rows_are_counted(document: ReportDocument) -> None:
    """A row the model could not be run on is left out of NLL by name and wrong by execution."""
    nf4 = model_of(document, "nf4")
    assert nf4.prompts["contract"].quarantined == 1
    assert nf4.metrics["nll"].excluded == {"the model could not be run on the row": 1}
    assert nf4.metrics["sql_execution"].n == nf4.metrics["nll"].n + 1


def test_the_metric_s_own_control_is_reported(document: ReportDocument) -> None:
    """The share of mutated references that SQL execution notices stands in the report."""
    (control,) = document.controls
    assert control.metric == "sql_execution"
    assert control.share == pytest.approx(control.caught / control.mutations)
    assert control.share >= control.least


def test_headline_says_what_came_out(
    document: ReportDocument, small: RunFacts, fail: Callable[..., RunFacts]
) -> None:
    """One sentence: what tuning did, and how the gated models held up."""
    assert document.headline.startswith("Fine-tuning improved SQL execution from ")
    assert "gptq-4 (at 41 % of the size) passes the gate" in document.headline
    assert "nf4 (at 44 % of the size) is undecided" in document.headline
    nothing = fail(fail(small, "fetch-test"), "fetch-model")
    empty = report_document(nothing, judge(nothing))
    assert empty.headline == "gptq-4 and nf4 could not be judged."
