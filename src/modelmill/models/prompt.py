"""The prompt contract: how a prompt and a completion become token ids, once for all stages.

Training, calibration, inference and any server that applies the saved chat template get
equal ids.  Knows tokenizers; must not know templates over data fields, rows or stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from modelmill.models.chat import (
    answer_ids,
    assistant_spans,
    choose_template,
    plain_ids,
    render,
    token_spans,
    turn_end,
)
from modelmill.spec.errors import DataError
from modelmill.spec.names import PROMPT
from modelmill.spec.records import Message, Record, Row
from modelmill.spec.settings import ContractSettings


class Contract(Record):
    """The token-level rules of one model."""

    format: Literal[1] = 1
    max_length: int
    """Tokens of prompt and completion together, BOS and EOS included."""
    bos: int | None
    """The id put once in front; None where the family uses none."""
    eos: tuple[int, ...]
    """The first ends every completion; all of them stop generation."""
    pad: int
    """Fills up batches; may equal an EOS, since masks are made from lengths."""
    chat_template: str = ""
    """For conversations: what turns them into text."""

    def padded_within(self, embeddings: int) -> "Contract":
        """Fill up with the end of text where the model embeds no padding.

        Many tokenizers beside adapters have a pad that was added to no model; it is masked.
        """
        return self if self.pad < embeddings else self.model_copy(update={"pad": self.eos[0]})


@dataclass(frozen=True)
class EncodedRow:
    """One training example."""

    input_ids: list[int]
    """Prompt, completion and EOS."""
    prompt_length: int
    """So many leading ids are the prompt; everything after them is in the loss."""
    learned: tuple[tuple[int, int], ...] = ()
    """Spans of the prompt that are in the loss too: earlier turns of the assistant."""


def build_contract(
    tokenizer: PreTrainedTokenizerBase,
    settings: ContractSettings,
    generation_eos: tuple[int, ...],
) -> Contract:
    """Read the rules off a tokenizer.

    Args:
        tokenizer: the base model's.
        settings: what the spec decides.
        generation_eos: the ids the base's generation stops at, in its own order.

    Raises:
        DataError: neither names an end of text, so a model could never learn to stop; or
            the rows are conversations and the tokenizer has no chat template.
    """
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    eos = tuple(dict.fromkeys((*own, *generation_eos)))
    if not eos:
        raise DataError(
            "the tokenizer has no end-of-text token, so the model cannot learn to stop",
            at=str(tokenizer.name_or_path),
            fix="set eos_token in the model's tokenizer_config.json",
        )
    template, bos = "", _used_bos(tokenizer)
    if settings.format == "messages":
        template = choose_template(tokenizer, settings.chat_template, bos)
        eos = tuple(dict.fromkeys((*turn_end(tokenizer, template), *eos)))
    return Contract(
        max_length=settings.max_length,
        bos=bos,
        eos=eos,
        pad=eos[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        chat_template=template,
    )


def contract_for(
    folder: Path, tokenizer: PreTrainedTokenizerBase, settings: ContractSettings
) -> Contract:
    """Take the contract a model folder carries, or build a base model's.

    Raises:
        DataError: the folder's contract has another `max_length` than the run.
    """
    if not (folder / PROMPT).exists():
        return build_contract(tokenizer, settings, _generation_eos(folder))
    contract = load_contract(folder)
    if contract.max_length != settings.max_length:
        raise DataError(
            f"the model's prompt contract has max_length {contract.max_length}, "
            f"the run has {settings.max_length}",
            at=str(folder / PROMPT),
            fix="set data.max_length to the value the model was trained with",
        )
    return contract


def save_contract(contract: Contract, folder: Path) -> None:
    """Write the contract beside a model."""
    (folder / PROMPT).write_text(contract.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_contract(folder: Path) -> Contract:
    """Read the contract beside a model.

    Raises:
        DataError: it is not a contract this version knows.
    """
    path = folder / PROMPT
    try:
        return Contract.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"the prompt contract cannot be read: {error}", at=str(path)) from error


def encode_prompt(contract: Contract, tokenizer: PreTrainedTokenizerBase, row: Row) -> list[int]:
    """Turn what a row asks into ids, with BOS exactly once where the family uses it.

    Raises:
        ChatTemplateError: the template refuses the row's conversation.
    """
    if row.messages:
        return encode_text(contract, tokenizer, render_prompt(contract, tokenizer, row.messages))
    if row.is_text:
        # Nothing comes before its first token, so nothing predicts it.
        return encode_row(contract, tokenizer, row).input_ids[:1]
    return encode_text(contract, tokenizer, row.prompt)


def encode_text(contract: Contract, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Turn a prompt's text into ids, with BOS exactly once where the family uses it.

    BOS is put in front as text, as the chat template does: a tokenizer may treat what
    follows a special token differently from the beginning of a text.
    """
    return plain_ids(tokenizer, _behind_bos(contract, tokenizer, prompt))


def encode_row(contract: Contract, tokenizer: PreTrainedTokenizerBase, row: Row) -> EncodedRow:
    """Turn a row into ids.

    Prompt and completion are tokenised apart, so that the prompt's ids are those of inference
    whatever the completion starts with.

    Raises:
        ChatTemplateError: the template refuses the row's conversation.
    """
    if row.is_text:
        ids = [*encode_text(contract, tokenizer, row.completion), contract.eos[0]]
        return EncodedRow(ids, 1)
    head = encode_prompt(contract, tokenizer, row)
    if row.messages:
        tail = answer_ids(tokenizer, contract.chat_template, row.messages, contract.eos)
    else:
        tail = [*plain_ids(tokenizer, row.completion), contract.eos[0]]
    return EncodedRow([*head, *tail], len(head))


def encode_conversation(
    contract: Contract, tokenizer: PreTrainedTokenizerBase, row: Row
) -> EncodedRow:
    """Turn a conversation into ids of which every assistant turn is in the loss.

    Raises:
        ChatTemplateError: the template refuses the conversation, or rewrites earlier turns
            as it goes on, so that no place in the text is theirs.
    """
    last = encode_row(contract, tokenizer, row)
    text = _behind_bos(contract, tokenizer, render_prompt(contract, tokenizer, row.messages))
    skipped = len(text) - len(render_prompt(contract, tokenizer, row.messages))
    spans = assistant_spans(tokenizer, contract.chat_template, row.messages)
    moved = [(start + skipped, end + skipped) for start, end in spans]
    return replace(last, learned=token_spans(tokenizer, text, moved, contract.eos))


def windows(row: EncodedRow, length: int) -> list[EncodedRow]:
    """Cut a text into pieces of at most so many tokens; the first of each is not in the loss."""
    ids = row.input_ids
    pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
    return [EncodedRow(piece, 1) for piece in pieces if piece[1:]]


def _behind_bos(contract: Contract, tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    bos = "" if contract.bos is None else str(tokenizer.convert_ids_to_tokens(contract.bos))
    return text if text.startswith(bos) else bos + text


def render_prompt(
    contract: Contract, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> str:
    """Write out a conversation up to where its last turn, the assistant's, begins.

    Raises:
        ChatTemplateError: the template refuses it.
    """
    return render(tokenizer, contract.chat_template, messages[:-1], ask=True)


def contract_into_tokenizer(
    contract: Contract, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig
) -> None:
    """Write the contract where servers look for it, in place.

    Of rows that are prompts, the chat template passes the last user message verbatim: a
    server that is sent the rendered prompt as a message produces the ids of `encode_prompt`.
    Of conversations, it is the template they were learned in.
    """
    tokenizer.chat_template = contract.chat_template or _LAST_USER_MESSAGE.replace(
        "{bos}", "" if contract.bos is None else _BOS_ONCE
    )
    # None, or one that the model has no embedding for.
    if tokenizer.pad_token_id != contract.pad:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(contract.pad)
    generation.bos_token_id = contract.bos
    generation.eos_token_id = list(contract.eos)
    generation.pad_token_id = contract.pad


_LAST_USER_MESSAGE: Final = (
    "{%- for message in messages if message['role'] == 'user' -%}"
    "{%- if loop.last -%}{bos}{{ message['content'] }}{%- endif -%}"
    "{%- endfor -%}"
)
_BOS_ONCE: Final = (
    "{%- if not message['content'].startswith(bos_token) -%}{{ bos_token }}{%- endif -%}"
)


class _GenerationDefaults(BaseModel):
    """The one field of `generation_config.json` and `config.json` that matters here."""

    model_config = ConfigDict(extra="ignore")

    eos_token_id: int | tuple[int, ...] | None = None


def _generation_eos(folder: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.exists():
            continue
        found = _GenerationDefaults.model_validate_json(path.read_bytes()).eos_token_id
        if found is not None:
            return (found,) if isinstance(found, int) else found
    return ()


def _used_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Ask the tokenizer itself: many families name a BOS that they never put anywhere."""
    bos: int | None = tokenizer.bos_token_id
    if bos is None:
        return None
    return bos if tokenizer("a")["input_ids"][:1] == [bos] else None
