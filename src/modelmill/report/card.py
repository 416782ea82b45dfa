"""`README.md` of a model that leaves the store: what it is, how good, and how to open it.

Knows the front matter of hubs, and Markdown through `markdown`.  Says nothing about the place
where the model was made: no folders, no store, no machine.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from modelmill.report import words
from modelmill.report.document import ModelEntry, ReportDocument, scale_of
from modelmill.report.licence import UNKNOWN, Licence
from modelmill.report.markdown import escaped, table_row
from modelmill.report.opening import Opening, llama_lines, needed, transformers_lines, vllm_line
from modelmill.report.table import method_words, metric_names
from modelmill.spec.names import Gguf
from modelmill.spec.plan import Plan
from modelmill.spec.quantize import bits_of
from modelmill.spec.records import Manifest
from modelmill.spec.settings import Pin, QuantizeSettings
from modelmill.spec.sources import is_hub, parse_hub
from modelmill.spec.writing import yaml_text


@dataclass(frozen=True)
class Leaving:
    """A model that leaves, and what is known of it."""

    name: str
    """What people shall call it."""
    model: str
    """What its run calls it."""
    run: str
    plan: Plan
    opening: Opening
    manifest: Manifest
    """Of the artifact that holds it."""
    licence: Licence
    report: ReportDocument | None
    """On the run as it is now; None where that is not finished."""

    @property
    def entry(self) -> ModelEntry | None:
        """How it was judged; None where it was not."""
        models = () if self.report is None else self.report.models
        return next((each for each in models if each.model == self.model), None)


def card_md(leaving: Leaving) -> bytes:
    """Write the card; equal facts give equal bytes."""
    parts = [
        yaml_text([dict(_front(leaving))]) + "---",
        f"# {escaped(leaving.name)}",
        _summary(leaving),
        *_warning(leaving),
        "## Use",
        *_use(leaving),
        "## Quality",
        *_quality(leaving),
        "## Made from",
        *_sources(leaving),
        "## Recipe",
        "What is not named of fine-tuning has its default.  The last stage ran with "
        + ", ".join(f"{name} {version}" for name, version in leaving.manifest.versions.items())
        + ".",
        _block("yaml", yaml_text([_recipe(leaving)]).removeprefix("---\n")),
        "## Files",
        _files(leaving),
    ]
    return ("\n\n".join(parts) + "\n").encode()


def _files(leaving: Leaving) -> str:
    manifest, gguf = leaving.manifest, leaving.opening.gguf
    form = "" if gguf is None else f", written as {gguf.upper()}"
    return (
        "`sha256sum -c SHA256SUMS` checks every file.  The weights are those of the artifact "
        f"`{manifest.key}` ({manifest.stage}, {manifest.created[:10]}){form}."
    )


def _front(leaving: Leaving) -> Iterator[tuple[str, JsonValue]]:
    """List what hubs read."""
    licence, run = leaving.licence, leaving.plan.run
    yield "license", licence.id
    if licence.name:
        yield "license_name", licence.name
    if licence.link:
        yield "license_link", licence.link
    base = leaving.plan.pins[run.model.source].address
    if is_hub(base):
        yield "base_model", parse_hub(base).repository
        yield "base_model_relation", _relation(leaving)
    pins = leaving.plan.pins.values()
    data = [each for pin in pins if is_hub(pin.address) for each in [parse_hub(pin.address)]]
    if names := sorted({each.repository for each in data if each.kind == "dataset"}):
        yield "datasets", [*names]
    yield "library_name", _library(leaving.opening)
    yield "pipeline_tag", "text-generation"
    yield "tags", ["modelmill", *_tags(leaving)]


def _library(opening: Opening) -> str:
    if opening.gguf is not None:
        return "gguf"
    return "peft" if opening.is_adapter else "transformers"


def _relation(leaving: Leaving) -> str:
    if leaving.opening.is_adapter:
        return "adapter"
    return "quantized" if _is_quantized(leaving) else "finetune"


def _is_quantized(leaving: Leaving) -> bool:
    is_rounded = leaving.opening.gguf not in (None, "f16")
    return is_rounded or isinstance(leaving.opening.holder.settings, QuantizeSettings)


def _tags(leaving: Leaving) -> Sequence[str]:
    settings, gguf = leaving.opening.holder.settings, leaving.opening.gguf
    if gguf is not None:
        return ["gguf", gguf]
    if isinstance(settings, QuantizeSettings):
        return [settings.quantize.method, f"{bits_of(settings.quantize)}-bit"]
    return ["lora"] if leaving.opening.is_adapter else []


def _summary(leaving: Leaving) -> str:
    entry = leaving.entry
    held = "" if entry is None else f", {method_words(entry)}, {words.size(entry.size_bytes)}"
    if (gguf := leaving.opening.gguf) is not None:
        held = f", as a GGUF file of type {gguf.upper()}"
    note = leaving.plan.run.model.note
    return (
        f"The model *{escaped(leaving.model)}* of the run *{escaped(leaving.run)}*{held}, "
        f"made with modelmill.{f'  {escaped(note)}' if note else ''}"
    )


def _warning(leaving: Leaving) -> Iterator[str]:
    """Say in front of everything else what a reader must not overlook."""
    entry = leaving.entry
    if leaving.report is None:
        yield "> **Not judged.**  The run had not finished when this was exported."
    elif entry is None or entry.problem:
        yield "> **Not judged.**  Nothing has measured how this model answers."
    elif entry.verdict == "bad":
        gate = "It failed the gate" if entry.gated else "It is not gated"
        yield f"> **Measurably worse than allowed.**  {gate}; see below."
    elif entry.gated and entry.verdict != "good":
        yield "> **The gate is undecided.**  The test rows cannot tell whether it is good enough."
    if leaving.opening.gguf is not None and entry is not None and not entry.problem:
        yield f"> **Judged before it was converted.**  {_unjudged(leaving.opening.gguf)}"


def _unjudged(gguf: Gguf) -> str:
    """Say what no test row has seen."""
    unseen = "how llama.cpp answers"
    if gguf != "f16":
        unseen = f"what rounding to {gguf.upper()} takes away, or {unseen}"
    return f"The quality below is the 16-bit model's.  Nothing has measured {unseen}."


def _use(leaving: Leaving) -> Iterator[str]:
    opening = leaving.opening
    if opening.gguf is not None:
        answer, server = llama_lines(opening, opening.gguf)
        yield "With llama.cpp:"
        yield _block("sh", answer)
        yield "Or as a server with OpenAI's interface:"
        yield _block("sh", server)
        yield _contract(leaving)
        return
    packages = ", ".join(_with_version(name, leaving.manifest) for name in needed(opening))
    # Measured on two busy cores: 4 minutes, once for a machine.
    compiles = "gptqmodel" in needed(opening)
    hint = " (without a GPU, its kernel is compiled the first time)" if compiles else ""
    yield f"With {packages}{hint}:"
    yield _block("python", transformers_lines(opening))
    if line := vllm_line(opening):
        yield "Or as a server with OpenAI's interface:"
        yield _block("sh", line)
    yield _contract(leaving)


def _with_version(package: str, manifest: Manifest) -> str:
    return f"{package} {manifest.versions.get(package, '')}".strip()


def _contract(leaving: Leaving) -> str:
    """Say what a prompt has to be like."""
    data = leaving.plan.run.data
    form: Mapping[str, str] = {
        "prompt_completion": "A prompt is the text above with its fields in braces filled in",
        "messages": "A prompt is a conversation that ends with the user",
        "text": "The model goes on with a text",
    }
    place = "; it goes in as one user message, whose text the chat template passes on as it is"
    is_passed = data.format == "prompt_completion" and leaving.plan.run.finetune is not None
    return (
        f"{form[data.format]}{place if is_passed else ''}.  Prompt and answer together have at "
        f"most {data.max_length:,} tokens.  `prompt.json` holds the rules for tokens that training "
        "and tests followed: what stands in front, what ends an answer."
    )


def _quality(leaving: Leaving) -> Iterator[str]:
    report = leaving.report
    if report is None:
        yield "Unknown: the run had not finished."
        return
    by_name = {each.model: each for each in report.models}
    against = report.gate.against if report.gate is not None else leaving.plan.run.quantized_from
    names = [name for name in dict.fromkeys((leaving.model, against, "base")) if name in by_name]
    metrics = metric_names(report)
    if metrics and names:
        yield "\n".join(_scores([by_name[name] for name in names], report))
        rows = max(_rows(by_name[name]) for name in names)
        yield f"On {words.counted(rows, 'test row')} that only tests read; intervals are 95 %."
    if report.gate is None:
        yield "No gate was asked for."
    else:
        yield escaped(report.gate.sentence)
    entry = leaving.entry
    if entry is None or entry.problem:
        yield "This model itself was not judged."
    elif report.gate is not None and not entry.gated and leaving.model != report.gate.against:
        verdict = entry.verdict or "without a verdict"
        yield f"The gate does not ask about this model; it would be {verdict}."


def _rows(entry: ModelEntry) -> int:
    return max((scores.rows for scores in entry.prompts.values()), default=0)


def _scores(entries: Sequence[ModelEntry], report: ReportDocument) -> Iterator[str]:
    yield table_row(["", *(escaped(each.model) for each in entries)])
    yield table_row(["---", *("---:" for _ in entries)])
    for name in metric_names(report):
        scale = scale_of(report.scales, name)
        head = f"{escaped(words.metric_title(scale))} ({words.direction(scale)})"
        yield table_row([head, *(words.metric_score(scale, e.metrics.get(name)) for e in entries)])


def _sources(leaving: Leaving) -> Iterator[str]:
    """Name base and data by the state that was used."""
    plan = leaving.plan
    data, tuned = plan.run.data, plan.run.finetune
    asked: list[tuple[str, str | None]] = [
        ("base model", plan.run.model.source),
        ("adapter", (tuned.adapter or tuned.init_adapter) if tuned is not None else None),
        *(("training rows", each.source) for each in data.train_sources()),
        ("eval rows", data.eval if isinstance(data.eval, str) else None),
        ("test rows", data.test),
    ]
    rows = [
        table_row([role, _code(_place(plan.pins[source])), _code(plan.pins[source].digest)])
        for role, source in asked
        if source is not None
    ]
    yield "\n".join([table_row(["", "from", "digest"]), table_row(["---"] * 3), *rows])
    licence = leaving.licence
    named = " ".join(part for part in (licence.name, licence.link) if part)
    yield (
        "The licence of the base is unknown: its card names none.  Find out before passing this on."
        if licence.id == UNKNOWN
        else f"The licence of the base is {escaped(named or licence.id)}."
    )


def _place(pin: Pin) -> str:
    """Say where a source is for others too: of an uploaded one, the name of the file."""
    if is_hub(pin.address) or pin.address.startswith("s3://"):
        return pin.address
    return "/".join(pin.address.split("/")[2:]) or "a folder"


def _recipe(leaving: Leaving) -> dict[str, JsonValue]:
    """Choose of the run's settings those that made this model."""
    run, settings = leaving.plan.run, leaving.opening.holder.settings
    made: dict[str, JsonValue] = {}
    if run.finetune is not None:
        kept = run.finetune.changed() - {"adapter", "init_adapter"} | {"method"}
        made["finetune"] = run.finetune.model_dump(mode="json", include=set(kept))
        if not leaving.opening.is_adapter:
            made["merge"] = run.merge.model_dump(mode="json")
    if isinstance(settings, QuantizeSettings):
        made["quantize"] = settings.quantize.model_dump(mode="json", exclude={"name"})
    return {**made, "seed": run.seed}


def _block(language: str, text: str) -> str:
    """Fence a text off; one that holds a fence itself gets a longer one."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}{fence}"


def _code(text: str) -> str:
    return f"`{words.one_line(text).replace('`', '')}`"
