"""The forms a prompt can have: the contract's, and the base model's own.

A form turns a prompt into ids and what was generated into an answer.  Knows tokenizers;
must not know models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from transformers import PreTrainedTokenizerBase

from modelmill.models.chat import choose_template, plain_ids, render
from modelmill.models.prompt import Contract, encode_prompt, encode_text
from modelmill.spec.records import Message, Row

SEPARATOR: Final = "\n\n"
"""Between the examples of a few-shot prompt."""


class Form(Protocol):
    """One way to ask."""

    @property
    def name(self) -> str:
        """`contract`, `chat` or `3-shot`; what the report calls it."""
        ...

    @property
    def max_prompt_tokens(self) -> int | None:
        """A longer prompt is not answered; None where only the model's own limit counts."""
        ...

    @property
    def stop_text(self) -> str | None:
        """Where it appears in an answer, the answer has ended."""
        ...

    def encode(self, row: Row) -> list[int]:
        """Turn what a row asks into ids.

        Raises:
            ChatTemplateError: the row's conversation does not fit the form's template.
        """
        ...


@dataclass(frozen=True)
class ContractForm:
    """What the model was, or would have been, trained on."""

    contract: Contract
    tokenizer: PreTrainedTokenizerBase
    name: str = "contract"
    stop_text: str | None = None

    @property
    def max_prompt_tokens(self) -> int | None:
        """No row of the training form is longer."""
        return self.contract.max_length

    def encode(self, row: Row) -> list[int]:
        """Put BOS in front where the family uses it, and nothing else."""
        return encode_prompt(self.contract, self.tokenizer, row)


@dataclass(frozen=True)
class ChatForm:
    """The prompt as a user's message in the model's own chat template."""

    tokenizer: PreTrainedTokenizerBase
    name: str = "chat"
    max_prompt_tokens: int | None = None
    stop_text: str | None = None

    def encode(self, row: Row) -> list[int]:
        """Render the template up to where the model's turn begins."""
        asked = row.messages[:-1] or (Message(role="user", content=row.prompt),)
        template = choose_template(self.tokenizer, "tokenizer", None)
        return plain_ids(self.tokenizer, render(self.tokenizer, template, asked, ask=True))


@dataclass(frozen=True)
class FewShotChatForm:
    """A conversation after a few solved ones, as turns that came before it.

    For a model without a template of its own: what it writes after its answer, the next
    turn's beginning, ends it.
    """

    contract: Contract
    tokenizer: PreTrainedTokenizerBase
    shots: tuple[Row, ...]
    max_prompt_tokens: int | None = None

    @property
    def name(self) -> str:
        """`3-shot` for three examples."""
        return f"{len(self.shots)}-shot"

    @property
    def stop_text(self) -> str | None:
        """What the template puts between an answer and the next turn, as it is decoded."""
        answered = (Message(role="user", content="a"), Message(role="assistant", content="b"))
        template = self.contract.chat_template
        whole = render(self.tokenizer, template, answered, ask=False)
        more = render(self.tokenizer, template, (*answered, answered[0]), ask=False)
        behind = whole.rpartition("b")[2] + more[len(whole) :].rpartition("a")[0]
        ids = plain_ids(self.tokenizer, behind)
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).rstrip() or None

    def encode(self, row: Row) -> list[int]:
        """Render the examples' turns and the row's; its system turn comes first."""
        turns = row.messages[:-1]
        first = tuple(each for each in turns if each.role == "system")
        solved = tuple(
            each for shot in self.shots for each in shot.messages if each.role != "system"
        )
        asked = (*first, *solved, *(each for each in turns if each.role != "system"))
        text = render(self.tokenizer, self.contract.chat_template, asked, ask=True)
        return encode_text(self.contract, self.tokenizer, text)


@dataclass(frozen=True)
class FewShotForm:
    """The prompt after a few solved examples, as plain text.

    A model that goes on after its answer begins another example; the answer is cut where
    the separator and what all examples' prompts begin with appear.
    """

    contract: Contract
    tokenizer: PreTrainedTokenizerBase
    shots: tuple[Row, ...]
    max_prompt_tokens: int | None = None

    @property
    def name(self) -> str:
        """`3-shot` for three examples."""
        return f"{len(self.shots)}-shot"

    @property
    def stop_text(self) -> str | None:
        """The separator and the common beginning of the prompts, up to its first line's end."""
        common = _common_start([shot.prompt for shot in self.shots])
        return SEPARATOR + common.partition("\n")[0]

    def encode(self, row: Row) -> list[int]:
        """Render the examples and the prompt."""
        solved = [shot.prompt + shot.completion for shot in self.shots]
        text = SEPARATOR.join([*solved, row.prompt])
        return encode_text(self.contract, self.tokenizer, text)


def cut(text: str, form: Form) -> str:
    """End an answer where the form says that it has ended."""
    return text if form.stop_text is None else text.partition(form.stop_text)[0]


def own_forms(
    contract: Contract, tokenizer: PreTrainedTokenizerBase, shots: Sequence[Row]
) -> list[Form]:
    """List the base model's own forms that exist; never empty if there is one example."""
    forms: list[Form] = []
    if tokenizer.chat_template is not None:
        forms.append(ChatForm(tokenizer))
    if shots and shots[0].messages:
        forms.append(FewShotChatForm(contract, tokenizer, tuple(shots)))
    elif shots:
        forms.append(FewShotForm(contract, tokenizer, tuple(shots)))
    return forms


def _common_start(texts: Sequence[str]) -> str:
    for position, letters in enumerate(zip(*texts, strict=False)):
        if len(set(letters)) > 1:
            return texts[0][:position]
    return min(texts, key=len)
