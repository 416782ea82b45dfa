"""What a quantizer looks at, in the form of the prompt contract."""

from collections.abc import Iterator

from modelmill.models.families import stated_positions
from modelmill.models.open import open_config, open_tokenizer
from modelmill.models.prompt import contract_for, encode_row
from modelmill.spec.quantize import CalibratedSpec, CalibrationSpec
from modelmill.spec.settings import QuantizeSettings
from modelmill.stages.quantize.calibration import (
    Calibration,
    Evidence,
    Origin,
    choose_sequences,
)
from modelmill.stages.rows import load_rows
from modelmill.stages.stage import Folders


def calibrate_on(spec: CalibratedSpec, settings: QuantizeSettings, folders: Folders) -> Calibration:
    """Choose sequences of the training rows, of a text, or of both.

    Raises:
        DataError: they do not fill one usable sequence.
    """
    source = folders.inputs["model"]
    tokenizer = open_tokenizer(source)
    contract = contract_for(source, tokenizer, settings.contract)
    positions = stated_positions(open_config(source))
    return choose_sequences(
        dict(_evidence(spec.calibration, folders)),
        lambda row: encode_row(contract, tokenizer, row).input_ids,
        # The engines cut sequences at what the config states without counting what they drop.
        length=min(contract.max_length, positions or contract.max_length),
        seed=settings.seed,
    )


def _evidence(asked: CalibrationSpec, folders: Folders) -> Iterator[tuple[Origin, Evidence]]:
    of_text = 0 if asked.text is None else round(asked.text_share * asked.tokens)
    if asked.has_rows:
        rows = load_rows(folders.inputs["data"] / "train.jsonl")
        yield "rows", Evidence(rows, asked.tokens - of_text)
    if asked.text is not None:
        yield "text", Evidence(load_rows(folders.inputs["text"] / "text.jsonl"), of_text)
