"""Which test rows are shown, and that none are where none may be."""

from collections.abc import Callable
from dataclasses import replace

from modelmill.report.compose import render
from modelmill.report.describe import report_document
from modelmill.report.document import ReportDocument
from modelmill.report.facts import RunFacts
from modelmill.report.judge import judge

CANARY = "canary-7f3a"


def with_canary(facts: RunFacts) -> RunFacts:
    """Put a word into every text of the data and every answer."""
    return replace(
        facts,
        stages=tuple(
            replace(
                stage,
                predictions=tuple(
                    each.model_copy(
                        update={
                            "prompt": f"{each.prompt}{CANARY}",
                            "reference": f"{each.reference} -- {CANARY}",
                            "output": f"{each.output} -- {CANARY}",
                            "error": f"{each.error} {CANARY}" if each.error else "",
                            "fields": {
                                **each.fields,
                                "question": CANARY,
                                "context": f"{each.fields['context']} -- {CANARY}",
                            },
                        }
                    )
                    for each in stage.predictions
                ),
            )
            for stage in facts.stages
        ),
    )


def test_no_text_of_the_data_leaves_when_samples_are_off(
    invent: Callable[..., RunFacts],
) -> None:
    """With `samples: 0`, no word of prompts, references, answers or errors is in any file."""
    off = with_canary(invent({"report": {"samples": 0, "slice": "phrasing"}}, rows=12))
    document, pages = render(off)
    assert document.samples.rows == ()
    assert [name for name, body in pages.items() if CANARY.encode() in body] == []
    assert b"ships" not in b"".join(pages.values())


def test_the_canary_would_be_seen(small: RunFacts) -> None:
    """The same canary does show where samples are on, so its absence proves something."""
    _, pages = render(with_canary(small))
    assert CANARY.encode() in pages["report.html"]
    assert CANARY.encode() in pages["report.json"]


def test_samples_show_where_models_differ(document: ReportDocument) -> None:
    """As many rows as asked for, each with every model's answer, and all of them telling."""
    samples = document.samples
    assert len(samples.rows) == 5
    assert samples.metric == "sql_execution"
    for sample in samples.rows:
        assert [answer.model for answer in sample.answers] == [
            model.model for model in document.models
        ]
        assert len({answer.right for answer in sample.answers}) > 1
    patterns = [tuple(answer.right for answer in sample.answers) for sample in samples.rows]
    assert len(set(patterns)) == len(patterns)


def test_samples_do_not_depend_on_the_order_of_predictions(small: RunFacts) -> None:
    """A resumed infer stage writes rows in another order; the report stays the same."""
    turned = replace(
        small,
        stages=tuple(replace(stage, predictions=stage.predictions[::-1]) for stage in small.stages),
    )
    first, second = (report_document(each, judge(each)) for each in (small, turned))
    assert first.samples == second.samples


def test_rows_are_grouped_by_answer_without_a_reading_metric(
    invent: Callable[..., RunFacts],
) -> None:
    """With NLL alone nothing is called right or wrong, and different answers come first."""
    document, _ = render(invent({"infer": {"metrics": {"nll": {}}}}, rows=12))
    assert document.samples.metric is None
    assert all(answer.right is None for row in document.samples.rows for answer in row.answers)
    assert len({answer.output for answer in document.samples.rows[0].answers}) > 1
