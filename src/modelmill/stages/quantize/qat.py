"""Pack a model that was rounded while it learned: every weight as the code it has already.

Looks at no data and rounds nothing.  Needs no engine, and the memory of a few tensors.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

import torch
from pydantic import JsonValue
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from modelmill.models.families import linear_in_features
from modelmill.models.gptq import PACKED, check_files, store_tied_heads
from modelmill.models.grid import Grid, OffGrid
from modelmill.models.layout import Form, lay_out, write_index, write_shards
from modelmill.models.open import open_config
from modelmill.models.shards import DTYPE_OF, Tensors, open_tensors
from modelmill.models.skeleton import NotStreamable, open_skeleton, stored_names, written_names
from modelmill.spec.errors import DataError
from modelmill.spec.grouping import choose_group_size
from modelmill.spec.quantize import QatSpec
from modelmill.stages.quantize.configs import say_how
from modelmill.stages.quantize.written import Written
from modelmill.stages.stage import Folders, Pulse

WORD_BITS: Final = 32
"""Codes lie side by side in integers of so many, the lowest bits first."""


def quantize(spec: QatSpec, folders: Folders, pulse: Pulse) -> Written:
    """Write what `finetune.qat` has trained in GPTQ's format v1.

    Raises:
        SpecError: the group size does not fit this model.
        DataError: a weight is not on the grid, or the files do not hold one tensor per layer.
    """
    source, output = folders.inputs["model"], folders.output
    with pulse.part("load"):
        model = open_skeleton(source)
        group_size = choose_group_size(spec.group_size, linear_in_features(model))
    with pulse.part("work"), open_tensors(source) as stored:
        packing = _Packing(Grid(spec.bits, group_size), model, stored, str(source))
        forms = tuple(packing.forms())
        shards = lay_out(forms)
        writing = write_shards(shards, output, packing.make, folders.growing)
        for done, _ in enumerate(writing, 1):
            pulse.progress(done, len(forms), "tensors")
        write_index(shards, output, sum(form.elements for form in forms))
    with pulse.part("save"):
        config = open_config(source)
        meta: dict[str, JsonValue] = {"quantizer": [f"modelmill:{version('modelmill')}"]}
        say_how(spec, group_size, config, output, meta)
        if "auto-gptq" in spec.compat:
            store_tied_heads(output, config)
        modules = check_files(output, config)
    return Written(modules, group_size)


@dataclass
class _Packing:
    """Knows every tensor of the packed model, and makes one at a time."""

    grid: Grid
    model: PreTrainedModel
    """Without its weights."""
    stored: Tensors
    at: str
    _last: tuple[str, Mapping[str, torch.Tensor]] = field(default=("", {}), init=False)
    """The layer that was packed last: its tensors are asked for one after the other."""

    def __post_init__(self) -> None:
        """Find out where each tensor is.

        Raises:
            DataError: not every one is stored by itself.
        """
        self.layers = linear_in_features(self.model)
        try:
            self.names = stored_names(self.model, self.stored.tensors, self.at)
        except NotStreamable as error:
            raise DataError(
                f"the trained model cannot be packed: {error}",
                at=self.at,
                fix="quantize it by another method",
            ) from error

    def forms(self) -> Iterator[Form]:
        """List every tensor of the packed model."""
        shapes = {name: tuple(each.shape) for name, each in self.model.state_dict().items()}
        for name in written_names(self.model):
            layer, _, part = name.rpartition(".")
            if part == "weight" and layer in self.layers:
                yield from self._packed_forms(layer, shapes[name])
            else:
                yield Form(name, self._dtype_of(name), shapes[name])

    def make(self, form: Form) -> torch.Tensor:
        """Make one of them.

        Raises:
            DataError: a weight is not on the grid.
        """
        layer, _, part = form.name.rpartition(".")
        if part not in PACKED:
            return self.stored.read(self.names[form.name]).to(form.dtype)
        if self._last[0] != layer:
            self._last = layer, self._packed(layer)
        return self._last[1][part]

    def _packed_forms(self, layer: str, shape: tuple[int, ...]) -> Iterator[Form]:
        inputs, outputs = shape if self._is_transposed(layer) else reversed(shape)
        groups, bits = inputs // self.grid.group_size, self.grid.bits
        parts = {
            "qweight": (torch.int32, (inputs * bits // WORD_BITS, outputs)),
            "qzeros": (torch.int32, (groups, outputs * bits // WORD_BITS)),
            "scales": (torch.float16, (groups, outputs)),
            "g_idx": (torch.int32, (inputs,)),
        }
        for part, (dtype, size) in parts.items():
            yield Form(f"{layer}.{part}", dtype, size)

    def _packed(self, layer: str) -> Mapping[str, torch.Tensor]:
        weight = self.stored.read(self.names[f"{layer}.weight"]).float()
        try:
            found = self.grid.codes(weight.T if self._is_transposed(layer) else weight)
        except OffGrid as error:
            raise DataError(
                f"{error} of weights in {layer} are not on the grid of {self.grid.bits} bits",
                at=self.at,
                fix="pack the model as finetune has written it, in float32",
            ) from error
        zeros = torch.full_like(found.scales, self.grid.half, dtype=torch.int32)
        return {
            "qweight": pack(found.codes.T + self.grid.half, self.grid.bits),
            # The format stores each zero point less one.
            "qzeros": pack(zeros - 1, self.grid.bits).T.contiguous(),
            "scales": found.scales.T.contiguous(),
            "g_idx": torch.arange(self.layers[layer], dtype=torch.int32) // self.grid.group_size,
        }

    def _is_transposed(self, layer: str) -> bool:
        return isinstance(self.model.get_submodule(layer), Conv1D)

    def _dtype_of(self, name: str) -> torch.dtype:
        dtype = DTYPE_OF[self.stored.tensors[self.names[name]].dtype]
        return torch.float16 if dtype.is_floating_point else dtype


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Put codes side by side into int32 words along the first axis, the lowest bits first.

    Args:
        codes: int32, not negative; as many as fill whole words.
        bits: of each, 4 or 8.
    """
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32)
    words = codes.unflatten(0, (-1, len(shifts))) << shifts[:, None]
    return words.sum(1, dtype=torch.int32)
