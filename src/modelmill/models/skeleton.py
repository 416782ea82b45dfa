"""A model without its weights: every module, name and shape, and where each tensor is stored.

Built on the `meta` device, so it costs no memory whatever the model's size.  What is computed
from the config and not stored, such as rotary frequencies, is real.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

from modelmill.models.families import close_known_holes
from modelmill.models.guard import check_loading
from modelmill.models.open import open_config
from modelmill.models.shards import DTYPE_OF
from modelmill.store.tensors import TensorInfo


class NotStreamable(Exception):
    """Something needs the whole model in memory; the message names it."""


def open_skeleton(folder: Path, vocabulary: int | None = None) -> PreTrainedModel:
    """Build the model of a folder on `meta`, in float32 and evaluation mode.

    Args:
        folder: its config.
        vocabulary: embedded tokens, where they are not as many as the config says.

    Raises:
        NotStreamable: the model is quantized.
        DataError: its config cannot be used.
    """
    config = open_config(folder)
    close_known_holes(config)
    if hasattr(config, "quantization_config"):
        raise NotStreamable("the base is quantized")
    if vocabulary is not None:
        config.get_text_config().vocab_size = vocabulary
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if model.can_generate():
        model.generation_config = _generation_config(folder)
    _compute_buffers(model)
    return model.eval()


def stored_names(
    model: PreTrainedModel, stored: Mapping[str, TensorInfo], at: str
) -> dict[str, str]:
    """Map the model's tensors to the names they are stored under.

    A shared tensor is stored once: the others are in the map under its name.

    Raises:
        NotStreamable: tensors are not stored one by one as the model has them.
        DataError: some are missing, left over or of another shape.
    """
    conversions = get_model_conversion_mapping(model)
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    renamings = [each for each in conversions if not isinstance(each, WeightConverter)]
    own = model.state_dict()
    found: dict[str, str] = {}
    for name, info in stored.items():
        known, converted = rename_source_key(
            name, renamings, converters, model.base_model_prefix, own
        )
        if converted is not None or any(each.was_used() for each in conversions):
            raise NotStreamable(f"{name} is stored in another form than the model has")
        if info.dtype not in DTYPE_OF:
            raise NotStreamable(f"{name} is stored as {info.dtype}")
        found[known] = name
    for name, other in shared_names(model).items():
        # Either of two names may be the one that is stored.
        if name in found:
            found.setdefault(other, found[name])
        elif other in found:
            found[name] = found[other]
    loading = {
        "missing_keys": own.keys() - found.keys(),
        "unexpected_keys": found.keys() - own.keys(),
        "mismatched_keys": {
            name
            for name in own.keys() & found.keys()
            if tuple(own[name].shape) != stored[found[name]].shape
        },
    }
    check_loading(loading, model, at)
    return {name: found[name] for name in own}


def shared_names(model: PreTrainedModel) -> dict[str, str]:
    """Map each name of a shared tensor that files leave out to the one they keep."""
    return dict(model.all_tied_weights_keys) if model.config.tie_word_embeddings else {}


def written_names(model: PreTrainedModel) -> tuple[str, ...]:
    """List the tensors that files hold, in the order in which they are divided into files."""
    left_out = shared_names(model)
    return tuple(
        sorted((name for name in model.state_dict() if name not in left_out), key=dot_natural_key)
    )


def save_configs(model: PreTrainedModel, dtype: torch.dtype, folder: Path) -> None:
    """Write config and generation config as `save_pretrained` does with weights of a dtype."""
    model.config.dtype = str(dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _compute_buffers(model: PreTrainedModel) -> None:
    """Give every buffer that no file holds its value, the way loading does."""
    owners = set()
    for name, buffer in model.named_non_persistent_buffers():
        owner, _, attribute = name.rpartition(".")
        model.get_submodule(owner)._buffers[attribute] = torch.empty_like(buffer, device="cpu")  # noqa: SLF001
        owners.add(owner)
    for owner in owners:
        model._init_weights(model.get_submodule(owner))  # noqa: SLF001 - as from_pretrained does


def _generation_config(folder: Path) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
        )
