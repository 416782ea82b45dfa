"""What is trained: an adapter on a frozen model, or the model itself.

Knows what is written of it; must not know rows or the trainer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from peft import PeftModel
from pydantic import JsonValue
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modelmill.models.adapter import head_is_trained, save_adapter
from modelmill.models.families import linear_in_features
from modelmill.models.grid import Grid, keep_rounded, round_while_learning
from modelmill.models.precision import DTYPES
from modelmill.models.weights import save_weights
from modelmill.spec.closed import Dtype
from modelmill.spec.finetune import GridSpec
from modelmill.spec.grouping import choose_group_size


@dataclass(frozen=True)
class Learner:
    """Something with weights that want gradients."""

    model: PreTrainedModel | PeftModel
    """What the trainer is given."""
    parameters: int
    """Of the whole model, without an adapter."""
    save: Callable[[Path, PreTrainedTokenizerBase], None]
    """Writes what was learned, and the tokenizer beside it."""
    head_is_trained: bool = False
    """Whether the loss must go through the output head's module."""
    effective: Mapping[str, JsonValue] = field(default_factory=dict)
    """What became of the settings."""


def adapter(model: PeftModel) -> Learner:
    """Train and write an adapter only."""

    def save(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        save_adapter(model, folder / "adapter")
        tokenizer.save_pretrained(folder / "tokenizer")

    config = model.active_peft_config
    return Learner(
        model,
        model.get_base_model().num_parameters(),
        save,
        head_is_trained(model),
        {"target_modules": sorted(config.target_modules), "r": config.r},
    )


def rounded_model(model: PreTrainedModel, asked: GridSpec) -> Learner:
    """Train every weight, the linear layers' through the grid they will be packed on.

    Raises:
        SpecError: the group size does not fit this model.
    """
    in_features = linear_in_features(model)
    group_size = choose_group_size(asked.group_size, in_features, "finetune.qat")
    round_while_learning(model, Grid(asked.bits, group_size), in_features)
    learning = whole_model(model, "float32")

    def save(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        keep_rounded(model)
        learning.save(folder, tokenizer)

    effective: dict[str, JsonValue] = {"qat": {"bits": asked.bits, "group_size": group_size}}
    return replace(learning, save=save, effective=effective)


def whole_model(model: PreTrainedModel, dtype: Dtype) -> Learner:
    """Train and write every weight.

    TRL's loss reads the head's own weight, which is what is trained here.
    """

    def save(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        save_weights(model.to(DTYPES[dtype]), folder)
        tokenizer.save_pretrained(folder)

    return Learner(model.requires_grad_(), model.num_parameters(), save)
