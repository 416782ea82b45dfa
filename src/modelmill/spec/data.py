"""What a model learns from and is judged on."""

from collections.abc import Mapping
from typing import Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from modelmill.spec.closed import FieldName, Fraction, Spec
from modelmill.spec.sources import DataSource
from modelmill.spec.template import template_fields


class WeightedSource(Spec):
    """One of several sources of training rows."""

    source: DataSource
    """A file, a folder or a pattern, as for `train` itself."""
    weight: float = Field(1.0, gt=0, le=100)
    """How often each row is taken: 2 is twice, 0.5 a seeded half, 1.5 all and a seeded half."""


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
    train: DataSource | tuple[WeightedSource, ...] | None = None
    """JSONL, CSV, Parquet or, for `text`, `.txt`: a file or a folder, local, `s3://bucket/key` or
    `hf:datasets/org/name@revision/path`; or a list of them with weights.  Needed to fine-tune or
    to calibrate."""
    eval: Fraction | DataSource | None = 0.05
    """A seeded share of train, or a source: picks the best checkpoint and the base's prompt."""
    test: DataSource
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

    @field_validator("train")
    @classmethod
    def _one_source_is_not_a_list(
        cls, train: str | tuple[WeightedSource, ...] | None
    ) -> str | tuple[WeightedSource, ...] | None:
        """Let one meaning have one form, and so one key."""
        if not isinstance(train, tuple):
            return train
        if not train:
            raise ValueError("the list is empty")
        named = [each.source for each in train]
        if len(set(named)) != len(named):
            twice = next(name for name in named if named.count(name) > 1)
            msg = f"'{twice}' stands twice; give it the sum of the weights"
            raise ValueError(msg)
        return named[0] if len(train) == 1 and train[0].weight == 1 else train

    def train_sources(self) -> tuple[WeightedSource, ...]:
        """List the sources of training rows, however they were written."""
        if isinstance(self.train, str):
            return (WeightedSource(source=self.train),)
        return self.train or ()

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
