"""Run a GPTQ checkpoint with GPTQModel's kernels, guarded."""

from pathlib import Path

import gptqmodel
import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.nn_modules.qlinear import BaseQuantLinear
from transformers import PreTrainedModel

from modelmill.models.families import expected_linears
from modelmill.models.gptq import check_files
from modelmill.models.guard import check_quantized
from modelmill.models.open import open_config


def open_packed(
    folder: Path, dtype: torch.dtype, backend: BACKEND = BACKEND.AUTO, device: str = "cuda:0"
) -> tuple[PreTrainedModel, str]:
    """Open with the fastest kernel for this device; returns the model and the kernel's name.

    Raises:
        DataError: a layer is not quantized, or a tensor is missing or left over.
    """
    config = open_config(folder)
    del config.quantization_config
    check_files(folder, config)
    model = GPTQModel.load(str(folder), backend=backend, dtype=dtype, device=device).model
    check_quantized(model, expected_linears(config), (BaseQuantLinear,), str(folder))
    kernels = {type(each).__name__ for each in model.modules() if isinstance(each, BaseQuantLinear)}
    return model, f"gptqmodel {gptqmodel.__version__} {', '.join(sorted(kernels))}"
