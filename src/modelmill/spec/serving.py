"""Which engine serves a model fastest, and why.  Pure.

It is the one that the speed is measured with where it is installed; scores of all models of a
run come from one engine and one dtype.
"""

from collections.abc import Iterator, Mapping
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

PLAIN: Final = "none"
LORA: Final = "lora"

_NO_GPU: Final = "no GPU, and vLLM's packages are for CUDA"


class Packing(Spec):
    """How weights in GPTQ's format are held."""

    bits: int
    sym: bool
    reorders: bool


class Artifact(Spec):
    """What decides which engines can read a model."""

    method: str = PLAIN
    """What its weights were quantized with; `none`, or `lora` for an adapter on its base."""
    packing: Packing | None = None
    """None for any other format than GPTQ's."""
    model_type: str = ""
    """As its config calls it; empty where nothing is known of it."""
    outputs: tuple[tuple[str, int], ...] = ()
    """Layers and the features that they give, as far as known."""


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


def engine_for(artifact: Artifact, *, is_gpu: bool) -> tuple[Engine, str]:
    """Choose the engine that serves an artifact fastest; returns it with the reason."""
    if artifact.method == LORA:
        return "transformers", "an adapter beside its base; merged it is faster"
    if artifact.packing is not None:
        return _packed(artifact, artifact.packing, is_gpu=is_gpu)
    if not is_gpu:
        return "transformers", _NO_GPU
    if artifact.method != PLAIN:
        return "transformers", f"vLLM reads no {artifact.method}"
    problem = model_problem(artifact.model_type, is_packed=False)
    if problem is not None:
        return "transformers", problem.reason
    return "vLLM", f"16-bit on CUDA{_doubt(artifact)}"


def _packed(artifact: Artifact, packing: Packing, *, is_gpu: bool) -> tuple[Engine, str]:
    if not is_gpu:
        return "transformers", f"{_NO_GPU}; unpacked once"
    bits = packing.bits
    problem = (
        next(packing_problems(bits, sym=packing.sym, reorders=packing.reorders), None)
        or model_problem(artifact.model_type, is_packed=True)
        or layer_problem(artifact.outputs, bits)
    )
    if problem is not None:
        return "GPTQModel", problem.reason
    return "vLLM", f"{bits}-bit symmetric GPTQ on CUDA{_doubt(artifact)}"


def _servings(run: RunSpec, facts: Facts, shape: ModelShape | None) -> Iterator[Serving]:
    specs = {variant_of(spec): spec for spec in run.quantize}
    base = Artifact()
    if shape is not None:
        base = Artifact(model_type=shape.model_type, outputs=tuple(shape.out_features().items()))
    for model in run.models():
        artifact = base
        if model in specs:
            artifact = base.model_copy(update=_written(specs[model]))
        elif model == "adapter":
            artifact = base.model_copy(update={"method": LORA})
        engine, why = engine_for(artifact, is_gpu=facts.accelerator == "cuda")
        yield Serving(model=model, engine=engine, why=why)


def _written(spec: QuantizeSpec) -> Mapping[str, object]:
    if not isinstance(spec, PackedSpec):
        return {"method": spec.method}
    packing = Packing(bits=spec.bits, sym=spec.sym, reorders=spec.reorders)
    return {"method": spec.method, "packing": packing}


def _doubt(artifact: Artifact) -> str:
    """Say that nothing is known of a family, where that is so."""
    if artifact.model_type in FAMILIES | BORROWED | {""}:
        return ""
    return f", if vLLM has a model for {artifact.model_type}"
