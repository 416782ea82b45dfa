"""Which training rows a quantizer looks at, in the form of the prompt contract."""

from modelmill.models.open import open_config, open_tokenizer
from modelmill.models.prompt import contract_for, encode_row
from modelmill.spec.quantize import CalibratedSpec
from modelmill.spec.records import Row
from modelmill.spec.settings import QuantizeSettings
from modelmill.stages.quantize.calibration import Calibration, choose_sequences
from modelmill.stages.stage import Folders


def calibrate_on(spec: CalibratedSpec, settings: QuantizeSettings, folders: Folders) -> Calibration:
    """Choose sequences of the training rows.

    Raises:
        DataError: the rows do not fill one usable sequence.
    """
    source = folders.inputs["model"]
    tokenizer = open_tokenizer(source)
    contract = contract_for(source, tokenizer, settings.contract)
    positions = open_config(source).get_text_config().to_dict().get("max_position_embeddings")
    lines = (folders.inputs["data"] / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return choose_sequences(
        [Row.model_validate_json(line) for line in lines],
        lambda row: encode_row(contract, tokenizer, row).input_ids,
        max_tokens=spec.calibration.tokens,
        # The engines cut sequences at the model's own limit without counting what they drop.
        length=min(contract.max_length, positions or contract.max_length),
        seed=settings.seed,
    )
