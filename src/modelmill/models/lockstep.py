"""Several versions of one model, run side by side while their weights are read once.

The rows of a batch belong to versions: the base, the base with its adapter, the merged model.
Every layer is given each version's weights in turn, answers for that version's rows, and is
emptied again; so an answer of any model costs the memory of one layer.  The adapter's rows go
through PEFT's own layers, unmerged.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from modelmill.models.merging import holding
from modelmill.models.probe import ProbePrompt
from modelmill.models.skeleton import NotStreamable
from modelmill.spec.batching import PROBE_POSITIONS

PIECE_ELEMENTS: Final = 2**21
"""Of a weight that is turned into float32 at a time: 8 MB, which stay in a cache."""


@dataclass(frozen=True)
class Versions:
    """What one tensor is in each version; the same object where versions agree.

    The adapter's is what its LoRA layer adds to, not the sum.
    """

    of: Mapping[str, torch.Tensor]


Trained = Callable[[str], list[tuple[nn.Module, str, torch.Tensor]]]
"""Reads what a LoRA layer has learned: `Merging.trained_parts`."""


@dataclass(frozen=True)
class Lockstep:
    """How rows and weights come together."""

    adapted: PeftModel
    prompts: Sequence[ProbePrompt]
    rows: Mapping[str, int]
    """By version, in the order of the batch: it answers so many of the prompts."""
    with_adapter: frozenset[str]
    """Versions that go through the LoRA layers."""
    versions: Callable[[str], Versions]
    """Reads one tensor of the model."""
    trained: Trained

    def logits(self) -> dict[str, torch.Tensor]:
        """Compute every version's logits at the prompts' last positions, as `probe_logits`.

        Raises:
            NotStreamable: the architecture does something with its weights beside calling
                the layers that hold them.
        """
        model = self.adapted.get_base_model()
        lengths = [len(prompt.input_ids) for prompt in self.prompts]
        longest = max(lengths)
        prompts = [
            [*prompt.input_ids, *[0] * (longest - length)]
            for prompt, length in zip(self.prompts, lengths, strict=True)
        ]
        # Padded on the right: no token sees what comes after it.
        ids = torch.tensor([row for count in self.rows.values() for row in prompts[:count]])
        ends = [length for count in self.rows.values() for length in lengths[:count]]
        batch = _Batch(tuple(self.rows.items()), tuple(ends), longest)
        try:
            with torch.inference_mode(), self._replaced(model, batch):
                answers = model(input_ids=ids, use_cache=False).logits
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
            raise NotStreamable(
                f"a {model.config.model_type} model reaches into its layers"
            ) from error
        return {
            version: torch.cat(
                [
                    answers[row, max(0, PROBE_POSITIONS - ends[row]) :].float()
                    for row in range(*batch.span(version))
                ]
            )
            for version, count in self.rows.items()
            if count
        }

    @contextmanager
    def _replaced(self, model: PreTrainedModel, batch: "_Batch") -> Iterator[None]:
        """Let the layers that hold weights answer version by version."""
        head = model.get_output_embeddings()
        layers = list(_layers(model))
        try:
            for name, layer in layers:
                layer.forward = _Layer(self, batch, name, layer, layer is head).answer
            yield
        finally:
            for _, layer in layers:
                layer.__dict__.pop("forward", None)


@dataclass(frozen=True)
class _Batch:
    """Which rows are whose, and how long they are."""

    counts: tuple[tuple[str, int], ...]
    ends: tuple[int, ...]
    longest: int

    def span(self, version: str) -> tuple[int, int]:
        """Find the first row of a version, and the one after its last."""
        start = 0
        for name, count in self.counts:
            if name == version:
                return start, start + count
            start += count
        raise KeyError(version)

    def last_positions(self, hidden: torch.Tensor) -> torch.Tensor:
        """Take what is compared; of a shorter row the first position fills the front."""
        ends = torch.tensor(self.ends)[:, None]
        places = (ends - PROBE_POSITIONS + torch.arange(PROBE_POSITIONS)).clamp(min=0)
        return hidden[torch.arange(len(self.ends))[:, None], places]

    @property
    def is_token(self) -> torch.Tensor:
        """Tell tokens from padding: (rows, longest)."""
        return torch.arange(self.longest) < torch.tensor(self.ends)[:, None]


@dataclass(frozen=True)
class _Layer:
    """A layer that holds weights, or would."""

    lockstep: Lockstep
    batch: _Batch
    name: str
    module: nn.Module
    is_head: bool

    def answer(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - what a layer takes
        """Answer for every version's rows with that version's weights."""
        plain = _plain(self.module)
        weights = {
            each: self.lockstep.versions(f"{self.name}.{each}").of
            for each in (*dict(plain.named_parameters()), *_persistent(plain))
        }
        if self.is_head:
            given = tuple(self.batch.last_positions(each) for each in given)
        rows = sum(count for _, count in self.batch.counts)
        groups = self._groups(weights)
        if len(groups) > 1:
            given = tuple(_spread(each, rows) for each in given)
            named = {key: _spread(each, rows) for key, each in named.items()}
        parts: list[Any] = []
        for versions in groups:
            start, end = self.batch.span(versions[0])[0], self.batch.span(versions[-1])[1]
            parts.append(
                self._run_tokens(
                    {each: tensors[versions[0]] for each, tensors in weights.items()},
                    tuple(_cut(each, rows, start, end) for each in given),
                    {key: _cut(each, rows, start, end) for key, each in named.items()},
                    _Rows(self.batch.is_token[start:end], self._is_learned(versions)),
                )
            )
        if len(parts) == 1:
            return parts[0]
        if any(not isinstance(part, torch.Tensor) for part in parts):
            raise NotStreamable(f"{self.name} answers with more than one tensor")
        return torch.cat(parts)

    def _groups(self, weights: Mapping[str, Mapping[str, torch.Tensor]]) -> list[list[str]]:
        """Join neighbours that need not be told apart here."""
        groups: list[list[str]] = []
        before: tuple[object, ...] | None = None
        for version, count in self.batch.counts:
            if not count:
                continue
            is_other = self._has_learned(version) and not self._only_adds
            same = (is_other, *(id(tensors[version]) for tensors in weights.values()))
            if same == before:
                groups[-1].append(version)
            else:
                groups.append([version])
            before = same
        return groups

    @property
    def _only_adds(self) -> bool:
        """Whether what was learned is added to the base's answer, and asks nothing else of it."""
        return (
            isinstance(self.module, LoraLayer)
            and type(_plain(self.module)) is nn.Linear
            and not self.module.lora_variant
        )

    def _has_learned(self, version: str) -> bool:
        return isinstance(self.module, LoraLayer) and version in self.lockstep.with_adapter

    def _is_learned(self, versions: Sequence[str]) -> torch.Tensor:
        """Tell which rows of some versions go through what was learned."""
        counts = dict(self.batch.counts)
        return torch.tensor(
            [self._has_learned(version) for version in versions for _ in range(counts[version])]
        )

    def _run_tokens(
        self,
        weights: Mapping[str, torch.Tensor],
        given: tuple[Any, ...],
        named: Mapping[str, Any],
        rows: "_Rows",
    ) -> Any:  # noqa: ANN401 - what the layer answers
        """Leave padding out where every token is answered alone."""
        is_alone = (
            type(_plain(self.module)) in (nn.Linear, Conv1D) and len(given) == 1 and not named
        )
        is_token = rows.is_token
        if not is_alone or given[0].shape[:-1] != is_token.shape or bool(is_token.all()):
            return self._run(weights, given, named, rows.is_learned)
        is_learned = rows.is_learned[:, None].expand_as(is_token)[is_token]
        answers = self._run(weights, (given[0][is_token],), named, is_learned)
        padded = answers.new_zeros((*is_token.shape, answers.shape[-1]))
        padded[is_token] = answers
        return padded

    def _run(
        self,
        weights: Mapping[str, torch.Tensor],
        given: tuple[Any, ...],
        named: Mapping[str, Any],
        is_learned: torch.Tensor,
    ) -> Any:  # noqa: ANN401 - what the layer answers
        plain = _plain(self.module)
        is_plain_call = len(given) == 1 and not named
        if bool(is_learned.any()):
            if self._only_adds and is_plain_call:
                return self._add_learned(weights, given[0], is_learned)
            with holding([*self.lockstep.trained(self.name), *_placed(plain, weights)]):
                return type(self.module).forward(self.module, *given, **named)
        if type(plain) is nn.Linear and is_plain_call:
            return _linear(given[0], weights["weight"], weights.get("bias"))
        if type(plain) is nn.Embedding and is_plain_call:
            return functional.embedding(given[0], weights["weight"]).float()
        with holding(_placed(plain, weights)):
            return type(plain).forward(plain, *given, **named)

    def _add_learned(
        self, weights: Mapping[str, torch.Tensor], hidden: torch.Tensor, is_learned: torch.Tensor
    ) -> torch.Tensor:
        """Multiply all rows by the base's weight at once, then add what some have learned."""
        answers = _linear(hidden, weights["weight"], weights.get("bias"))
        # A layer that is called without its rows apart (a mixture's) has tokens of rows instead.
        is_learned = is_learned.repeat_interleave(len(hidden) // len(is_learned))
        own = answers[is_learned]
        with holding(self.lockstep.trained(self.name)), _answering(_plain(self.module), own):
            answers[is_learned] = type(self.module).forward(self.module, hidden[is_learned])
        return answers


@dataclass(frozen=True)
class _Rows:
    """What is known of the rows of one group."""

    is_token: torch.Tensor
    """Tells tokens from padding: (rows, longest)."""
    is_learned: torch.Tensor
    """Tells rows that go through what was learned."""


def _layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """List the outermost modules that hold weights themselves or have some in an adapter's way."""

    def within(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        is_wrapped = isinstance(module, LoraLayer | AuxiliaryTrainingWrapper)
        if is_wrapped or next(module.parameters(recurse=False), None) is not None:
            if not is_wrapped and any(isinstance(each, LoraLayer) for each in module.modules()):
                raise NotStreamable(f"{name} holds weights around an adapter's layer")
            yield name, module
            return
        for key, child in module.named_children():
            yield from within(f"{name}.{key}" if name else key, child)

    return within("", model)


def _plain(module: nn.Module) -> nn.Module:
    """Give the base's own module inside what PEFT has put around it."""
    if isinstance(module, LoraLayer):
        return module.get_base_layer()
    if isinstance(module, AuxiliaryTrainingWrapper):
        return module.original_module
    return module


def _persistent(module: nn.Module) -> tuple[str, ...]:
    own = {name for name, _ in module.named_parameters()}
    return tuple(name for name in module.state_dict() if name not in own)


def _placed(
    module: nn.Module, weights: Mapping[str, torch.Tensor]
) -> list[tuple[nn.Module, str, torch.Tensor]]:
    placed = []
    for name, tensor in weights.items():
        owner, _, attribute = name.rpartition(".")
        value = tensor.float() if tensor.is_floating_point() else tensor
        placed.append((module.get_submodule(owner), attribute, value))
    return placed


@contextmanager
def _answering(module: nn.Module, answer: torch.Tensor) -> Iterator[None]:
    """Let a module give an answer that is known."""
    module.forward = lambda _: answer
    try:
        yield
    finally:
        del module.forward


def _linear(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Apply a linear layer in float32, whatever its weight is stored as, a piece at a time."""
    answer = hidden.new_empty((*hidden.shape[:-1], weight.shape[0]))
    step = max(1, PIECE_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        piece = weight[start : start + step].float()
        offset = None if bias is None else bias[start : start + step].float()
        answer[..., start : start + step] = functional.linear(hidden, piece, offset)
    return answer


def _spread(value: Any, rows: int) -> Any:  # noqa: ANN401
    """Repeat for every row what the model computes once for all, such as positions."""
    if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == 1:
        return value.expand(rows, *value.shape[1:])
    return value


def _cut(value: Any, rows: int, start: int, end: int) -> Any:  # noqa: ANN401
    """Take some rows of a tensor whose first dimension is the rows, or rows times tokens."""
    if not isinstance(value, torch.Tensor) or not value.dim() or value.shape[0] % rows:
        return value
    each = value.shape[0] // rows
    return value[start * each : end * each]
