"""Conversations as text: a tokenizer's chat template, and where in its text a turn stands.

Knows tokenizers and templates; must not know rows or the loss.  Templates run in the sandbox that
has checked them, `store/sandbox.py`, and nowhere else.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal

from transformers import PreTrainedTokenizerBase

from modelmill.spec.errors import DataError
from modelmill.spec.records import Message
from modelmill.store.templates import ChatTemplate, TemplateFailed

PLAIN: Final = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}"
    "{{ '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"
)
"""For a base model that has no template: the roles are plain text and every answer ends with
the end of text, so there is nothing that the model's embeddings do not know yet."""

_SHOWN_CHARACTERS = 200


class ChatTemplateError(ValueError):
    """The template and a conversation do not fit; the text says why, in one sentence."""


def choose_template(
    tokenizer: PreTrainedTokenizerBase, asked: Literal["tokenizer", "plain"], bos: int | None
) -> str:
    """Take the tokenizer's own template, or ours for a model without one.

    Args:
        tokenizer: the base model's.
        asked: which of the two.
        bos: the id that the family puts in front; ours writes it as well.

    Raises:
        DataError: the tokenizer has none.
    """
    if asked == "plain":
        return PLAIN if bos is None else "{{- bos_token -}}" + PLAIN
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise DataError(
            "the model's tokenizer has no chat template, so conversations cannot be written out",
            at=str(tokenizer.name_or_path),
            fix="set data.chat_template: plain, or name the instruction-tuned model",
        ) from error


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Message],
    *,
    ask: bool,
) -> str:
    """Write out a conversation; with `ask`, up to where the assistant's next turn begins.

    Raises:
        ChatTemplateError: the template refuses it.
    """
    try:
        return _compiled(template).render(
            [{"role": each.role, "content": each.content} for each in messages],
            ask=ask,
            special_tokens=tokenizer.special_tokens_map,
        )
    except TemplateFailed as error:
        said = str(error)[:_SHOWN_CHARACTERS]
        raise ChatTemplateError(f"the chat template refuses it: {said}") from error


@lru_cache(maxsize=8)
def _compiled(template: str) -> ChatTemplate:
    return ChatTemplate(template)


def turn_end(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[int, ...]:
    """Find the token that ends an assistant's turn; empty where the template writes none."""
    asked = (Message(role="user", content="a"),)
    answer = "b"
    try:
        head = render(tokenizer, template, asked, ask=True)
        whole = render(
            tokenizer, template, (*asked, Message(role="assistant", content=answer)), ask=False
        )
    except ChatTemplateError:
        return ()
    before, found, behind = whole[len(head) :].rpartition(answer)
    if not whole.startswith(head) or not found or before.strip():
        return ()
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return tuple(each for each in plain_ids(tokenizer, behind)[:1] if each in special)


def answer_ids(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Message],
    ends: Sequence[int],
) -> list[int]:
    """Turn the last turn into ids as the template writes it, up to its end of turn.

    Where the template writes no end, or writes the turn elsewhere than where it asks for it,
    the turn's text and the first of `ends` stand for it.

    Raises:
        ChatTemplateError: the template refuses the conversation.
    """
    head = render(tokenizer, template, messages[:-1], ask=True)
    whole = render(tokenizer, template, messages, ask=False)
    if whole.startswith(head):
        ids = plain_ids(tokenizer, whole[len(head) :])
        stops = [place for place, each in enumerate(ids) if each in ends]
        if stops:
            return ids[: stops[0] + 1]
    return [*plain_ids(tokenizer, messages[-1].content), ends[0]]


def assistant_spans(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: Sequence[Message]
) -> tuple[tuple[int, int], ...]:
    """Find every assistant turn but the last in the text that asks for the last one.

    Returns:
        Character spans, each from where the template asks for the turn to where it goes on
        with the next one, so its end of turn is inside.

    Raises:
        ChatTemplateError: the template refuses the conversation or rewrites earlier turns.
    """
    whole = render(tokenizer, template, messages[:-1], ask=True)
    spans = []
    for place, message in enumerate(messages[:-1]):
        if message.role != "assistant":
            continue
        head = render(tokenizer, template, messages[:place], ask=True)
        turn = render(tokenizer, template, messages[: place + 1], ask=False)
        if not (whole.startswith(turn) and turn.startswith(head)):
            raise ChatTemplateError(
                f"the chat template writes turn {place + 1} anew when the conversation goes on"
            )
        spans.append((len(head), len(turn)))
    return tuple(spans)


def token_spans(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    spans: Sequence[tuple[int, int]],
    ends: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """Turn character spans into spans of the text's tokens, up to the first end of turn.

    Raises:
        ChatTemplateError: a turn shares a token with what is around it or has no end, or the
            tokenizer cannot say where its tokens stand.
    """
    if not spans:
        return ()
    if not tokenizer.is_fast:
        raise ChatTemplateError("this tokenizer cannot say where in a text its tokens stand")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    found = []
    for start, end in spans:
        inside = [
            place for place, (first, last) in enumerate(offsets) if start <= first and last <= end
        ]
        torn = [first for first, last in offsets if first < start < last]
        stops = [place for place in inside if encoded["input_ids"][place] in ends]
        if torn or not inside:
            raise ChatTemplateError("a turn begins inside a token of the text before it")
        if not stops:
            raise ChatTemplateError("the chat template does not end the assistant's turns")
        found.append((inside[0], stops[0] + 1))
    return tuple(found)


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Turn text into ids and add nothing."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
