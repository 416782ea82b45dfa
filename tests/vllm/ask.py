"""Ask vLLM's own code what it reads, as on a GPU, where there is none.

    python ask.py SOURCE

and a question on each line: `{"read": [{"config": ..., "layers": ...}]}` or `{"families": [...]}`.

What runs is the source that `source.py` unpacked: the class that reads `quantize_config.json`,
the method that makes room for a layer's tensors, Marlin's conditions, and the registry of
models.  All else of vLLM is a stand-in that does nothing: it is imported there and not asked.
The platform says that it is CUDA 8.0; kernels are never called.
"""

import ast
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers

CAPABILITY = 80


class StandIn:
    """Takes whatever is asked, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take anything."""

    def __getattr__(self, name: str) -> "StandIn":
        return StandIn()

    def __call__(self, *_: Any, **__: Any) -> "StandIn":
        """Be called as a function, or as a decorator."""
        return self


class StandInModule(ModuleType):
    """Has every name, each a class of its own."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (StandIn,), {})
        setattr(self, name, made)
        return made


@dataclass(frozen=True)
class Finder(MetaPathFinder, Loader):
    """Finds vLLM's modules in the source, and a stand-in where a file is not there."""

    source: Path

    def find_spec(
        self, name: str, _: Sequence[str] | None = None, __: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of vLLM; others are not ours."""
        if name.partition(".")[0] != "vllm":
            return None
        path = self.source / f"{name.replace('.', '/')}.py"
        if path.exists():
            return spec_from_file_location(name, path)
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make a stand-in."""
        return StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is."""


class Cuda:
    """A GPU of the A100's generation."""

    def is_cuda(self) -> bool:
        """Say that it is one."""
        return True

    def is_cpu(self) -> bool:
        """Say that it is none of these."""
        return False

    is_xpu = is_rocm = is_cpu

    def get_device_capability(self) -> "Cuda":
        """Say which generation it is."""
        return self

    def to_int(self) -> int:
        """Write it as a number."""
        return CAPABILITY


@dataclass
class Layer:
    """Keeps the shapes of the tensors that a layer makes room for."""

    shapes: dict[str, list[int]] = field(default_factory=dict)

    def register_parameter(self, name: str, shape: list[int]) -> None:
        """Keep one."""
        self.shapes[name] = shape


def shape_of(*, data: torch.Tensor, **_: Any) -> list[int]:
    """Stand in for vLLM's kinds of parameters."""
    return list(data.shape)


class Reader:
    """Reads checkpoints as vLLM's code for GPTQ does."""

    def __init__(self) -> None:
        """Load that code, with what surrounds it."""
        import_module("vllm.platforms").current_platform = Cuda()  # type: ignore[attr-defined]
        layers = "vllm.model_executor.layers.quantization"
        self._gptq: Any = import_module(f"{layers}.auto_gptq")
        kernels = "vllm.model_executor.kernels.linear.mixed_precision"
        linear: Any = import_module(f"{kernels}.MPLinearKernel")
        self._marlin: Any = import_module(f"{kernels}.marlin").MarlinLinearKernel
        self._gptq.MPLinearLayerConfig = linear.MPLinearLayerConfig
        self._gptq.choose_mp_linear_kernel = self._chosen
        self._gptq.marlin_repeat_scales_on_all_ranks = lambda *_: False
        self._gptq.GroupQuantScaleParameter = shape_of
        self._gptq.PackedvLLMParameter = shape_of

    def read(self, config: dict[str, Any], layers: dict[str, list[int]]) -> dict[str, Any]:
        """Tell which tensors it makes room for, or why it reads nothing."""
        known = self._gptq.AutoGPTQConfig
        if known.override_quantization_method(config, None) is None:
            return {"refused": "another method"}
        try:
            method = self._gptq.AutoGPTQLinearMethod(known.from_config(config))
            tensors = {name: self._room(method, *size) for name, size in layers.items()}
        except ValueError as error:
            return {"refused": str(error)}
        return {"refused": "", "tensors": tensors}

    def _room(self, method: Any, in_features: int, out_features: int) -> dict[str, list[int]]:
        layer = Layer()
        method.create_weights(
            layer, in_features, [out_features], in_features, out_features, torch.float16
        )
        return layer.shapes

    def _chosen(self, config: Any) -> Any:
        fits, why = self._marlin.can_implement(config)
        if not fits:
            raise ValueError(why)
        return self._marlin


def families(registry: Path, architectures: Sequence[str]) -> dict[str, str]:
    """Tell whether vLLM has a model of its own, runs transformers' code, or neither."""
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(registry.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("_TEXT_GENERATION_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
    }
    own, borrowed = tables["_TEXT_GENERATION_MODELS"], tables["_TRANSFORMERS_SUPPORTED_MODELS"]
    return {
        name: "own"
        if name in own
        else "borrowed"
        if name in borrowed or _can_be_run(name)
        else "neither"
        for name in architectures
    }


def _can_be_run(architecture: str) -> bool:
    """Hold the code in transformers against the condition that the registry has for it."""
    model: Any = getattr(transformers, architecture)
    return bool(model.is_backend_compatible() or model._can_set_attn_implementation())


def main() -> None:
    """Answer each line with a line."""
    source = Path(sys.argv[1])
    sys.meta_path.insert(0, Finder(source))
    reader = Reader()
    for line in sys.stdin:
        asked = json.loads(line)
        answer: Any = (
            [reader.read(each["config"], each["layers"]) for each in asked["read"]]
            if "read" in asked
            else families(source / "vllm/model_executor/models/registry.py", asked["families"])
        )
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
