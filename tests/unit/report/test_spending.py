"""What stages held is added up over all attempts, priced, and set beside what was foretold."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.report import words
from modelmill.report.compare import RunSide, compare
from modelmill.report.compose import render, render_comparison
from modelmill.report.document import ReportDocument
from modelmill.report.facts import RunFacts
from modelmill.report.spending import (
    Attempted,
    StageSpending,
    spent_by_run,
    spent_by_stage,
    total_of,
)
from modelmill.report.spending_table import basis_notes, spending_sentence, spending_table
from modelmill.spec.prices import Prices
from modelmill.spec.records import Foretold

EUROS = Prices(currency="EUR", per_hour={"h100": 2.5, "cpu": 0.05})

SECONDS = st.floats(0, 10**6)
ATTEMPTS = st.lists(
    st.builds(Attempted, seconds=st.none() | SECONDS, is_lost=st.booleans()), max_size=4
)


@st.composite
def spendings(draw: st.DrawFn) -> StageSpending:
    """Draw what one stage held."""
    low = draw(st.none() | SECONDS)
    foretold = Foretold(
        device=draw(st.sampled_from(["h100", "cpu"])),
        devices=draw(st.integers(1, 8)),
        low_seconds=low,
        high_seconds=None if low is None else low + draw(SECONDS),
        basis="drawn",
    )
    return spent_by_stage(foretold, draw(ATTEMPTS), EUROS)


@given(st.lists(spendings(), min_size=1, max_size=6))
def test_stages_add_up_to_the_run(stages: list[StageSpending]) -> None:
    """Hours by sort of device, money over both; lost hours are part of the hours."""
    run = spent_by_run(stages, "EUR")
    assert run is not None
    sorts = [each for each in (run.gpu, run.cpu) if each is not None]
    assert sum(each.hours for each in sorts) == pytest.approx(sum(each.hours for each in stages))
    assert run.price == pytest.approx(sum(each.price or 0 for each in stages))
    for each in (*stages, *sorts):
        assert 0 <= each.lost_hours <= each.hours * (1 + 1e-9)
        assert (each.low_hours is None) == (each.high_hours is None)
        assert (each.low_hours or 0) <= (each.high_hours or 0) * (1 + 1e-9)


@given(spendings(), SECONDS)
def test_another_attempt_never_makes_it_cheaper(stage: StageSpending, seconds: float) -> None:
    """Time that was lost is paid for, too."""
    foretold = Foretold(device=stage.device, devices=stage.devices, basis="")
    before = Attempted(seconds=100.0, is_lost=False)
    once = spent_by_stage(foretold, [before], EUROS)
    twice = spent_by_stage(foretold, [Attempted(seconds=seconds, is_lost=True), before], EUROS)
    assert twice.hours >= once.hours
    assert (twice.price or 0) >= (once.price or 0)
    assert twice.lost_hours == pytest.approx(stage.devices * seconds / 3600)


def test_device_without_a_price_leaves_no_price_of_the_run() -> None:
    """A sum that lacks a part would be taken for the whole."""
    priced, free = (
        spent_by_stage(
            Foretold(device=device, devices=1, basis=""),
            [Attempted(seconds=3600, is_lost=False)],
            EUROS,
        )
        for device in ("h100", "mine")
    )
    assert (priced.price, free.price) == (2.5, None)
    total = total_of([priced, free])
    assert total is not None
    assert (total.hours, total.price) == (2.0, None)


@pytest.fixture
def spent(small: RunFacts, change: Callable[..., RunFacts]) -> RunFacts:
    """Give a run on two GPUs whose fine-tune was lost once, after a minute."""
    told: dict[str, Foretold] = {}
    for stage in small.plan.stages:
        is_gpu = stage.kind in ("finetune", "quantize", "infer")
        known: dict[str, Any] = (
            {"low_seconds": 60.0, "high_seconds": 600.0, "basis": "a rate"}
            if stage.kind == "finetune"
            else {"basis": "no basis: none"}
        )
        told[stage.key] = Foretold(
            device="h100" if is_gpu else "cpu", devices=2 if is_gpu else 1, **known
        )
    events = list(small.events)
    first = next(each for each in events if (each.stage, each.event) == ("finetune", "started"))
    lost = {"attempt": "first", "time": "2026-11-22T08:00:00.000+00:00"}
    end = {"event": "failed", "exit_code": 71, "time": "2026-11-22T08:01:00.000+00:00"}
    events[:0] = [first.model_copy(update=lost), first.model_copy(update={**lost, **end})]
    return replace(small, events=tuple(events), foretold=told, prices=EUROS)


def test_report_sets_what_was_foretold_beside_what_was_held(spent: RunFacts) -> None:
    """Stage by stage and in all, with lost attempts, in every file of the report."""
    document, files = render(spent)
    finetune = next(each for each in document.stages if each.stage == "finetune")
    assert finetune.spending is not None
    assert finetune.spending.hours == pytest.approx(2 * (60 + 236 + 2.5) / 3600)
    assert finetune.spending.lost_hours == pytest.approx(2 * 60 / 3600)
    table = spending_table(document)
    assert table is not None
    rows = {row[0]: row for row in table.rows}
    assert table.columns[-2:] == ("EUR, foretold", "EUR")
    assert rows["finetune"] == (
        *("finetune", "2 x h100", "2 min 00 s to 20 min 00 s", "9 min 57 s"),
        *("2 min 00 s", "0.08 to 0.83", "0.41"),
    )
    assert rows["fetch-model"][3] == "nothing: adopted"
    assert rows["merge"][1:5] == ("cpu", words.NOTHING, "17 s", words.NOTHING)
    sentence = spending_sentence(document.spending)
    assert "0.03 of them lost, and 0.03 to 0.33 foretold for what took 0.17" in sentence
    assert basis_notes(document)[1] == "finetune: a rate"
    labels = f'run="{document.run}",stage="finetune",kind="finetune",device="h100"'
    metrics = files["metrics.prom"].decode().splitlines()
    assert (
        f'modelmill_stage_device_hours{{{labels},outcome="lost"}} {2 * 60 / 3600:.12g}' in metrics
    )
    assert f'modelmill_stage_foretold_device_hours{{{labels},bound="high"}} {1 / 3:.12g}' in metrics
    cost = next(each for each in metrics if each.startswith(f"modelmill_stage_cost{{{labels}"))
    assert 'currency="EUR"' in cost
    assert float(cost.rpartition(" ")[2]) == pytest.approx(2.5 * finetune.spending.hours)
    for name in ("report.md", "report.html"):
        assert b"Hours of devices" in files[name]
        assert b"0.08 to 0.83" in files[name]
    assert ReportDocument.model_validate_json(files["report.json"]) == document


def test_report_of_a_run_without_a_record_of_hours_has_none(small: RunFacts) -> None:
    """A run that an earlier version planned says nothing of them."""
    document, files = render(small)
    assert document.spending is None
    assert spending_table(document) is None
    assert b"Hours of devices" not in files["report.md"] + files["report.html"]


def test_pod_that_was_replaced_ends_no_attempt_of_others(spent: RunFacts) -> None:
    """Its end has no start of its own; the attempt that pods share goes on."""
    infer = next(each for each in spent.events if each.stage == "infer-merged")
    pod = {"event": "failed", "attempt": "pod", "exit_code": 75}
    events = (*spent.events, infer.model_copy(update=pod))
    before, after = (
        next(each for each in render(facts)[0].stages if each.stage == "infer-merged")
        for facts in (spent, replace(spent, events=events))
    )
    assert after.spending == before.spending
    assert len(after.spans) == 1


def test_attempt_whose_end_nobody_saw_is_said(spent: RunFacts) -> None:
    """Its hours are unknown: they are not counted, and not taken for none."""
    events = tuple(each for each in spent.events if each.exit_code != 71)
    document, _ = render(replace(spent, events=events))
    finetune = next(each for each in document.stages if each.stage == "finetune")
    assert finetune.spending is not None
    assert finetune.spending.unseen == 1
    assert basis_notes(document)[-1] == "finetune: 1 attempt whose end nobody saw, not counted"


def test_comparison_says_what_each_run_held(small: RunFacts, spent: RunFacts) -> None:
    """On the page and in the data; a run of which nothing is known has none."""
    document = compare(RunSide(replace(small, run="a"), "done"), RunSide(spent, "done"), {})
    assert document.a.spending is None
    assert document.b.spending == render(spent)[0].spending
    page = render_comparison(document)["compare.html"].decode()
    assert spending_sentence(document.b.spending) in page
