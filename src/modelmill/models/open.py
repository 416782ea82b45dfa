"""Open a model or a tokenizer from a folder, guarded.

The only place that calls `from_pretrained` for models.  Never reads a hub, never runs
code from the folder, never reads pickles, never leaves a weight at its random value.
"""

from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from modelmill.models.families import close_known_holes, expected_linears
from modelmill.models.guard import check_loading, check_quantized
from modelmill.spec.errors import DataError
from modelmill.spec.quantize import HoldIn

LoadIn = HoldIn | None
"""None for plain weights."""


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Open the tokenizer in a folder.

    Raises:
        DataError: the folder holds no tokenizer that can be read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"the tokenizer cannot be read: {error}", at=str(folder)) from error


def open_config(folder: Path) -> PreTrainedConfig:
    """Open the config in a folder.

    Raises:
        DataError: there is none, or it is of an architecture transformers does not know or that
            does not go on with a text.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        # The rest is about upgrading transformers, which an image cannot.
        reason = str(error).partition(". This could be")[0].partition("\n")[0]
        raise DataError(
            f"the model's config cannot be read: {reason}",
            at=str(folder),
            fix="use a model of an architecture that this version's transformers has, or a later "
            "modelmill",
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise DataError(
            f"a {config.model_type} model does not write text on from a prompt: it is no causal "
            "language model",
            at=str(folder),
            fix="name a decoder-only model as model.source",
        )
    return config


def open_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    load_in: LoadIn = None,
    attn: str | None = None,
) -> PreTrainedModel:
    """Open a causal language model, in evaluation mode, on one device.

    Opens plain checkpoints, those saved by bitsandbytes, and BitNet's as transformers has it; GPTQ
    ones belong to their engine.

    Args:
        folder: safetensors and config.
        dtype: of weights and compute; of compute only where the weights are in 4 bits.
        device: where all of it goes.
        load_in: quantize plain weights while reading them.
        attn: transformers' name of an attention implementation; its own choice for None.

    Raises:
        DataError: files and config do not fit together, or not all layers are quantized.
    """
    disable_progress_bar()  # progress is the pulse's; a bar in a log file is a page of noise
    config = open_config(folder)
    close_known_holes(config)
    saved_by = _saved_method(config)
    if saved_by not in (None, "bitsandbytes", "bitnet"):
        raise DataError(f"a {saved_by} checkpoint is opened by its own engine", at=str(folder))
    held_in = bitsandbytes_type(config) if saved_by == "bitsandbytes" else load_in
    if saved_by == "bitnet":
        from modelmill.models.bitnet import check_readable  # two seconds, of torch's compiler

        check_readable(config, str(folder))
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        quantization_config=None if load_in is None else _bitsandbytes(dtype, load_in),
        # Never "auto": it spreads layers over devices and disk, where PEFT merges wrong.
        device_map={"": (device.index or 0) if device.type == "cuda" else "cpu"},
        attn_implementation=attn,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # the guard names them; transformers would stop at a trace
        output_loading_info=True,
    )
    check_loading(info, model, str(folder))
    if saved_by == "bitnet":
        from transformers.integrations.bitnet import BitLinear

        check_quantized(model, expected_linears(config), (BitLinear,), str(folder))
    if held_in is not None:
        from bitsandbytes.nn import Linear4bit, Linear8bitLt

        kind = Linear8bitLt if held_in == "int8" else Linear4bit
        check_quantized(model, expected_linears(config), (kind,), str(folder))
    if load_in is not None:
        _keep_unpacked(model)
    return model


def bitsandbytes_type(config: PreTrainedConfig) -> str:
    """Say which type the weights of a checkpoint saved by bitsandbytes have: nf4, fp4 or int8."""
    stored = config.quantization_config
    return "int8" if stored["load_in_8bit"] else str(stored["bnb_4bit_quant_type"])


def _keep_unpacked(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first forward in evaluation mode.

    On CPUs with AVX512-BF16 it repacks them in place for a faster kernel that has no
    backward: after the first evaluation, training goes on without the gradients that
    pass through these layers and says nothing.  Packed weights cannot be saved right
    either (absmax stays transposed).  A saved checkpoint is only read from and may be packed.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _bitsandbytes(dtype: torch.dtype, load_in: HoldIn) -> BitsAndBytesConfig:
    if load_in == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=load_in.removesuffix("-single"),
        bnb_4bit_use_double_quant=not load_in.endswith("-single"),
        bnb_4bit_compute_dtype=dtype,
    )


def _saved_method(config: PreTrainedConfig) -> str | None:
    if not hasattr(config, "quantization_config"):
        return None
    return str(config.quantization_config["quant_method"])
