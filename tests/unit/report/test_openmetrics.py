"""What a monitoring system reads."""

import re
from collections import Counter

import pytest

from modelmill.report.compose import render
from modelmill.report.document import ReportDocument
from modelmill.report.facts import RunFacts
from modelmill.report.openmetrics import metrics_prom

SAMPLE = re.compile(
    r'(?P<name>[a-z_]+)\{(?P<labels>[a-z_]+="(?:[^"\\\n]|\\["\\n])*"'
    r'(?:,[a-z_]+="(?:[^"\\\n]|\\["\\n])*")*)\} (?P<value>-?[0-9.e+-]+)'
)
"""A sample as OpenMetrics 1.0 writes it, with what is used of its grammar."""


@pytest.fixture
def lines(document: ReportDocument) -> list[str]:
    """Write the invented run."""
    return metrics_prom(document).decode().splitlines()


def test_text_is_well_formed(lines: list[str]) -> None:
    """Every family is described once and before its samples, no sample is there twice."""
    assert lines[-1] == "# EOF"
    described: list[str] = []
    seen: Counter[str] = Counter()
    for line in lines[:-1]:
        if line.startswith("# TYPE "):
            described.append(line.split()[2])
        elif line.startswith("# UNIT "):
            _, _, name, unit = line.split()
            assert name == described[-1]
            assert name.endswith(f"_{unit}")
        elif line.startswith("# HELP "):
            assert line.split()[2] == described[-1]
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            assert found["name"] == described[-1]
            seen[line.rpartition(" ")[0]] += 1
    assert len(set(described)) == len(described)
    assert set(seen.values()) == {1}


def test_scores_and_costs_are_the_reports(document: ReportDocument, lines: list[str]) -> None:
    """Each number is found by run, model and stage."""
    score = next(each for each in document.models if each.model == "gptq-4").metrics["nll"]
    labels = f'run="{document.run}",model="gptq-4",metric="nll",bound="value"'
    assert f"modelmill_model_score{{{labels}}} {score.value:.12g}" in lines
    stage = next(each for each in document.stages if each.stage == "merge")
    assert any(
        line.startswith("modelmill_stage_peak_resident_bytes{")
        and 'stage="merge"' in line
        and line.endswith(f" {stage.peak_rss_bytes:.12g}")
        for line in lines
    )


def test_name_with_quotes_stays_one_label(document: ReportDocument) -> None:
    """A metric of a plug-in, or a run, may be called anything."""
    odd = document.model_copy(update={"run": 'a"b\\c\nd'})
    assert b'run="a\\"b\\\\c\\nd"' in metrics_prom(odd)


def test_file_is_part_of_the_report(facts: RunFacts) -> None:
    """Beside the page."""
    assert render(facts)[1]["metrics.prom"].endswith(b"# EOF\n")
