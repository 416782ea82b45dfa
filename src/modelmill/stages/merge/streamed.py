"""A merge that needs the memory of a few tensors, and so does its proof.

Reads the base twice: in the order of the files while they are written, and in the order of
the layers while base, adapter and merged model answer the probe prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
from transformers import GenerationConfig

from modelmill.models.held import dequantized, held_weights
from modelmill.models.layout import Form, lay_out, pour_shards, write_index, write_shards
from modelmill.models.lockstep import Lockstep, Versions
from modelmill.models.memory import return_freed_memory, trim_heap
from modelmill.models.merging import Merging, Origin, open_merging
from modelmill.models.open import LoadIn
from modelmill.models.precision import DTYPES
from modelmill.models.probe import ProbePrompt, distance, norm
from modelmill.models.shards import DTYPE_OF, Tensors, open_tensors
from modelmill.models.skeleton import save_configs
from modelmill.models.weights import checkpoint_names
from modelmill.spec.batching import PROBE_POSITIONS
from modelmill.spec.closed import Dtype
from modelmill.spec.settings import MergeSettings
from modelmill.stages.merge.proof import NOISE_PROMPTS, Before
from modelmill.stages.merge.recomputed import Recomputed, TensorProof
from modelmill.stages.stage import Folders, InStore, Pulse

TOKENS_AT_ONCE: Final = 1024
"""Of each version, with padding: what layers answer is smaller then than a large weight."""

Settle = Callable[[GenerationConfig], None]


@contextmanager
def streaming(
    base: Path, adapter: Path, settings: MergeSettings, in_store: InStore | None = None
) -> Iterator["Streaming"]:
    """Open base and adapter to be merged tensor by tensor.

    Args:
        base: its folder.
        adapter: its folder.
        settings: what is asked for.
        in_store: the weights of the base, and where those of the output go, where no folder
            has room for them.

    Raises:
        NotStreamable: they are of a kind that needs the whole model; says which.
        DataError: they do not fit together, or the adapter does nothing.
    """
    return_freed_memory()
    with _base_tensors(base, in_store) as tensors, open_tensors(adapter) as changes:
        merging = open_merging(base, tensors, adapter, changes)
        is_onto_held = settings.merge.onto == "dequantized"
        if is_onto_held:
            assert settings.load_in is not None
            merging = replace(merging, base=dequantized(merging, settings.load_in))
        yield Streaming(merging, settings.merge.dtype, is_onto_held, in_store)


def _base_tensors(base: Path, in_store: InStore | None) -> AbstractContextManager[Tensors]:
    if in_store is None:
        return open_tensors(base)
    by_name = {file.path.name: file for file in in_store.weights["model"]}
    return nullcontext(Tensors(by_name[name] for name in checkpoint_names(base, [*by_name])))


@dataclass(frozen=True)
class Streaming:
    """A merge that is ready to run tensor by tensor."""

    merging: Merging
    dtype: Dtype
    is_onto_held: bool
    """Whether the base is read as it was held in training."""
    in_store: InStore | None = None

    @property
    def adapter_tensors(self) -> int:
        """How many tensors the adapter has; every one has its place."""
        return len(self.merging.adapter.tensors)

    def write(self, folders: Folders, settle: Settle, pulse: Pulse) -> None:
        """Write weights and configs in one pass, the generation config as `settle` leaves it."""
        folder = folders.output
        dtype = DTYPES[self.dtype]
        forms = [
            Form(origin.name, self._dtype_of(origin), origin.shape)
            for origin in self.merging.origins.values()
        ]
        shards = lay_out(forms)
        total_bytes = sum(form.size_bytes for form in forms)
        done_bytes = 0
        if self.in_store is None:
            merged = write_shards(shards, folder, self._make, folders.growing)
        else:
            merged = pour_shards(shards, self._make, self.in_store.pour)
        for form in merged:
            done_bytes += form.size_bytes
            pulse.progress(done_bytes, total_bytes, "bytes", "merge")
            if self.in_store is not None:
                self.in_store.keep()
        write_index(shards, folder, self.merging.parameters)
        settle(self.merging.model.generation_config)
        save_configs(self.merging.model, dtype, folder)

    def compare(
        self, folder: Path, prompts: Sequence[ProbePrompt], load_in: LoadIn, pulse: Pulse
    ) -> "Compared":
        """Check every tensor that was written, and let all models answer beside each other.

        Args:
            folder: what was written.
            prompts: what they answer.
            load_in: how the base was held in training, in 4 bits or not at all.
            pulse: told about progress.

        Raises:
            InternalError: a tensor is not what it must be.
            NotStreamable: this architecture cannot answer layer by layer.
        """
        with self._written(folder) as written:
            recomputed = self._recomputed(written, load_in)
            versions = partial(self._versions, recomputed, pulse)
            answers = [
                Lockstep(
                    self.merging.adapted,
                    some,
                    {
                        "base": len(some),
                        "adapter": len(some),
                        "trained": 0 if load_in is None else len(some),
                        "written": len(some),
                    },
                    frozenset({"adapter", "trained"}),
                    versions,
                    self.merging.trained_parts,
                ).logits()
                for some in _batches(prompts)
            ]
            for name in recomputed.rest():
                versions(name)
        logits = {version: torch.cat([each[version] for each in answers]) for version in answers[0]}
        del answers
        noise = 0.0
        if self.dtype != "float32":
            # Every tensor is proved to be the sum and its rounding, so what is left between
            # the two models is rounding's noise.
            few = sum(min(PROBE_POSITIONS, len(each.input_ids)) for each in prompts[:NOISE_PROMPTS])
            exact = logits["adapter"][:few]
            noise = distance(logits["written"][:few], exact) / norm(exact)
        return Compared(
            Before(logits["base"], logits["adapter"], noise, self.dtype),
            logits["written"],
            logits.get("trained"),
            recomputed.sorted_proofs(),
        )

    def check(self, folder: Path, pulse: Pulse) -> tuple[TensorProof, ...]:
        """Check every tensor that was written, and let nobody answer."""
        with self._written(folder) as written:
            recomputed = self._recomputed(written, None)
            for name in recomputed.rest():
                self._versions(recomputed, pulse, name)
        return recomputed.sorted_proofs()

    def _written(self, folder: Path) -> AbstractContextManager[Tensors]:
        if self.in_store is None:
            return open_tensors(folder)
        written = Tensors(self.in_store.poured())
        self.in_store.keep()
        trim_heap()  # of the parts that were sent
        return nullcontext(written)

    def _recomputed(self, written: Tensors, load_in: LoadIn) -> Recomputed:
        # Held in 4 bits a second time, it would change once more.
        if load_in is None or self.is_onto_held:
            return Recomputed(self.merging, written, DTYPES[self.dtype])
        held = held_weights(self.merging, load_in)
        return Recomputed(self.merging, written, DTYPES[self.dtype], held)

    def _versions(self, recomputed: Recomputed, pulse: Pulse, name: str) -> Versions:
        pulse.progress(len(recomputed.proofs), len(self.merging.origins), "tensors", "proof")
        return recomputed.versions(name)

    def _dtype_of(self, origin: Origin) -> torch.dtype:
        if origin.is_float or origin.base is None:
            return DTYPES[self.dtype]
        return DTYPE_OF[self.merging.base.tensors[origin.base].dtype]

    def _make(self, form: Form) -> torch.Tensor:
        return self.merging.merged(form.name).to(form.dtype)


def _batches(prompts: Sequence[ProbePrompt]) -> Iterator[list[ProbePrompt]]:
    """Divide prompts, in their order, so that a version has a bounded number of tokens at once."""
    batch: list[ProbePrompt] = []
    for prompt in prompts:
        longest = max(len(each.input_ids) for each in [*batch, prompt])
        if batch and longest * (len(batch) + 1) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(prompt)
    yield batch


@dataclass(frozen=True)
class Compared:
    """What the proof of a merge found."""

    before: Before
    answers: torch.Tensor
    """Of what was written."""
    trained: torch.Tensor | None
    """Of the adapter on the base as it was held in training."""
    tensors: tuple[TensorProof, ...] = ()
