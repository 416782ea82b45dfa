"""What a model learns from and is judged on."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from modelmill.spec.closed import Fraction, Spec
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


class DataSpec(Spec):
    """What the model learns from and what it is judged on."""

    format: Literal["prompt_completion"] = "prompt_completion"
    """`prompt_completion`: the template makes a prompt and a completion of each row."""
    train: Source | None = None
    """A JSONL file or `s3://` object; needed to fine-tune or to calibrate."""
    eval: Fraction | Source | None = 0.05
    """A seeded share of train, or a source: picks the best checkpoint and the base's prompt."""
    test: Source
    """Only infer, report and gate ever see it."""
    template: TemplateSpec
    max_length: int = Field(1024, ge=8, le=1_048_576)
    """Tokens of prompt and completion together."""
    too_long: Literal["error", "drop"] = "error"
    """What happens to a training row over `max_length`; dropped rows are counted."""
