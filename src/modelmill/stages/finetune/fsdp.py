"""Weights that a team has divided: each rank holds a part of every one (torch's FSDP2).

A layer is put together while it is computed, and only then (docs/adr/0031).  Knows torch's
distributed tensors; must not know the trainer, nor what is kept or written.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from peft import PeftModel
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from modelmill.models.families import decoder_blocks
from modelmill.spec.errors import DoesNotFit
from modelmill.stages.finetune.team import Team

_PLAIN: Final = MixedPrecisionPolicy()


def divide(
    model: PreTrainedModel | PeftModel, team: Team, device: torch.device, dtype: torch.dtype
) -> None:
    """Give every rank its part of what the first one has in host memory.

    Args:
        model: of the first all of it; of the others its modules, on `meta`.
        team: all of whom have called this.
        device: of this rank.
        dtype: what is computed in.

    Raises:
        DoesNotFit: weights of this kind, or gradients in this precision, cannot be divided.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    _refuse(base, dtype)
    mesh = init_device_mesh(device.type, (team.size,))
    for module, policy in _groups(model, base, dtype):
        _hand_out(module, team, device)
        # Between two passes everything is divided, what belongs to no layer too.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    _hand_out_buffers(model, team, device)
    if device.type == "cpu":  # gloo cannot average
        for each in _divided_modules(model):
            each.set_force_sum_reduction_for_comms(enable=True)
    # The trainer then leaves places and gradients to the model, as if the library had divided it.
    base._is_distributed_loading_by_transformers = True  # noqa: SLF001


def _groups(
    model: nn.Module, base: PreTrainedModel, dtype: torch.dtype
) -> Iterator[tuple[nn.Module, MixedPrecisionPolicy]]:
    """Go through what is put together at a time, from the inside out.

    Autocast would keep a copy of every weight that it has cast, whole, until the backward pass;
    so a layer of float32 is put together in 16 bits, except for its norms, as under autocast.
    """
    for layer in decoder_blocks(base):
        policy = _PLAIN
        if model is base and dtype != torch.float32:
            policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
            for module in layer.modules():
                own_ones = list(module.parameters(recurse=False))
                if own_ones and all(each.ndim == 1 for each in own_ones):
                    yield module, _PLAIN
        yield layer, policy
    yield model, _PLAIN


def put_together(model: nn.Module, team: Team) -> None:
    """Let the first have what was trained as a whole, in host memory, and plain modules again."""
    for weight, places in _places(model).items():
        if not (isinstance(weight, DTensor) and weight.requires_grad):
            continue
        there = whole(weight)
        if team.is_first:
            _put(there.cpu(), weight, places)
    for module in _divided_modules(model):
        module.__class__ = type(module).__mro__[2]  # as torch's own FSDPModule.__new__ finds it


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Put a tensor together if it is divided; then every rank has to ask."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def own(tensor: torch.Tensor) -> torch.Tensor:
    """Take what this rank holds of a tensor."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def whole_ones(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Put one tensor after the other together, and on the host if it was divided."""
    for name, each in tensors.items():
        there = whole(each)
        yield name, there.cpu() if isinstance(each, DTensor) else there


def like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Divide values that every rank has as a tensor is divided; as they are where it is not."""
    if not isinstance(tensor, DTensor) or tensor.shape != values.shape:
        return values
    there = values.to(tensor.device)
    return distribute_tensor(there, tensor.device_mesh, tensor.placements, src_data_rank=None)


def fill(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Give a tensor values that every rank has."""
    own(tensor).copy_(own(like(tensor, values)))


def fill_from_first(tensor: torch.Tensor, values: torch.Tensor | None) -> None:
    """Give a tensor values; of a divided one only the first has to have them."""
    if not isinstance(tensor, DTensor):
        assert values is not None
        tensor.detach().copy_(values)
        return
    there = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    if values is not None:
        there.copy_(values)
    own(tensor).copy_(distribute_tensor(there, tensor.device_mesh, tensor.placements).to_local())


def _refuse(base: PreTrainedModel, dtype: torch.dtype) -> None:
    why, fix = "", "set stages.finetune.fsdp: never where the model fits one device"
    if getattr(base.config, "quantization_config", None) is not None:
        why = "weights that are quantized are not divided"
    elif dtype == torch.float16:
        why = "the scale of a loss in float16 is not told to all who hold a part of the gradients"
        fix += ", or finetune.precision: float32"
    if why:
        raise DoesNotFit(
            f"the model cannot be divided among several devices: {why}",
            fix=f"{fix}; or ask for less (modelmill plan says what would fit), or take a larger "
            "device",
        )


_Place = tuple[nn.Module, str]


def _places(module: nn.Module) -> dict[nn.Parameter, list[_Place]]:
    """Find all places of each weight: one that is tied has several."""
    places: dict[nn.Parameter, list[_Place]] = {}
    for owner in module.modules():
        for name, weight in owner._parameters.items():  # noqa: SLF001 - also those that are tied
            if weight is not None:
                places.setdefault(weight, []).append((owner, name))
    return places


def _put(tensor: torch.Tensor, weight: nn.Parameter, places: list[_Place]) -> None:
    new = nn.Parameter(tensor, requires_grad=weight.requires_grad)
    for owner, name in places:
        owner._parameters[name] = new  # noqa: SLF001


def _hand_out(module: nn.Module, team: Team, device: torch.device) -> None:
    """Give every rank the whole of a module's weights, but those that are divided already."""
    weights = {
        weight: places
        for weight, places in _places(module).items()
        if not isinstance(weight, DTensor)
    }
    for (weight, places), tensor in zip(
        weights.items(), _from_first(list(weights), team, device), strict=True
    ):
        _put(tensor, weight, places)


def _hand_out_buffers(model: nn.Module, team: Team, device: torch.device) -> None:
    """Give every rank the buffers, which nobody divides."""
    buffers = [
        (owner, name, buffer)
        for owner in model.modules()
        for name, buffer in owner._buffers.items()  # noqa: SLF001
        if buffer is not None
    ]
    given = _from_first([buffer for _, _, buffer in buffers], team, device)
    for (owner, name, _), tensor in zip(buffers, given, strict=True):
        owner._buffers[name] = tensor  # noqa: SLF001


def _from_first(
    tensors: Sequence[torch.Tensor], team: Team, device: torch.device
) -> Iterator[torch.Tensor]:
    """Send what the first has of tensors; the others know neither values nor types."""
    forms = team.agree([(each.shape, each.dtype) for each in tensors])
    for tensor, (shape, dtype) in zip(tensors, forms, strict=True):
        if team.is_first:
            there = tensor.detach().to(device).contiguous()
        else:
            there = torch.empty(shape, dtype=dtype, device=device)
        distributed.broadcast(there, src=0)
        yield there


def _divided_modules(model: nn.Module) -> list[FSDPModule]:
    return [each for each in model.modules() if isinstance(each, FSDPModule)]
