"""AutoRound by its own engine, exported in GPTQ's format v1.

Learns for each weight which way to round, and for each group where its range ends, so that a
block's output on training rows stays as it was.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import auto_round
import torch
from auto_round import AutoRound
from auto_round_extension.torch.qlinear_torch_zp import QuantLinear
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from modelmill.models.families import decoder_blocks, expected_linears, expected_outputs
from modelmill.models.gptq import check_files, store_tied_heads
from modelmill.models.open import open_config, open_model, open_tokenizer
from modelmill.models.weights import SHARD_SIZE, write_index
from modelmill.spec.batching import AUTOROUND_ROWS
from modelmill.spec.errors import DataError
from modelmill.spec.grouping import check_rounding, choose_group_size
from modelmill.spec.quantize import AutoroundSpec
from modelmill.spec.settings import QuantizeSettings
from modelmill.stages.quantize.calibration import Calibration, shortage
from modelmill.stages.quantize.configs import say_how
from modelmill.stages.quantize.evidence import calibrate_on
from modelmill.stages.quantize.written import Written
from modelmill.stages.stage import Folders, Pulse

URI: Final = "https://github.com/intel/auto-round"


def quantize(
    spec: AutoroundSpec, settings: QuantizeSettings, folders: Folders, pulse: Pulse
) -> Written:
    """Quantize the model's linear layers, looking at training rows.

    Raises:
        SpecError: the group size does not fit this model, or a layer would be left out.
        DataError: too few training tokens, a layer was left out, or one cannot be written.
    """
    source = folders.inputs["model"]
    with pulse.part("load"):
        config = open_config(source)
        in_features = expected_linears(config)
        group_size = choose_group_size(spec.group_size, in_features)
        check_rounding(expected_outputs(config))
        calibration = _in_batches(calibrate_on(spec, settings, folders))
        warning = shortage(spec.method, calibration.tokens, max(in_features.values()))
        if warning:
            pulse.warn(warning)
        is_gpu = torch.cuda.is_available()
        # On the host; the engine brings one block at a time to a GPU.
        dtype = torch.bfloat16 if is_gpu else torch.float32
        model = open_model(source, dtype=dtype, device=torch.device("cpu"))
        engine = _engine(spec, group_size, model, calibration, settings.seed)
    with TemporaryDirectory(dir=folders.output) as scratch:
        with pulse.part("work"), _progress_of(model, pulse), _zero_points_kept():
            engine.quantize_and_save(scratch, format="auto_gptq", max_shard_size=SHARD_SIZE)
        with pulse.part("save"):
            _take_weights(Path(scratch), folders.output)
            # The engine's own configs leave out the format.
            meta: dict[str, JsonValue] = {
                "quantizer": [f"auto-round:{auto_round.__version__}"],
                "uri": URI,
                "iters": spec.iters,
            }
            say_how(spec, group_size, config, folders.output, meta)
            if "auto-gptq" in spec.compat:
                store_tied_heads(folders.output, config)
            modules = check_files(folders.output, config)
    return Written(modules, group_size, calibration)


def _in_batches(calibration: Calibration) -> Calibration:
    """Leave out what fills no batch: the engine cuts ALiBi's biases by the batch's size."""
    count = len(calibration.pieces)
    return calibration.first(count - count % _batch_rows(calibration))


def _batch_rows(calibration: Calibration) -> int:
    return min(AUTOROUND_ROWS, len(calibration.pieces))


def _engine(
    spec: AutoroundSpec,
    group_size: int,
    model: PreTrainedModel,
    calibration: Calibration,
    seed: int,
) -> AutoRound:
    tokenizer = open_tokenizer(Path(model.name_or_path))
    # Where it is EOS, as often, the engine would not look at the ends of rows.
    tokenizer.pad_token = None
    ids, rows = torch.tensor(calibration.sequences), _batch_rows(calibration)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoRound(
            model,
            tokenizer,
            bits=spec.bits,
            group_size=group_size,
            sym=spec.sym,
            iters=spec.iters,
            dataset=list(ids.split(rows)),
            nsamples=len(ids),
            seqlen=ids.shape[1],
            batch_size=rows,
            seed=seed,
            device_map=0 if torch.cuda.is_available() else "cpu",
            # CPUs that emulate bfloat16 are many times slower in it.
            amp=torch.cuda.is_available(),
            enable_torch_compile=False,
        )


@contextmanager
def _progress_of(model: PreTrainedModel, pulse: Pulse) -> Iterator[None]:
    """Tell which block is worked on, each time it is passed through; the engine has no callback."""
    blocks = decoder_blocks(model)
    hooks = [
        block.register_forward_pre_hook(
            lambda *_, number=number: pulse.progress(number, len(blocks), "layers")
        )
        for number, block in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    pulse.progress(len(blocks), len(blocks), "layers")


@contextmanager
def _zero_points_kept() -> Iterator[None]:
    """Refuse zero points of 0: the engine writes 1, and each weight of the group is a step off.

    Raises:
        DataError: some groups have one.
    """
    pack = QuantLinear.pack
    lowest = 0

    @wraps(pack)
    def counted(
        layer: QuantLinear, linear: nn.Module, scales: torch.Tensor, zeros: object, *rest: object
    ) -> None:
        nonlocal lowest
        lowest += int((zeros == 0).sum()) if isinstance(zeros, torch.Tensor) else 0
        pack(layer, linear, scales, zeros, *rest)

    QuantLinear.pack = counted
    try:
        yield
    finally:
        QuantLinear.pack = pack
    if lowest:
        raise DataError(
            f"{lowest} groups hold no weight that is clearly negative, so their zero point is 0, "
            "which AutoRound cannot write in GPTQ's format",
            fix="quantize with sym: true, or with gptq",
        )


def _take_weights(scratch: Path, output: Path) -> None:
    """Move the shards out, with everything that is not packed in 16 bits."""
    places: dict[str, str] = {}
    size_bytes = 0
    for path in sorted(scratch.rglob("*.safetensors")):
        tensors = {
            name: each.to(torch.float16) if each.is_floating_point() else each
            for name, each in load_file(path).items()
        }
        save_file(tensors, output / path.name, metadata={"format": "pt"})
        path.unlink()
        places |= dict.fromkeys(tensors, path.name)
        size_bytes += sum(each.nbytes for each in tensors.values())
    if len(set(places.values())) > 1:
        write_index(output, places, size_bytes)
