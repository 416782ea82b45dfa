"""What cannot work with a model, as far as its config and its headers tell.  Pure.

Only what a stage would refuse too, hours later.  What is not known passes.
"""

from collections.abc import Iterator
from dataclasses import replace

from modelmill.spec.closed import GroupSize
from modelmill.spec.errors import Problem, SpecError
from modelmill.spec.grouping import (
    group_problem,
    largest_group,
    packing_problem,
    rounding_problem,
)
from modelmill.spec.quantize import AutoroundSpec, BitnetSpec, PackedSpec, QatSpec
from modelmill.spec.run import RunSpec
from modelmill.spec.shape import TRANSPOSED, ModelShape
from modelmill.spec.ternary import ternary_problem
from modelmill.spec.vllm import layer_problem, model_problem


def refuse_impossible(run: RunSpec, shape: ModelShape, source: str) -> None:
    """Refuse a run that its base model rules out.

    Args:
        run: what is asked for.
        shape: of the base.
        source: what to call the run in the message.

    Raises:
        SpecError: with every problem and the way out of each.
    """
    problems = [
        *_base_problems(run, shape),
        *_group_problems(run, shape),
        *_output_problems(run, shape),
        *_ternary_problems(run, shape),
        *_vllm_problems(run, shape),
    ]
    if problems:
        raise SpecError(source, problems)


def _base_problems(run: RunSpec, shape: ModelShape) -> Iterator[Problem]:
    if not shape.quantized_with:
        return
    wanted = [
        word
        for word, is_asked in (
            ("fine-tuned and merged", run.finetune is not None),
            ("quantized again", bool(run.quantize)),
        )
        if is_asked
    ]
    yield Problem(
        "model.source",
        f"this model is quantized with {shape.quantized_with} already"
        + (f", so it cannot be {' or '.join(wanted)}" if wanted else ""),
        suggestion="name the 16-bit model it was made from; an adapter is trained on that one and "
        "merged into it, finetune.load_in holds it in fewer bits meanwhile",
    )


def _group_problems(run: RunSpec, shape: ModelShape) -> Iterator[Problem]:
    widths = shape.in_features()
    if shape.quantized_with:  # packed layers have other widths
        return
    for key, asked in _group_sizes(run):
        if asked == "auto":
            is_wrong = largest_group(widths) is None
        else:
            is_wrong = any(width % asked for width in widths.values())
        if is_wrong:
            yield group_problem(key, asked, widths)


def _group_sizes(run: RunSpec) -> Iterator[tuple[str, GroupSize]]:
    """List what is asked for, by its key; what `finetune.qat` decides, there only."""
    if run.finetune is not None and run.finetune.qat is not None:
        yield "finetune.qat.group_size", run.finetune.qat.group_size
    for number, spec in enumerate(run.quantize):
        if isinstance(spec, PackedSpec) and not isinstance(spec, QatSpec):
            yield f"quantize[{number}].group_size", spec.group_size


def _output_problems(run: RunSpec, shape: ModelShape) -> Iterator[Problem]:
    if shape.quantized_with:
        return
    widths = shape.out_features()
    for number, spec in enumerate(run.quantize):
        key = f"quantize[{number}]"
        problem = None
        if isinstance(spec, AutoroundSpec):
            problem = rounding_problem(f"{key}.method", widths)
        elif isinstance(spec, PackedSpec) and not isinstance(spec, QatSpec):
            problem = packing_problem(f"{key}.bits", spec.bits, widths)
        if problem is not None:
            yield problem


def _ternary_problems(run: RunSpec, shape: ModelShape) -> Iterator[Problem]:
    if shape.quantized_with:
        return
    widths = shape.out_features()
    is_transposed = shape.model_type in TRANSPOSED
    for number, spec in enumerate(run.quantize):
        if not isinstance(spec, BitnetSpec):
            continue
        problem = ternary_problem(f"quantize[{number}]", widths, is_transposed=is_transposed)
        if problem is not None:
            yield problem


def _vllm_problems(run: RunSpec, shape: ModelShape) -> Iterator[Problem]:
    if shape.quantized_with:
        return
    for number, spec in enumerate(run.quantize):
        if not isinstance(spec, PackedSpec) or "vllm" not in spec.compat:
            continue
        problem = model_problem(shape.model_type, is_packed=True) or layer_problem(
            shape.out_features().items(), spec.bits
        )
        if problem is not None:
            yield replace(problem, key=f"quantize[{number}].compat")
