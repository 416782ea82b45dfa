"""LoRA adapters: put on a model, written, read back with every tensor accounted for.

Knows PEFT; must not know how an adapter was trained or what it is merged for.
"""

import json
from pathlib import Path
from typing import Final

from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from modelmill.models.families import linear_in_features
from modelmill.models.weights import make_readable
from modelmill.spec.errors import DataError, Problem, SpecError

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"

_SHOWN = 5


class _StoredTargets(BaseModel):
    """What of a stored adapter decides whether PEFT merges it right."""

    model_config = ConfigDict(extra="ignore")

    target_modules: tuple[str, ...] | str


def choose_targets(model: PreTrainedModel, asked: str | tuple[str, ...]) -> tuple[str, ...]:
    """Resolve `target_modules` to the last name parts of layers, sorted.

    Raises:
        SpecError: a name is not a quantizable layer of this model; lists those that are.
            So the embeddings and the output head are refused: TRL's loss never passes
            through an adapted head, and PEFT merges adapters on tied embeddings wrong.
    """
    present = {name.rpartition(".")[2] for name in linear_in_features(model)}
    if isinstance(asked, str):
        return tuple(sorted(present))
    problems = [
        Problem(
            f"finetune.target_modules.{index}",
            f"'{name}' is no layer in the decoder blocks of this {model.config.model_type} model",
            suggestion=f"its layers are {', '.join(sorted(present))}",
        )
        for index, name in enumerate(asked)
        if name not in present
    ]
    if problems:
        raise SpecError("run", problems)
    return tuple(sorted(set(asked)))


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter, equal bytes for equal tensors and without a trace of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    config = model.active_peft_config.to_dict()
    config |= {
        "base_model_name_or_path": None,
        "inference_mode": True,
        # PEFT keeps a set, whose order in the file would change with the hash seed.
        "target_modules": sorted(config["target_modules"]),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    make_readable(folder)


def open_adapter(base: PreTrainedModel, folder: Path) -> tuple[PeftModel, int]:
    """Put a stored adapter on a model; the model itself is changed in place.

    Returns:
        The model with its adapter, and how many tensors the adapter has.

    Raises:
        DataError: a tensor of the file finds no place in the model or the other way round,
            the adapter targets tied weights, or it does nothing at all.
    """
    _refuse_tied_targets(base, folder)
    tensors = load_file(folder / WEIGHTS)
    model = get_peft_model(base, LoraConfig.from_pretrained(str(folder)))
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = [
        f"{name} ({why})"
        for why, names in (
            ("not applied", tensors.keys() - expected.keys()),
            ("missing", expected.keys() - tensors.keys()),
            (
                "of another shape",
                {
                    n
                    for n in tensors.keys() & expected.keys()
                    if tensors[n].shape != expected[n].shape
                },
            ),
        )
        for name in sorted(names)
    ]
    if wrong:
        raise DataError(
            f"{len(wrong)} adapter tensors do not fit the model: {', '.join(wrong[:_SHOWN])}",
            at=str(folder),
            fix="merge onto the base the adapter was trained on",
        )
    if not any(tensor.any() for name, tensor in tensors.items() if ".lora_B." in name):
        raise DataError(
            "the adapter has no effect: every lora_B is zero",
            at=str(folder),
            fix="train longer, or with a higher finetune.learning_rate",
        )
    set_peft_model_state_dict(model, tensors)
    return model.eval(), len(tensors)


def _refuse_tied_targets(base: PreTrainedModel, folder: Path) -> None:
    """PEFT changes the shared weight once and uses it twice: 21 to 1906 % off, no error."""
    if not base.config.tie_word_embeddings:
        return
    stored = _StoredTargets.model_validate_json((folder / CONFIG).read_bytes())
    targets = stored.target_modules if isinstance(stored.target_modules, tuple) else ()
    shared = {
        name.removesuffix(".weight").rpartition(".")[2]
        for pair in base.all_tied_weights_keys.items()
        for name in pair
    }
    found = sorted(shared & {name.rpartition(".")[2] for name in targets})
    if found:
        raise DataError(
            f"the adapter targets {', '.join(found)}, which this model shares between its "
            "embeddings and its output head; such an adapter cannot be merged",
            at=str(folder),
            fix="train an adapter on the decoder blocks only (target_modules: all-linear)",
        )
