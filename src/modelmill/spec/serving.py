"""Which engine would serve each model of a run fastest, and why.  Pure.

Not which one measures it: all models of a run are measured with one engine and one dtype.
"""

from collections.abc import Iterator
from typing import Final, Literal

from modelmill.spec.closed import Spec
from modelmill.spec.profile import Facts
from modelmill.spec.quantize import PackedSpec, QuantizeSpec, variant_of
from modelmill.spec.run import RunSpec
from modelmill.spec.shape import ModelShape
from modelmill.spec.vllm import (
    BORROWED,
    FAMILIES,
    layer_problem,
    model_problem,
    packing_problems,
)

Engine = Literal["vLLM", "GPTQModel", "transformers"]

_NO_GPU: Final = "no GPU, and vLLM's packages are for CUDA"


class Serving(Spec):
    """The engine that serves a model fastest."""

    model: str
    engine: Engine
    why: str


def serving_of(run: RunSpec, facts: Facts, shape: ModelShape | None) -> tuple[Serving, ...]:
    """Choose an engine for every model of a run.

    Args:
        run: what is asked for.
        facts: says on what it would be served.
        shape: of the base; None where nothing is known of it.
    """
    return tuple(_servings(run, facts, shape))


def _servings(run: RunSpec, facts: Facts, shape: ModelShape | None) -> Iterator[Serving]:
    is_gpu = facts.accelerator == "cuda"
    specs = {variant_of(spec): spec for spec in run.quantize}
    for model in run.models():
        if model in specs:
            engine, why = _quantized(specs[model], shape, is_gpu=is_gpu)
        elif model == "adapter":
            engine, why = "transformers", "an adapter beside its base; merged it is faster"
        else:
            engine, why = _plain(shape, is_gpu=is_gpu)
        yield Serving(model=model, engine=engine, why=why)


def _plain(shape: ModelShape | None, *, is_gpu: bool) -> tuple[Engine, str]:
    if not is_gpu:
        return "transformers", _NO_GPU
    problem = None if shape is None else model_problem(shape.model_type, is_packed=False)
    if problem is not None:
        return "transformers", problem.reason
    return "vLLM", f"16-bit on CUDA{_doubt(shape)}"


def _quantized(spec: QuantizeSpec, shape: ModelShape | None, *, is_gpu: bool) -> tuple[Engine, str]:
    if not isinstance(spec, PackedSpec):
        return "transformers", f"vLLM reads no {spec.method}" if is_gpu else _NO_GPU
    if not is_gpu:
        return "transformers", f"{_NO_GPU}; unpacked once"
    problem = next(packing_problems(spec.bits, sym=spec.sym, reorders=spec.reorders), None)
    if problem is None and shape is not None:
        problem = model_problem(shape.model_type, is_packed=True) or layer_problem(shape, spec.bits)
    if problem is not None:
        return "GPTQModel", problem.reason
    return "vLLM", f"{spec.bits}-bit symmetric GPTQ on CUDA{_doubt(shape)}"


def _doubt(shape: ModelShape | None) -> str:
    """Say that nothing is known of a family, where that is so."""
    if shape is None or shape.model_type in FAMILIES | BORROWED:
        return ""
    return f", if vLLM has a model for {shape.model_type}"
