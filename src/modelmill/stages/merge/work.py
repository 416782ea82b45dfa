"""One merge from its inputs to what it proves: tensor by tensor, or in memory with the reason."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import JsonValue
from transformers import GenerationConfig, PreTrainedTokenizerBase

from modelmill.models.families import embedded_tokens
from modelmill.models.open import open_tokenizer
from modelmill.models.probe import PROBE, ProbePrompt, built_in_probe, load_probe, shortened
from modelmill.models.prompt import (
    Contract,
    contract_for,
    contract_into_tokenizer,
    load_contract,
    save_contract,
)
from modelmill.models.skeleton import NotStreamable
from modelmill.models.weights import make_readable, weight_bytes
from modelmill.spec.errors import DataError, DoesNotFit
from modelmill.spec.figures import Merged
from modelmill.spec.names import PROMPT
from modelmill.spec.settings import MergeSettings
from modelmill.stages.merge.proof import Before, Proof, distance_to_trained, prove
from modelmill.stages.merge.recomputed import save_proof
from modelmill.stages.merge.streamed import Compared, Streaming, streaming
from modelmill.stages.merge.whole import Whole, answers_as_trained, answers_of, merge_whole
from modelmill.stages.stage import Folders, Outcome, Pulse


def run(settings: MergeSettings, folders: Folders, pulse: Pulse) -> Outcome:
    """Merge `adapter` into `model` and write a model that needs nothing else.

    Writes weights, config, tokenizer, the prompt contract and what was proved about every
    tensor into the output folder.

    Raises:
        DataError: the adapter does not fit the base or has no effect.
        InternalError: what was written is not the base with its adapter.
    """
    base, tuned = folders.inputs["model"], folders.inputs["adapter"]
    with ExitStack() as files:
        with pulse.part("load"):
            # An adapter from elsewhere brings no probe, and perhaps no tokenizer: then the base's.
            own = tuned / "tokenizer"
            tokenizer = open_tokenizer(own if own.is_dir() else base)
            contract = _contract(settings, tuned, base, tokenizer)
            prompts = load_probe(tuned) if (tuned / PROBE).exists() else built_in_probe(tokenizer)
            merge, reason = _try_streaming(files, settings, folders)
            # In memory nothing but the logits is proved.
            prompts = prompts if merge is None else shortened(prompts)
            work = _Work(settings, folders, pulse, tokenizer, contract, prompts)
        merged = work.whole(reason) if merge is None else work.streamed(merge)
    proof = prove(merged.compared.before, merged.compared.answers)
    if proof.is_weak:
        pulse.warn(
            f"the adapter changes the logits by {proof.effect:.2%}, less than the "
            f"{proof.noise_floor:.2%} from which it stands out from rounding to "
            f"{settings.merge.dtype}; {proof.difference:.0%} of its effect changed in the "
            "merge (merge.dtype: float32 keeps it)"
        )
    save_proof(merged.compared.tensors, folders.output)
    make_readable(folders.output)
    return Outcome(figures=_figures(work, merged, proof), effective=_effective(merged, folders))


@dataclass(frozen=True)
class _Done:
    """A merge that is written, and what it is held against."""

    compared: Compared
    adapter_tensors: int
    merged: Literal["tensor by tensor", "in memory"]
    logits: Literal["layer by layer", "in memory"]
    reason: str = ""
    """Why anything was in memory."""


@dataclass(frozen=True)
class _Work:
    """One merge: what it is given and where it goes."""

    settings: MergeSettings
    folders: Folders
    pulse: Pulse
    tokenizer: PreTrainedTokenizerBase
    contract: Contract
    """Whose pad the merged model may not embed yet."""
    prompts: tuple[ProbePrompt, ...]

    def streamed(self, merge: Streaming) -> _Done:
        """Merge and compare with a few tensors in memory."""
        output, load_in = self.folders.output, self.settings.load_in
        contract = self.contract.padded_within(embedded_tokens(merge.merging.model))
        with self.pulse.part("work"):
            merge.write(self.folders, partial(self._settle, contract), self.pulse)
        self._save_words(contract)
        held = None if self.settings.needs_whole_base else load_in
        try:
            with self.pulse.part("verify"):
                compared = merge.compare(output, self.prompts, held, self.pulse)
        except NotStreamable as reason:
            _need_files(self.folders, str(reason))
            with self.pulse.part("verify"):
                tensors = merge.check(output, self.pulse)
            compared = replace(self._compare_whole(self._merge_whole().before), tensors=tensors)
            return _Done(
                compared, merge.adapter_tensors, "tensor by tensor", "in memory", str(reason)
            )
        if self.settings.needs_whole_base:
            compared = replace(compared, trained=self._as_trained())
        return _Done(compared, merge.adapter_tensors, "tensor by tensor", "layer by layer")

    def whole(self, reason: str) -> _Done:
        """Merge and compare with whole models in memory."""
        whole = self._merge_whole()
        contract = self.contract.padded_within(embedded_tokens(whole.model))
        with self.pulse.part("save"):
            whole.write(self.folders.output, partial(self._settle, contract))
        before, tensors = whole.before, whole.adapter_tensors
        del whole
        self._save_words(contract)
        return _Done(self._compare_whole(before), tensors, "in memory", "in memory", reason)

    def _merge_whole(self) -> Whole:
        base, adapter = self._inputs()
        with self.pulse.part("work"):
            self.pulse.progress(0, 1, "steps", "merge in memory")
            return merge_whole(base, adapter, self.settings.merge.dtype, self.prompts)

    def _compare_whole(self, before: Before) -> Compared:
        with self.pulse.part("verify"):
            self.pulse.progress(0, 1, "steps", "logits of what was written")
            answers = answers_of(self.folders.output, self.prompts)
        trained = None if self.settings.load_in is None else self._as_trained()
        return Compared(before, answers, trained)

    def _as_trained(self) -> torch.Tensor:
        base, adapter = self._inputs()
        with self.pulse.part("compare"):
            self.pulse.progress(0, 1, "steps", "logits of the quantized base that was trained on")
            return answers_as_trained(base, adapter, self.settings.load_in, self.prompts)

    def _inputs(self) -> tuple[Path, Path]:
        return self.folders.inputs["model"], self.folders.inputs["adapter"] / "adapter"

    def _settle(self, contract: Contract, generation: GenerationConfig) -> None:
        contract_into_tokenizer(contract, self.tokenizer, generation)

    def _save_words(self, contract: Contract) -> None:
        with self.pulse.part("save"):
            self.tokenizer.save_pretrained(self.folders.output)
            save_contract(contract, self.folders.output)
            make_readable(self.folders.output)


def _try_streaming(
    files: ExitStack, settings: MergeSettings, folders: Folders
) -> tuple[Streaming | None, str]:
    """Open the inputs to be merged tensor by tensor, or say why that cannot be."""
    base, adapter = folders.inputs["model"], folders.inputs["adapter"] / "adapter"
    try:
        merge = files.enter_context(streaming(base, adapter, settings, folders.in_store))
    except NotStreamable as reason:
        _need_files(folders, str(reason))
        if settings.merge.onto == "dequantized":
            raise DataError(
                f"onto: dequantized is not possible here: {reason}",
                at=str(base),
                fix="choose merge.onto: original",
            ) from reason
        return None, str(reason)
    return merge, ""


def _need_files(folders: Folders, reason: str) -> None:
    """End where the whole model would be read from a folder, and none can hold it.

    Raises:
        DoesNotFit: that is so.
    """
    if folders.in_store is not None:
        raise DoesNotFit(
            f"The volume has no room for the weights, and this merge needs them there: {reason}",
            at=str(folders.output),
            fix="give the stage a larger volume: stages.merge.work in the profile; a run on this "
            "machine: --home",
        )


def _contract(
    settings: MergeSettings, tuned: Path, base: Path, tokenizer: PreTrainedTokenizerBase
) -> Contract:
    """Take the contract that the adapter was trained in, or what the run asks for."""
    if (tuned / PROMPT).exists() or settings.contract is None:
        return load_contract(tuned)
    return contract_for(base, tokenizer, settings.contract)


def _figures(work: _Work, done: _Done, proof: Proof) -> Merged:
    compared = done.compared
    distance = None
    if compared.trained is not None:
        distance = distance_to_trained(compared.before, compared.answers, compared.trained)
    return Merged(
        dtype=work.settings.merge.dtype,
        size_bytes=_size_bytes(work.folders),
        adapter_tensors=done.adapter_tensors,
        prompts=len(work.prompts),
        effect=proof.effect,
        difference=proof.difference,
        bound=proof.bound,
        noise_floor=proof.noise_floor,
        training_distance=distance,
    )


def _size_bytes(folders: Folders) -> int:
    if folders.in_store is None:
        return weight_bytes(folders.output)
    return sum(file.size_bytes for file in folders.in_store.poured())


def _effective(done: _Done, folders: Folders) -> Mapping[str, JsonValue]:
    """Say how it was done, and of how many tensors it is proved one by one."""
    made = Counter(proof.made for proof in done.compared.tensors)
    facts: dict[str, JsonValue] = {
        "merged": done.merged,
        "logits": done.logits,
        "tensors_checked": dict(sorted(made.items())),
        "elements_decided_in_float64": sum(proof.last_bits for proof in done.compared.tensors),
    }
    if folders.in_store is not None:
        facts["weights"] = "in the store, without files"
    if done.reason:
        facts["in_memory_because"] = done.reason
    return facts
