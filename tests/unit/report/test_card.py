"""The card of a model that leaves the store."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from modelmill.report.card import Leaving, card_md
from modelmill.report.compose import render
from modelmill.report.document import ReportDocument
from modelmill.report.facts import RunFacts
from modelmill.report.licence import Licence, licence_of
from modelmill.report.opening import Opening, llama_lines, transformers_lines, vllm_line
from modelmill.spec.names import Gguf
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import Pin

GOLDEN = Path(__file__).parent / "golden" / "card.md"
HUB_BASE = Pin(address=f"hf:org/base@{'a' * 40}", digest="b" * 64)


def leave(facts: RunFacts, document: ReportDocument | None, model: str) -> Leaving:
    """Let a model of the invented run leave."""
    holder = facts.plan.holders()[model]
    stage = facts.find(holder.name)
    assert stage is not None
    assert stage.manifest is not None
    return Leaving(
        name="sql-writer",
        model=model,
        run=facts.run,
        plan=facts.plan,
        opening=Opening("./sql-writer", facts.plan.run, holder, "llama", "BASE"),
        manifest=stage.manifest,
        licence=Licence(),
        report=document,
    )


def on_a_hub(leaving: Leaving) -> Leaving:
    """Let the base be one of a hub."""
    source = leaving.plan.run.model.source
    pins = {**leaving.plan.pins, source: HUB_BASE}
    return replace(leaving, plan=leaving.plan.model_copy(update={"pins": pins}))


def card(leaving: Leaving) -> str:
    """Write the card as text."""
    return card_md(leaving).decode()


def test_card_of_the_invented_run(facts: RunFacts, document: ReportDocument) -> None:
    """A gated, quantized model of a base on a hub: all of the card, as it is kept here."""
    leaving = on_a_hub(leave(facts, document, "gptq-4"))
    text = card(replace(leaving, licence=Licence("apache-2.0")))
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_front_matter_is_what_hubs_read(facts: RunFacts, document: ReportDocument) -> None:
    """Between the marks is YAML, with base, relation and licence."""
    front = card(on_a_hub(leave(facts, document, "merged"))).split("---\n")[1]
    assert YAML(typ="safe").load(front) == {
        "license": "unknown",
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["modelmill"],
    }


@pytest.mark.parametrize(
    ("gguf", "relation"), [("f16", "finetune"), ("q8_0", "quantized"), ("q4_0", "quantized")]
)
def test_card_of_a_gguf_file(
    facts: RunFacts, document: ReportDocument, gguf: Gguf, relation: str
) -> None:
    """It says how llama.cpp opens the file, and first of all that nothing has judged it."""
    leaving = on_a_hub(leave(facts, document, "merged"))
    file = f"sql-writer-{gguf.upper()}.gguf"
    opening = replace(leaving.opening, gguf=gguf)
    text = card(replace(leaving, opening=opening))
    front = YAML(typ="safe").load(text.split("---\n")[1])
    assert front["base_model_relation"] == relation
    assert front["library_name"] == "gguf"
    assert front["tags"] == ["modelmill", "gguf", gguf]
    assert text.index("> **Judged before it was converted.**") < text.index("## Use")
    assert (f"rounding to {gguf.upper()} takes away" in text) is (gguf != "f16")
    assert f", as a GGUF file of type {gguf.upper()}, made with modelmill." in text
    assert f", written as {gguf.upper()}.\n" in text
    assert f"llama-cli -m ./sql-writer/{file} -c " in text
    assert f"llama-server -m ./sql-writer/{file} -c " in text
    assert "from transformers" not in text
    assert "vllm serve" not in text


def test_gguf_file_on_a_hub_is_named_by_its_type(facts: RunFacts, document: ReportDocument) -> None:
    """llama.cpp fetches the repository's file that has the type in its name."""
    opening = leave(facts, document, "merged").opening
    answer, server = llama_lines(replace(opening, address="org/sql-writer"), "q4_0")
    assert answer.startswith("llama-cli -hf org/sql-writer:Q4_0 -c ")
    assert server.startswith("llama-server -hf org/sql-writer:Q4_0 -c ")


def test_model_that_nobody_tuned_goes_on_with_a_text(
    facts: RunFacts, document: ReportDocument
) -> None:
    """There is no chat template of ours in it, and llama.cpp's own would change the prompt."""
    opening = leave(facts, document, "merged").opening
    run = opening.run.model_copy(update={"finetune": None})
    answer, _ = llama_lines(replace(opening, run=run), "f16")
    assert answer.startswith("llama-completion ")
    assert " -no-cnv " in answer


def test_card_of_a_run_that_is_not_finished(facts: RunFacts) -> None:
    """Without a report nothing is claimed, in front of everything else."""
    text = card(leave(facts, None, "merged"))
    assert text.index("> **Not judged.**") < text.index("## Use")
    assert "Unknown: the run had not finished." in text


def test_card_of_a_model_that_failed_the_gate(
    facts: RunFacts, invent: Callable[..., RunFacts]
) -> None:
    """The first thing said is that it did."""
    failed = invent({"gate": {"models": ["gptq-2"], "metric": "nll", "max_worse": 0.05}}, 12)
    text = card(leave(failed, render(failed)[0], "gptq-2"))
    assert "> **Measurably worse than allowed.**  It failed the gate; see below." in text


def test_card_tells_nothing_of_the_place(facts: RunFacts, document: ReportDocument) -> None:
    """An uploaded file goes by its name: neither the folder of whoever ran it nor the store."""
    leaving = leave(facts, document, "adapter")
    asked = {
        "finetune": {"init_adapter": "/home/somebody/adapter"},
        "model": {"source": "/home/somebody/model"},
    }
    run = RunSpec.model_validate({**leaving.plan.run.model_dump(exclude={"merge"}), **asked})
    pins = {
        **leaving.plan.pins,
        "/home/somebody/model": Pin(address=f"sources/{'c' * 64}", digest="c" * 64),
        "/home/somebody/adapter": Pin(address=f"sources/{'d' * 64}/one.bin", digest="d" * 64),
    }
    plan = leaving.plan.model_copy(update={"run": run, "pins": pins})
    text = card(replace(leaving, plan=plan))
    assert "somebody" not in text
    assert "`one.bin`" in text


@pytest.mark.parametrize(
    ("model", "model_type", "is_served"),
    [
        ("merged", "llama", True),
        ("merged", "codegen", False),
        ("gptq-4", "llama", True),
        ("gptq-2", "llama", False),
        ("nf4", "llama", False),
        ("adapter", "llama", False),
    ],
)
def test_vllm_is_named_where_it_reads_the_model(
    facts: RunFacts, model: str, model_type: str, is_served: bool
) -> None:
    """16 bits and GPTQ with 4 and 8, of an architecture that it has."""
    opening = replace(leave(facts, None, model).opening, model_type=model_type)
    assert bool(vllm_line(opening)) is is_served


@pytest.mark.parametrize("model", ["merged", "adapter", "gptq-4", "nf4"])
def test_lines_are_a_program(facts: RunFacts, model: str) -> None:
    """What is printed compiles, whatever stands in names and templates."""
    opening = replace(leave(facts, None, model).opening, address='./it\'s "quoted"')
    compile(transformers_lines(opening), "card", "exec")


def test_fence_is_longer_than_those_inside(
    facts: RunFacts, document: ReportDocument, invent: Callable[..., RunFacts]
) -> None:
    """A template with a fence of its own does not end the block."""
    template = {"prompt": "```\n{question}", "completion": "{answer}"}
    data = {**facts.plan.run.data.model_dump(), "template": template}
    text = card(leave(invent({"data": data}, 12), document, "merged"))
    assert len(re.findall(r"^````(?:python)?$", text, re.MULTILINE)) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# A", Licence("apache-2.0")),
        (
            "---\nlicense: other\nlicense_name: 'llama-3'\nlicense_link: https://a.example/x\n---\n",
            Licence("other", "llama-3", "https://a.example/x"),
        ),
        ("---\r\nlicense: mit\r\n---\r\n", Licence("mit")),
        ("# A\nlicense: mit\n", Licence()),
        ("---\nlicense: [mit, x]\n---\n", Licence()),
        ("---\nlicense: mit <b>\n---\n", Licence()),
        ("", Licence()),
    ],
)
def test_licence_is_read_off_the_front_matter(text: str, expected: Licence) -> None:
    """One harmless word, or it is unknown."""
    assert licence_of(text) == expected
