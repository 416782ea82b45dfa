"""NF4, FP4 and int8 with bitsandbytes, through transformers.

Looks at no data.  Must not run the model: on CPUs with AVX512-BF16 the first forward
repacks the weights in place, and a model saved after it reads back 23 % off.
"""

from typing import Final

import torch

from modelmill.models.families import expected_linears
from modelmill.models.memory import map_alone
from modelmill.models.open import open_config, open_model
from modelmill.models.weights import save_weights
from modelmill.spec.quantize import BitsandbytesSpec
from modelmill.stages.quantize.written import Written
from modelmill.stages.stage import Folders, Pulse

TEMPORARY_BYTES: Final = 2**20
"""What a layer is on its way to 4 bits takes more, and lies between the results of others."""


def quantize(spec: BitsandbytesSpec, folders: Folders, pulse: Pulse) -> Written:
    """Quantize the model's linear layers while reading them.

    Raises:
        DataError: a layer was left out.
    """
    map_alone(TEMPORARY_BYTES)
    source = folders.inputs["model"]
    config = open_config(source)
    # What stays unquantized keeps its 16-bit values; a 32-bit model is stored in 16 as well.
    dtype = config.dtype if config.dtype in _HALF else torch.bfloat16
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with pulse.part("work"):
        model = open_model(source, dtype=dtype, device=device, load_in=spec.hold_in)
    with pulse.part("save"):
        save_weights(model, folders.output)
        del model
        # Opening refuses a model with a missing, unread or unquantized layer.
        open_model(folders.output, dtype=dtype, device=device)
    return Written(modules=len(expected_linears(config)))


_HALF: Final = (torch.bfloat16, torch.float16)
