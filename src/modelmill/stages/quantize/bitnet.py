"""BitNet b1.58 after training: every weight becomes -1, 0 or 1 times its matrix' mean.

A demonstration: BitNet is a way to train.  Looks at no data, opens no engine, and holds one
tensor at a time; on every machine it writes the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from modelmill.models.bitnet import (
    absmean,
    check_files,
    pack,
    quantization_config,
    scale_name,
    ternary,
)
from modelmill.models.families import linear_in_features
from modelmill.models.layout import Form, lay_out, write_index, write_shards
from modelmill.models.memory import return_freed_memory
from modelmill.models.shards import TensorSource, open_tensors
from modelmill.models.skeleton import (
    NotStreamable,
    open_skeleton,
    save_configs,
    stored_names,
    written_names,
)
from modelmill.spec.errors import Problem, SpecError
from modelmill.spec.ternary import ROWS_PER_BYTE, ternary_problem
from modelmill.stages.quantize.written import Written
from modelmill.stages.stage import Folders, Pulse

DTYPE: Final = torch.bfloat16
"""Of all that is not ternary: readers compute in it, and in float16 a sum of many 8-bit numbers
can be more than it holds."""

WARNING: Final = (
    "bitnet is a demonstration: three values per weight ruin a model that was not trained with "
    "them; how far is measured below"
)


def quantize(folders: Folders, pulse: Pulse) -> Written:
    """Store the model's linear layers as three values, everything else in 16 bits.

    Raises:
        SpecError: a layer cannot be stored so, or is not one tensor.
        DataError: files and config do not fit together, or a layer was left out.
    """
    return_freed_memory()
    source = folders.inputs["model"]
    with open_tensors(source) as stored:
        with pulse.part("load"):
            rounding = _open(source, stored)
            model = rounding.model
            pulse.warn(WARNING)
        with pulse.part("work"):
            shards = lay_out(rounding.forms())
            total_bytes = sum(form.size_bytes for shard in shards for form in shard.forms)
            done_bytes = 0
            for form in write_shards(shards, folders.output, rounding.make, folders.growing):
                done_bytes += form.size_bytes
                pulse.progress(done_bytes, total_bytes, "bytes")
    with pulse.part("save"):
        write_index(shards, folders.output, sum(each.numel() for each in model.parameters()))
        modules = check_files(folders.output, model)
        model.config.quantization_config = quantization_config(model)
        save_configs(model, DTYPE, folders.output)
    return Written(modules)


def _open(source: Path, stored: TensorSource) -> "Rounding":
    try:
        model = open_skeleton(source)
        names = stored_names(model, stored.tensors, str(source))
    except NotStreamable as error:
        raise SpecError("quantize", [Problem("method", f"bitnet cannot: {error}")]) from error
    layers = {name: model.get_submodule(name) for name in linear_in_features(model)}
    is_transposed = any(isinstance(each, Conv1D) for each in layers.values())
    outputs = {name: each.weight.shape[0] for name, each in layers.items()}
    problem = ternary_problem("method", outputs, is_transposed=is_transposed)
    if problem is not None:
        raise SpecError("quantize", [problem])
    return Rounding(model, stored, names, frozenset(f"{name}.weight" for name in layers))


@dataclass(frozen=True)
class Rounding:
    """A model whose tensors are made one at a time, in any order."""

    model: PreTrainedModel
    """Empty."""
    stored: TensorSource
    names: Mapping[str, str]
    """Of the model's tensors, as they are stored."""
    rounded: frozenset[str]
    """The weights that become ternary."""

    @property
    def scales(self) -> Mapping[str, str]:
        """Map the name of each scale to its weight's."""
        return {scale_name(weight): weight for weight in self.rounded}

    def forms(self) -> list[Form]:
        """List what files will hold, in the order of dividing it into files."""
        own = self.model.state_dict()
        forms = []
        for name in written_names(self.model):
            shape = tuple(own[name].shape)
            if name in self.rounded:
                outputs, inputs = shape
                forms.append(Form(name, torch.uint8, (outputs // ROWS_PER_BYTE, inputs)))
                forms.append(Form(scale_name(name), torch.float32, (1,)))
            else:
                dtype = DTYPE if own[name].is_floating_point() else own[name].dtype
                forms.append(Form(name, dtype, shape))
        return forms

    def make(self, form: Form) -> torch.Tensor:
        """Make one tensor; a layer is read once for its scale, which lies elsewhere, and again."""
        if form.name in self.rounded:
            return pack(ternary(self._read(form.name)))
        if form.name in self.scales:
            return torch.tensor([1 / absmean(self._read(self.scales[form.name]))])
        return self._read(form.name).to(form.dtype)

    def _read(self, name: str) -> torch.Tensor:
        return self.stored.read(self.names[name])
