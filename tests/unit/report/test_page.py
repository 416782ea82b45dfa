"""The HTML page: whole without anything else, and harmless whatever it shows."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from modelmill.report.compose import render
from modelmill.report.facts import RunFacts, StageFacts
from modelmill.report.panels import gate_panel
from modelmill.spec.figures import Inferred, Speed

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>\x1b[31m\x00\u202ered {{ 7*7 }}'
VOID = {"meta", "br", "img", "link", "hr", "input", "path"}


class Outline(HTMLParser):
    """Collects tags, their attributes and what stands unclosed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append(tag)
        self.attributes.extend(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Note a tag that ends something else than what is open."""
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def page_of(facts: RunFacts) -> str:
    """Render a run's page."""
    return render(facts)[1]["report.html"].decode()


def outline_of(page: str) -> Outline:
    """Parse a page."""
    outline = Outline()
    outline.feed(page)
    outline.close()
    return outline


@pytest.fixture(scope="module")
def page(facts: RunFacts) -> str:
    """Give the complete run's page."""
    return page_of(facts)


def test_page_of_a_complete_run_tells_everything(page: str) -> None:
    """Every section is there, and the page says what came out."""
    for section in (
        "models",
        "gate",
        "slices",
        "samples",
        "training",
        "timeline",
        "data",
        "lineage",
        "reading",
    ):
        assert f'<section id="{section}">' in page
        assert f'href="#{section}"' in page
    assert "<h1>Fine-tuning improved SQL execution" in page
    assert "dequantized Q4_1" in page
    assert "Not everything was done" not in page


def test_page_counts_what_quantizers_looked_at(page: str) -> None:
    """Tokens, those of a text, rows used, left over, and too long; NF4 looks at nothing."""
    table = page.partition('aria-label="Calibration by stage"')[2].partition("</table>")[0]
    counts = "".join(
        f'<td class="num">{count}</td>' for count in ("6,144", "2,048", 61, "1,439", 7)
    )
    assert f'<th scope="row">quantize-gptq-4</th>{counts}' in table
    assert "quantize-nf4" not in table


def test_page_is_well_formed(page: str) -> None:
    """Every tag that is opened is closed, in order, and no id stands twice."""
    outline = outline_of(page)
    ids = [value for name, value in outline.attributes if name == "id"]
    assert outline.wrong == []
    assert outline.open == []
    assert len(ids) == len(set(ids))


def test_page_needs_nothing_from_outside(page: str) -> None:
    """No address, no script, no frame and no image: nothing is fetched, and policy says so."""
    outline = outline_of(page)
    assert not re.search(r"https?://|url\(|@import|src=", page)
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(outline.tags)
    assert all(
        value and value.startswith("#") for name, value in outline.attributes if name == "href"
    )
    assert "default-src 'none'" in page


def test_page_can_be_read_without_seeing_it(page: str) -> None:
    """Tables have heads with a scope, and the drawing says in words what it shows."""
    outline = outline_of(page)
    assert outline.tags.count("table") == outline.tags.count("thead")
    assert len(re.findall(r"<th(?=[ >])(?![^>]*scope=)", page)) == 0
    assert re.search(r'<svg[^>]*role="img" aria-label="Training loss [^"]+eval loss', page)
    assert 'lang="en"' in page


def test_page_follows_the_reader_s_light(page: str) -> None:
    """Colours follow the system's light or dark mode, and there are rules for paper."""
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_page_is_the_same_twice(small: RunFacts) -> None:
    """Equal facts give equal bytes, in all three files."""
    assert render(small)[1] == render(small)[1]


def test_foreign_text_stays_text(
    small: RunFacts, change: Callable[..., RunFacts], fail: Callable[..., RunFacts]
) -> None:
    """Markup, terminal codes and template code in any foreign string are shown, not obeyed."""
    facts = small
    for name in ("infer-merged", "infer-gptq-4"):
        stage = facts.find(name)
        assert stage is not None
        facts = change(
            facts,
            name,
            predictions=tuple(
                each.model_copy(
                    update={
                        "prompt": HOSTILE,
                        "reference": HOSTILE,
                        "output": HOSTILE,
                        "error": HOSTILE,
                        "fields": {"phrasing": HOSTILE, "context": HOSTILE},
                    }
                )
                for each in stage.predictions
            ),
        )
    merge = facts.find("merge")
    assert merge is not None
    assert merge.measurements is not None
    assert merge.manifest is not None
    facts = change(
        facts,
        "merge",
        adopted_from=HOSTILE,
        status="adopted",
        measurements=merge.measurements.model_copy(update={"warnings": (HOSTILE,)}),
        manifest=merge.manifest.model_copy(update={"settings": {"x": HOSTILE}, "run": HOSTILE}),
    )
    facts = fail(facts, "quantize-nf4", HOSTILE)
    facts = replace(facts, run=HOSTILE)
    page = page_of(facts)
    outline = outline_of(page)
    assert "<script" not in page
    assert "<img" not in page
    assert not {"script", "img"} & set(outline.tags)
    assert not any(name.startswith("on") for name, _ in outline.attributes)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page)
    assert "\\x1b[31m\\x00\\u202ered {{ 7*7 }}" in page
    assert outline.wrong == []


def test_a_failed_stage_is_named(small: RunFacts, fail: Callable[..., RunFacts]) -> None:
    """A run with a failure still renders, names cause and code, and judges the rest."""
    document, pages = render(fail(small, "quantize-nf4", "needs 9 GB, has 5"))
    page = pages["report.html"].decode()
    assert "Not everything was done" in page
    assert "needs 9 GB, has 5" in page
    assert "exit code 78" in page
    assert document.outcome == "incomplete"
    assert {model.model: bool(model.metrics) for model in document.models} == {
        "base": True,
        "merged": True,
        "gptq-4": True,
        "nf4": False,
        "gptq-2": True,
    }


@pytest.mark.parametrize("stage", ["fetch-model", "fetch-test", "finetune", "infer-merged"])
def test_any_stage_may_be_missing(
    small: RunFacts, fail: Callable[..., RunFacts], stage: str
) -> None:
    """However early a run broke off, its report is a whole page."""
    outline = outline_of(page_of(fail(small, stage)))
    assert outline.wrong == []
    assert outline.open == []
    assert "h1" in outline.tags


def test_a_run_without_tuning_and_gate_renders(invent: Callable[..., RunFacts]) -> None:
    """Sections for what was not asked for are left out."""
    facts = invent(
        {"finetune": None, "gate": None, "report": {}, "infer": {"metrics": {"nll": {}}}}, rows=12
    )
    page = page_of(facts)
    outline = outline_of(page)
    assert outline.wrong == []
    assert '<section id="gate">' not in page
    assert '<section id="training">' not in page
    assert '<section id="slices">' not in page


@pytest.mark.parametrize("metric", ["nll", "exact_match", "sql_execution"])
@pytest.mark.parametrize("max_worse", [0, 0.05])
def test_any_gate_can_be_drawn(
    invent: Callable[..., RunFacts], metric: str, max_worse: float
) -> None:
    """Whatever metric and bound the gate has, each model but the reference gets a mark."""
    gate = {"models": ["gptq-4", "nf4", "gptq-2"], "metric": metric, "max_worse": max_worse}
    document, pages = render(invent({"gate": gate}, rows=12))
    assert document.gate is not None
    panel = gate_panel(document, document.gate)
    assert panel is not None
    assert [mark.name for mark in panel.marks] == ["base", "gptq-4", "nf4", "gptq-2"]
    assert all(0 <= edge <= 100 for mark in panel.marks for edge in (mark.low, mark.high))
    assert b"Worse than merged by" in pages["report.html"]


def test_a_far_better_model_lies_beyond_the_left_edge(invent: Callable[..., RunFacts]) -> None:
    """What is far better than allowed is not drawn as far worse."""
    gate = {"models": ["merged"], "against": "gptq-2", "metric": "nll", "max_worse": 0.05}
    document, _ = render(invent({"gate": gate}, rows=12))
    assert document.gate is not None
    panel = gate_panel(document, document.gate)
    assert panel is not None
    sides = {mark.name: mark.beyond for mark in panel.marks}
    assert sides["gptq-4"] == "left"
    assert sides["base"] == "left"


def test_speed_names_the_engine_that_it_is_measured_in(small: RunFacts) -> None:
    """Under the number and above the bars; a run of an earlier version names none."""
    document, files = render(with_speed(small, "merged"))
    entry = next(each for each in document.models if each.model == "merged")
    assert (entry.speed_engine, entry.speed_why) == ("vllm 0.33.0", "16-bit on CUDA")
    page = files["report.html"].decode()
    assert "<small>vllm</small>" in page
    assert "vllm 0.33.0, bfloat16, AMD" in page
    assert "vllm" not in page_of(small)


def with_speed(facts: RunFacts, model: str) -> RunFacts:
    """Let one model be measured in another engine."""
    speed = Speed(engine="vllm 0.33.0", why="16-bit on CUDA", tokens=240, seconds=0.5)
    name = f"infer-{model}"
    return replace(
        facts,
        stages=tuple(
            _measured(each, speed) if each.stage.name == name else each for each in facts.stages
        ),
    )


def _measured(stage: StageFacts, speed: Speed) -> StageFacts:
    measured = stage.measurements
    assert measured is not None
    assert isinstance(measured.figures, Inferred)
    figures = measured.figures.model_copy(update={"speed": speed, "tokens_per_second": 480.0})
    return replace(stage, measurements=measured.model_copy(update={"figures": figures}))
