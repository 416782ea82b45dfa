"""What a model learns from and is judged on."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from modelmill.spec.closed import FieldName, Fraction, Spec
from modelmill.spec.template import template_fields


def _source(source: str) -> str:
    scheme, separator, rest = source.partition("://")
    if not separator and source.startswith("hf:"):
        msg = (
            "this version does not read the hub; download the model or data and name "
            "the folder, the file or an s3:// address"
        )
        raise ValueError(msg)
    if separator and scheme != "s3":
        msg = f"'{scheme}://' is not a kind of source; use s3:// or a local path"
        raise ValueError(msg)
    if separator and (not rest.partition("/")[0] or not rest.partition("/")[2]):
        msg = "an s3 source is s3://bucket/key"
        raise ValueError(msg)
    return source


Source = Annotated[str, AfterValidator(_source)]
"""An address that this version can read."""


class TemplateSpec(Spec):
    """How a row's fields become the text the model sees, in `str.format` braces."""

    prompt: str = Field(min_length=1)
    """What the model is given, such as `### Question\\n{question}\\n### SQL\\n`."""
    completion: str = Field(min_length=1)
    """What it learns to answer, such as `{answer}`."""

    @model_validator(mode="after")
    def _fields_are_plain_names(self) -> Self:
        for text in (self.prompt, self.completion):
            template_fields(text)
        return self


Format = Literal["prompt_completion", "messages", "text"]


class DataSpec(Spec):
    """What the model learns from and what it is judged on."""

    format: Format = "prompt_completion"
    """`prompt_completion`: the template makes a prompt and a completion of each row.
    `messages`: a row holds a conversation, `{"messages": [{"role": ..., "content": ...}]}`,
    that ends with the assistant.  `text`: a row is text to go on with; only `nll` can judge."""
    train: Source | None = None
    """A JSONL file or `s3://` object; needed to fine-tune or to calibrate."""
    eval: Fraction | Source | None = 0.05
    """A seeded share of train, or a source: picks the best checkpoint and the base's prompt."""
    test: Source
    """Only infer, report and gate ever see it."""
    template: TemplateSpec | None = None
    """For `prompt_completion`: how a row becomes text."""
    dataset_text_field: FieldName = "text"
    """For `text`: the field that holds it."""
    chat_template: Literal["tokenizer", "plain"] = "tokenizer"
    """For `messages`: the tokenizer's own, or `plain` for a model without one: each turn behind
    `<|role|>` and ended by the end of text, so that no special token has to be learned."""
    loss_on: Literal["assistant", "last_turn"] = "assistant"
    """For `messages`: learn from every assistant turn, or from the last one only, which is
    what a template that rewrites earlier turns allows."""
    max_length: int = Field(1024, ge=8, le=1_048_576)
    """Tokens of prompt and completion together."""
    too_long: Literal["error", "drop", "split"] = "error"
    """What happens to a training row over `max_length`; dropped rows are counted.  `split`, for
    `text` only: cut into pieces of that length."""

    @model_validator(mode="after")
    def _fields_belong_to_the_format(self) -> Self:
        wrong = []
        if self.format == "prompt_completion" and self.template is None:
            wrong.append("template: required for format prompt_completion")
        wrong += [
            f"{name}: has no meaning for format {self.format}"
            for name, formats in _ONLY_FOR.items()
            if self.format not in formats and name in self.changed()
        ]
        if self.too_long == "split" and self.format != "text":
            wrong.append("too_long: only text can be split; a cut answer would be a wrong one")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


_ONLY_FOR: Final[Mapping[str, tuple[Format, ...]]] = {
    "template": ("prompt_completion",),
    "dataset_text_field": ("text",),
    "chat_template": ("messages",),
    "loss_on": ("messages",),
}
