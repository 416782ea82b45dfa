"""What a model took to make and how large it is, from the measurements of its stages.

Knows which stages make which model.  Must not know answers.
"""

from collections.abc import Sequence

from modelmill.report.document import Cost
from modelmill.report.facts import RunFacts, StageFacts
from modelmill.spec.figures import Inferred, Measurements, Quantized


def made_by(facts: RunFacts, model: str) -> list[StageFacts]:
    """Find the stages that turned the model before it into this one."""
    every = {
        "base": (),
        "adapter": ("finetune",),
        "merged": ("finetune", "merge"),
        "finetuned": ("finetune",),
    }
    names = every.get(model, (f"quantize-{model}",))
    return [stage for name in names if (stage := facts.find(name)) is not None]


def cost_of(stages: Sequence[StageFacts]) -> Cost | None:
    """Add up what stages took; None where there are none, or one was not measured."""
    taken = [(each.stage.name, each.measurements) for each in stages]
    known: list[tuple[str, Measurements]] = [
        (name, measured) for name, measured in taken if measured is not None
    ]
    if not known or len(known) < len(stages):
        return None
    return Cost(
        stages=tuple(name for name, _ in known),
        seconds=sum(measured.seconds for _, measured in known),
        peak_rss_bytes=max(measured.peak_rss_bytes for _, measured in known),
        peak_gpu_bytes=max(measured.peak_gpu_bytes for _, measured in known),
    )


def inferred_by(stage: StageFacts | None) -> Inferred | None:
    """Read what an infer stage found out about its model."""
    if stage is None or stage.measurements is None:
        return None
    figures = stage.measurements.figures
    return figures if isinstance(figures, Inferred) else None


def quantized_by(made: Sequence[StageFacts]) -> Quantized | None:
    """Read what a quantizer found out about the model it wrote."""
    for stage in made:
        if stage.measurements is not None and isinstance(stage.measurements.figures, Quantized):
            return stage.measurements.figures
    return None


def bits_per_weight(made: Sequence[StageFacts], inferred: Inferred | None) -> float | None:
    """Divide all bits of the weight files by all parameters."""
    quantized = quantized_by(made)
    if quantized is not None:
        return quantized.bits_per_weight
    if inferred is None or not inferred.parameters:
        return None
    return 8 * inferred.size_bytes / inferred.parameters


def size_share(facts: RunFacts, size_bytes: int | None) -> float | None:
    """Compare with the tuned 16-bit model, or with the base where nothing was tuned."""
    origin = facts.plan.run.quantized_from
    inferred = inferred_by(facts.find(f"infer-{origin}")) or inferred_by(facts.find("infer-base"))
    if size_bytes is None or inferred is None or not inferred.size_bytes:
        return None
    return size_bytes / inferred.size_bytes


def unfinished_words(stage: StageFacts) -> str:
    """Say why a stage is not committed, of a run that may not have ended."""
    name = stage.stage.name
    if stage.status == "skipped":
        return f"{name} could not begin: an input is not there"
    if stage.status != "failed":
        return f"{name} is not there yet"
    return f"{name} failed{'' if stage.exit_code is None else f' with {stage.exit_code}'}"
