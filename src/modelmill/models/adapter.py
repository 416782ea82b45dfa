"""LoRA adapters: put on a model, written, read back with every tensor accounted for.

Knows PEFT; must not know how an adapter was trained or what it is merged for.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from modelmill.models.adapter_tensors import (
    Read,
    embedded_rows,
    embedding_names,
    head_copies,
    own_tensors,
)
from modelmill.models.families import linear_in_features
from modelmill.models.weights import make_readable
from modelmill.spec.errors import DataError, Problem, SpecError
from modelmill.spec.finetune import FinetuneSpec

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"

_SHOWN = 5


class _StoredTargets(BaseModel):
    """What of a stored adapter decides whether the base's head must be its own."""

    model_config = ConfigDict(extra="ignore")

    target_modules: tuple[str, ...] | str
    modules_to_save: tuple[str, ...] | None = None
    ensure_weight_tying: bool = False


def choose_targets(model: PreTrainedModel, asked: FinetuneSpec) -> tuple[str, ...]:
    """Resolve `target_modules` to the last name parts of layers, sorted.

    `all-linear` means the linear layers of the decoder blocks.  An output head can only be
    trained whole, in `modules_to_save`.

    Raises:
        SpecError: `target_modules` or `modules_to_save` names what is no such layer of this
            model; lists those that are.
    """
    blocks = {name.rpartition(".")[2] for name in linear_in_features(model)}
    # Not the output head: TRL's loss reads its own weight and would never train an adapter.
    embeddings = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if module is model.get_input_embeddings()
    }
    every = {name.rpartition(".")[2] for name, _ in model.named_modules()} - {""}
    targets = () if isinstance(asked.target_modules, str) else asked.target_modules
    problems = [
        Problem(
            f"finetune.{field}.{index}",
            f"'{name}' is no {what} of this {model.config.model_type} model",
            suggestion=f"there are {', '.join(sorted(known))}",
        )
        for field, names, known, what in (
            ("target_modules", targets, blocks | embeddings, "layer that an adapter fits on"),
            ("modules_to_save", asked.modules_to_save, every, "layer"),
        )
        for index, name in enumerate(names)
        if name not in known
    ]
    if problems:
        raise SpecError("run", problems)
    return tuple(sorted(set(targets) or blocks))


def fresh_adapter(
    base: PreTrainedModel, asked: FinetuneSpec, targets: tuple[str, ...]
) -> PeftModel:
    """Put a new adapter on a model, to be trained; the model itself is changed in place."""
    _untie_for(base, (*targets, *asked.modules_to_save))
    config = LoraConfig(
        r=asked.r,
        lora_alpha=asked.lora_alpha,
        lora_dropout=asked.lora_dropout,
        use_rslora=asked.use_rslora,
        use_dora=asked.use_dora,
        target_modules=list(targets),
        modules_to_save=list(asked.modules_to_save) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


def head_is_trained(model: PeftModel) -> bool:
    """Tell whether the output head has an adapter or is trained itself."""
    head = model.get_base_model().get_output_embeddings()
    return any(weight.requires_grad for weight in head.parameters())


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
    config |= {"base_model_name_or_path": None, "inference_mode": True}
    # PEFT keeps sets, whose order in the file would change with the hash seed.
    config |= {name: sorted(value) for name, value in config.items() if isinstance(value, set)}
    for name in ("target_modules", "modules_to_save"):
        if config[name] is not None:
            config[name] = sorted(config[name])
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    make_readable(folder)


def open_adapter(
    base: PreTrainedModel, folder: Path, *, is_trained: bool = False
) -> tuple[PeftModel, int]:
    """Put a stored adapter on a model; the model itself is changed in place.

    Args:
        base: the model it was trained on.
        folder: its config and weights.
        is_trained: whether it will be trained further.

    Returns:
        The model with its adapter, and how many tensors the adapter has.

    Raises:
        DataError: a tensor of the file finds no place in the model or the other way round,
            it does nothing at all, or it is to be trained on embeddings that it brings along.
    """
    stored = load_file(folder / WEIGHTS)
    names = settle_head(base, folder, stored, stored.__getitem__)
    tensors = {name: stored[name] for name in sorted(names)}
    rows = embedded_rows(base, _shapes(tensors))
    is_resized = rows != base.get_input_embeddings().num_embeddings
    if is_resized:
        base.resize_token_embeddings(rows, mean_resizing=False)
    may_be_saved = embedding_names(base)
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = not is_trained
    model = get_peft_model(base, config)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    # PEFT does not expect saved embeddings, but they have a place.
    saved = {
        name: weight
        for name, weight in model.state_dict().items()
        if name in may_be_saved and name in tensors
    }
    check_fit(_shapes(tensors), _shapes({**expected, **saved}), str(folder))
    if is_trained and (is_resized or saved.keys() - expected.keys()):
        # What `save_adapter` writes has neither these embeddings nor the tokenizer with their rows.
        raise DataError(
            "the adapter brings embeddings of its own, and training does not go on with those",
            at=str(folder),
            fix="merge it first (finetune.adapter), and go on from the merged model",
        )
    check_effect(
        (tensor for name, tensor in tensors.items() if ".lora_A." not in name), str(folder)
    )
    set_peft_model_state_dict(model, tensors)
    return model if is_trained else model.eval(), len(tensors)


def check_fit(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], at: str
) -> None:
    """Refuse an adapter whose tensors are not exactly those that the model has places for.

    Args:
        found: shapes in the adapter's file, by name.
        expected: shapes of the places, by the same names.
        at: the folder, for the message.

    Raises:
        DataError: names those that find no place, are missing or have another shape.
    """
    wrong = [
        f"{name} ({why})"
        for why, names in (
            ("not applied", found.keys() - expected.keys()),
            ("missing", expected.keys() - found.keys()),
            (
                "of another shape",
                {name for name in found.keys() & expected.keys() if found[name] != expected[name]},
            ),
        )
        for name in sorted(names)
    ]
    if wrong:
        raise DataError(
            f"{len(wrong)} adapter tensors do not fit the model: {', '.join(wrong[:_SHOWN])}",
            at=at,
            fix="merge onto the base the adapter was trained on",
        )


def check_effect(trained: Iterable[torch.Tensor], at: str) -> None:
    """Refuse an adapter whose trained tensors, all but lora_A, are zero.

    Raises:
        DataError: they are.
    """
    if not any(tensor.any() for tensor in trained):
        raise DataError(
            "the adapter has no effect: every lora_B is zero",
            at=at,
            fix="train longer, or with a higher finetune.learning_rate",
        )


def settle_head(
    base: PreTrainedModel, folder: Path, names: Collection[str], read: Read
) -> set[str]:
    """Give the head a weight of its own if the adapter in a folder needs it to have one.

    Args:
        base: changed in place.
        folder: the adapter's config.
        names: of the adapter's tensors.
        read: reads one of them.

    Returns:
        The names of the tensors that say something: PEFT writes some twice.
    """
    untie_for(base, folder)
    own = own_tensors(names, read)
    copies = head_copies(base, own, read)
    if copies is None:
        _untie(base)
    return own - (copies or set())


def untie_for(base: PreTrainedModel, folder: Path) -> None:
    """Give the head a weight of its own if the adapter in a folder changes it or the embeddings.

    Raises:
        DataError: the adapter has one LoRA layer for both.
    """
    stored = _StoredTargets.model_validate_json((folder / CONFIG).read_bytes())
    targets = stored.target_modules
    if isinstance(targets, str):
        # As PEFT reads it; `all-linear` leaves the head out.
        every = [name for name, _ in base.named_modules()]
        targets = tuple(name for name in every if re.fullmatch(targets, name))
    if stored.ensure_weight_tying and _names_shared(base, targets):
        raise DataError(
            "one LoRA layer is shared by embeddings and head (ensure_weight_tying), "
            "which is neither merged nor answered with here",
            at=str(folder),
            fix="merge it with PEFT and name the merged model",
        )
    _untie_for(base, (*targets, *(stored.modules_to_save or ())))


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _untie_for(base: PreTrainedModel, names: Iterable[str]) -> None:
    """Give the head a weight of its own where an adapter changes it or the embeddings.

    On a shared weight PEFT adds the change once and uses it twice: 21 to 1906 % off, no error.
    With two equal weights every change stays where it was learned, in training as after
    merging.
    """
    if _names_shared(base, names):
        _untie(base)


def _names_shared(base: PreTrainedModel, names: Iterable[str]) -> bool:
    """Tell whether a name is of embeddings or of a head that has their weight."""
    if not base.config.tie_word_embeddings:
        return False
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    shared = {name.rpartition(".")[2] for name, module in base.named_modules() if module in ends}
    return bool(shared & {name.rpartition(".")[2] for name in names})


def _untie(base: PreTrainedModel) -> None:
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    head.weight = torch.nn.Parameter(embeddings.weight.detach().clone(), requires_grad=False)
    base.config.tie_word_embeddings = False
    base.config.get_text_config().tie_word_embeddings = False
    base.all_tied_weights_keys = {}
