"""Merge an adapter into its unquantized base, and prove that nothing else happened.

Says in which order things happen; `proof` knows what is compared and what is enough.
"""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from modelmill.models.adapter import open_adapter
from modelmill.models.open import open_model, open_tokenizer
from modelmill.models.precision import DTYPES
from modelmill.models.probe import PROBE, built_in_probe, load_probe, probe_logits
from modelmill.models.prompt import (
    Contract,
    contract_for,
    contract_into_tokenizer,
    load_contract,
    save_contract,
)
from modelmill.models.weights import make_readable, save_weights, weight_bytes
from modelmill.spec.figures import Merged
from modelmill.spec.names import PROMPT
from modelmill.spec.settings import MergeSettings
from modelmill.stages.merge.proof import Before, distance_to_trained, prove, round_weights
from modelmill.stages.stage import Folders, Outcome, Pulse

CPU = torch.device("cpu")
"""A merge is one addition per weight; it needs no accelerator and gives equal bytes everywhere."""


def run(settings: MergeSettings, folders: Folders, pulse: Pulse) -> Outcome:
    """Merge `adapter` into `model` and write a model that needs nothing else.

    Writes weights, config, tokenizer and the prompt contract into the output folder.

    Raises:
        DataError: the adapter does not fit the base or has no effect.
        InternalError: what was written does not answer like the base with its adapter.
    """
    base, tuned = folders.inputs["model"], folders.inputs["adapter"]
    with pulse.part("load"):
        # An adapter from elsewhere brings neither, and was trained with the base's tokenizer.
        own = tuned / "tokenizer"
        tokenizer = open_tokenizer(own if own.is_dir() else base)
        contract = _contract(settings, tuned, base, tokenizer)
        prompts = load_probe(tuned) if (tuned / PROBE).exists() else built_in_probe(tokenizer)
        adapted, tensors = open_adapter(
            open_model(base, dtype=torch.float32, device=CPU), tuned / "adapter"
        )
    with pulse.part("work"):
        pulse.progress(0, 3, "steps", "logits of base and adapter")
        with_adapter = probe_logits(adapted, prompts)
        with adapted.disable_adapter():
            without = probe_logits(adapted, prompts)
        pulse.progress(1, 3, "steps", "merge")
        # In float32 and rounded once: in 16 bits the product, its scaling and the sum would
        # each be rounded.
        merged = adapted.merge_and_unload()
        pulse.progress(2, 3, "steps", "rounding")
        noise = round_weights(merged, settings.merge.dtype, prompts)
        before = Before(without, with_adapter, noise, settings.merge.dtype)
    with pulse.part("save"):
        merged.to(DTYPES[settings.merge.dtype])
        contract_into_tokenizer(contract, tokenizer, merged.generation_config)
        save_weights(merged, folders.output)
        tokenizer.save_pretrained(folders.output)
        save_contract(contract, folders.output)
        make_readable(folders.output)
        del adapted, merged
    with pulse.part("verify"):
        pulse.progress(0, 1, "steps", "logits of what was written")
        written = open_model(folders.output, dtype=torch.float32, device=CPU)
        answers = probe_logits(written, prompts)
        del written
        proof = prove(before, answers)
        if proof.is_weak:
            pulse.warn(
                f"the adapter changes the logits by {proof.effect:.2%}, less than the "
                f"{proof.noise_floor:.2%} from which it stands out from rounding to "
                f"{settings.merge.dtype}; {proof.difference:.0%} of its effect changed in the "
                "merge (merge.dtype: float32 keeps it)"
            )
    trained_distance = None
    if settings.load_in is not None:
        with pulse.part("compare"):
            pulse.progress(0, 1, "steps", "logits of the quantized base that was trained on")
            quantized = open_model(base, dtype=torch.float32, device=CPU, load_in=settings.load_in)
            trained, _ = open_adapter(quantized, tuned / "adapter")
            trained_distance = distance_to_trained(before, answers, probe_logits(trained, prompts))
    return Outcome(
        figures=Merged(
            dtype=settings.merge.dtype,
            size_bytes=weight_bytes(folders.output),
            adapter_tensors=tensors,
            prompts=len(prompts),
            effect=proof.effect,
            difference=proof.difference,
            bound=proof.bound,
            noise_floor=proof.noise_floor,
            training_distance=trained_distance,
        )
    )


def _contract(
    settings: MergeSettings, tuned: Path, base: Path, tokenizer: PreTrainedTokenizerBase
) -> Contract:
    """Take the contract that the adapter was trained in, or what the run asks for."""
    if (tuned / PROMPT).exists() or settings.contract is None:
        return load_contract(tuned)
    return contract_for(base, tokenizer, settings.contract)
