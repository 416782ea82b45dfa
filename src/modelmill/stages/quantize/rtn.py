"""Round to nearest: every weight alone, on the grid that GPTQ would use.  Looks at no data.

The control beside a GPTQ model of equal bits: what that is better by is what looking at
data was worth.
"""

import torch
from gptqmodel.quantization.config import RTNConfig

from modelmill.models.families import expected_linears, expected_outputs
from modelmill.models.open import open_config
from modelmill.spec.grouping import check_packing, choose_group_size
from modelmill.spec.quantize import RtnSpec
from modelmill.stages.quantize.engine import ENGINE_SETTINGS, logs_away, open_engine, save_engine
from modelmill.stages.quantize.written import Written
from modelmill.stages.stage import Folders, Pulse


def quantize(spec: RtnSpec, folders: Folders, pulse: Pulse) -> Written:
    """Quantize the model's linear layers, as GPTQ files.

    Raises:
        SpecError: the group size or the bits do not fit this model.
        DataError: a layer was left out.
    """
    source = folders.inputs["model"]
    with pulse.part("load"):
        config = open_config(source)
        group_size = choose_group_size(spec.group_size, expected_linears(config))
        check_packing(spec.bits, expected_outputs(config))
        # On the CPU everywhere: it is quick there, and gives the same bytes.
        asked = RTNConfig(
            bits=spec.bits, group_size=group_size, sym=spec.sym, device="cpu", **ENGINE_SETTINGS
        )
        # Packing divides by the scale again: in 16 bits it would miss codes of 8.
        model = open_engine(source, config, asked, torch.float32)
    with pulse.part("work"), logs_away(folders.output):
        model.quantize(calibration=None)
    with pulse.part("save"):
        modules = save_engine(model, folders.output, config, spec, {"method": spec.method})
    return Written(modules, group_size)
