"""What a user asks for: the closed, frozen model of `run.yaml`.

Field names are trl's and PEFT's own.  Knows nothing about files, stores or devices;
`loading` reads documents into it and `plan` turns it into stages.
"""

import re
from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from modelmill.spec.names import VARIANT_LIMIT

LARGEST_INTEGER = 2**53 - 1
"""Helm reads numbers as float64; a larger integer would change on the way."""

Fraction = Annotated[float, Field(gt=0, lt=1)]
FieldName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Dtype = Literal["float32", "float16", "bfloat16"]


class Spec(BaseModel):
    """A closed part of the spec."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class ModelSpec(Spec):
    """The base model."""

    source: str = Field(min_length=1)
    """A local folder, or `s3://bucket/prefix`: safetensors, config and tokenizer."""
    note: str = ""
    """A sentence about the model that the report repeats; changes no result."""

    @field_validator("source")
    @classmethod
    def _source_is_reachable(cls, source: str) -> str:
        return _source(source)


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


def template_fields(template: str) -> tuple[str, ...]:
    """List the fields a template names, in order of appearance.

    Only `{name}`, `{{` and `}}` have a meaning; attribute access, indexing and format
    specifications are refused, so that a template can neither call code nor reach into
    objects.

    Raises:
        ValueError: a brace is unmatched or holds something other than a name.
    """
    names: list[str] = []
    for match in _BRACES.finditer(template):
        token = match.group()
        if token in ("{{", "}}"):
            continue
        name = token[1:-1] if len(token) > 1 else ""
        if not _FIELD.fullmatch(name):
            shown = token if len(token) > 1 else f"a single '{token}'"
            msg = f"{shown} is not a field name in braces; write '{{{{' or '}}}}' for a brace"
            raise ValueError(msg)
        if name not in names:
            names.append(name)
    return tuple(names)


def fill_template(template: str, fields: dict[str, str]) -> str:
    """Replace every `{name}` by its field; the fields' own braces stay as they are."""

    def value_of(match: re.Match[str]) -> str:
        token = match.group()
        return token[0] if token in ("{{", "}}") else fields[token[1:-1]]

    return _BRACES.sub(value_of, template)


_BRACES = re.compile(r"\{\{|\}\}|\{[^{}]*\}|\{|\}")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class DataSpec(Spec):
    """What the model learns from and what it is judged on."""

    format: Literal["prompt_completion"] = "prompt_completion"
    """`prompt_completion`: the template makes a prompt and a completion of each row."""
    train: str | None = None
    """A JSONL file or `s3://` object; needed to fine-tune or to calibrate."""
    eval: Fraction | str | None = 0.05
    """A seeded share of train, or a source: picks the best checkpoint and the base's prompt."""
    test: str
    """Only infer, report and gate ever see it."""
    template: TemplateSpec
    max_length: int = Field(1024, ge=8, le=1_048_576)
    """Tokens of prompt and completion together."""
    too_long: Literal["error", "drop"] = "error"
    """What happens to a training row over `max_length`; dropped rows are counted."""

    @field_validator("train", "test")
    @classmethod
    def _sources_are_reachable(cls, source: str | None) -> str | None:
        return None if source is None else _source(source)

    @field_validator("eval")
    @classmethod
    def _eval_is_reachable(cls, source: float | str | None) -> float | str | None:
        return _source(source) if isinstance(source, str) else source


class FinetuneSpec(Spec):
    """How the model learns.  QLoRA is `method: lora` with `load_in: nf4`."""

    method: Literal["lora"] = "lora"
    """`lora`: small matrices beside frozen weights; megabytes to store, merged later."""
    load_in: Literal["nf4"] | None = None
    """Hold the frozen weights in 4 bits (double quantization on): a quarter of the memory,
    slower steps, and a base that differs slightly from the one merged onto."""
    r: int = Field(16, ge=1, le=1024)
    """Width of the adapter matrices; doubling it doubles adapter and optimizer memory."""
    lora_alpha: int = Field(32, ge=1, le=LARGEST_INTEGER)
    """The adapter's weight is `lora_alpha / r`."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which layers get an adapter; fewer is faster and weaker."""
    num_train_epochs: float = Field(1.0, gt=0, le=1000)
    learning_rate: float = Field(2e-4, gt=0, lt=1)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: float = Field(0.03, ge=0, le=LARGEST_INTEGER)
    """Below 1: a share of all steps."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_size: int = Field(16, ge=1, le=65536)
    """Rows per optimizer step, whatever the micro-batch and the number of devices."""
    eval_steps: int | float = Field(0.1, gt=0, le=LARGEST_INTEGER)
    """How often the eval split is scored; below 1: a share of all steps."""
    micro_batch_size: Literal["auto"] | int = "auto"
    """Rows per forward pass: memory, not mathematics."""
    gradient_checkpointing: bool = False
    """Recompute activations: about a third slower, far less memory."""
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """`auto` measures the device for a moment and says why in the log."""

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Self:
        if isinstance(self.micro_batch_size, int):
            if self.micro_batch_size < 1:
                msg = "micro_batch_size must be 'auto' or at least 1"
                raise ValueError(msg)
            if self.batch_size % self.micro_batch_size:
                msg = (
                    f"batch_size {self.batch_size} is not a multiple of "
                    f"micro_batch_size {self.micro_batch_size}"
                )
                raise ValueError(msg)
        return self


class MergeSpec(Spec):
    """How the adapter becomes part of the weights."""

    onto: Literal["original"] = "original"
    """The unquantized base, also after QLoRA."""
    dtype: Dtype = "bfloat16"
    """Of the merged weights as written; the sum itself is taken in float32."""


class CalibrationSpec(Spec):
    """What the quantizer looks at while it rounds."""

    tokens: int = Field(131_072, ge=128, le=LARGEST_INTEGER)
    """At most this many, taken from training rows in the contract's form."""


class GptqSpec(Spec):
    """GPTQ: rounds column by column and lets the next columns make up for the error."""

    method: Literal["gptq"]
    bits: Literal[2, 3, 4, 8] = 4
    """Per weight, scales not counted."""
    sym: bool = True
    """Symmetric around zero; what vLLM and auto-gptq read fastest."""
    desc_act: bool = False
    group_size: Literal["auto", 32, 64, 128] = "auto"
    """Weights that share one scale; `auto` takes the largest that divides every layer."""
    damp_percent: float = Field(0.05, gt=0, lt=1)
    calibration: CalibrationSpec = CalibrationSpec()
    name: str | None = None
    """Of the model in stages and tables; made from the method when absent."""


class BitsandbytesSpec(Spec):
    """bitsandbytes: rounds to a fixed code book without looking at data."""

    method: Literal["bitsandbytes"]
    type: Literal["nf4"] = "nf4"
    double_quant: bool = True
    """Store the scales in 8 bits too: 0.4 bits per weight less."""
    name: str | None = None
    """Of the model in stages and tables; made from the method when absent."""


QuantizeSpec = Annotated[GptqSpec | BitsandbytesSpec, Field(discriminator="method")]


def variant_of(spec: GptqSpec | BitsandbytesSpec) -> str:
    """Name a quantized model after what it is, unless the user named it."""
    if spec.name is not None:
        return spec.name
    return f"gptq-{spec.bits}" if isinstance(spec, GptqSpec) else spec.type


class NllMetric(Spec):
    """Mean negative log-likelihood of the reference answer, in nats per token."""


class ExactMatchMetric(Spec):
    """Share of answers equal to the reference after normalising."""


class SqlExecutionMetric(Spec):
    """Share of answers that return the reference's rows on databases built to tell."""

    schema_field: FieldName = Field(alias="schema")
    """The data field that holds the `CREATE TABLE` statements."""

    model_config = ConfigDict(serialize_by_alias=True)


class MetricsSpec(Spec):
    """Which scores each model gets."""

    nll: NllMetric | None = NllMetric()
    exact_match: ExactMatchMetric | None = None
    sql_execution: SqlExecutionMetric | None = None

    def names(self) -> tuple[str, ...]:
        """List the metrics that will be computed."""
        every = (
            ("nll", self.nll),
            ("exact_match", self.exact_match),
            ("sql_execution", self.sql_execution),
        )
        return tuple(name for name, metric in every if metric is not None)


class InferSpec(Spec):
    """How every model answers the test rows."""

    max_new_tokens: int = Field(128, ge=1, le=65536)
    """An answer ends at the model's own end of text, or here."""
    batch_size: int = Field(16, ge=1, le=4096)
    """One batching for all models of a run: quantized kernels round differently by batch."""
    dtype: Literal["auto"] | Dtype = "auto"
    """One compute dtype for all models; `auto` is the profile's."""
    shots: int = Field(3, ge=1, le=16)
    """Examples in the base's own few-shot prompt."""
    metrics: MetricsSpec = MetricsSpec()


class GateSpec(Spec):
    """Which models must not be worse than another one."""

    models: tuple[str, ...] = Field(min_length=1)
    """Those that must hold; the others get a verdict too."""
    metric: Literal["nll", "exact_match", "sql_execution"] = "nll"
    """What is compared, row by row; one of `infer.metrics`."""
    against: str = "merged"
    """The model they are compared with."""
    max_worse: float = Field(ge=0)
    """Absolute, in the metric's own unit."""


class ReportSpec(Spec):
    """What the report shows."""

    samples: int = Field(5, ge=0, le=200)
    """Test rows shown with every model's answer; 0 where answers must not leave the data."""
    slice: FieldName | None = None
    """A data field whose values are scored apart."""


class RunSpec(Spec):
    """One model run."""

    model: ModelSpec
    data: DataSpec
    finetune: FinetuneSpec | None = None
    merge: MergeSpec = MergeSpec()
    quantize: tuple[QuantizeSpec, ...] = ()
    infer: InferSpec = InferSpec()
    gate: GateSpec | None = None
    report: ReportSpec = ReportSpec()
    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Decides splits, shuffling, initial adapters, few-shot examples and resampling."""

    def models(self) -> tuple[str, ...]:
        """List the rows of the comparison table."""
        tuned = ("merged",) if self.finetune is not None else ()
        return ("base", *tuned, *(variant_of(spec) for spec in self.quantize))

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        wrong = [*self._naming_problems(), *self._data_problems(), *self._gate_problems()]
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def _naming_problems(self) -> list[str]:
        variants = [variant_of(spec) for spec in self.quantize]
        wrong = [
            f"quantize: two models are called '{name}'; give one a `name:`"
            for name, count in Counter(variants).items()
            if count > 1
        ]
        for name in variants:
            if name in ("base", "base-own", "merged"):
                wrong.append(f"quantize: the name '{name}' is taken by another model")
            elif len(name) > VARIANT_LIMIT or not _VARIANT.fullmatch(name):
                wrong.append(
                    f"quantize: the name '{name}' must be at most {VARIANT_LIMIT} "
                    "lower-case letters, digits and dashes, and start with a letter"
                )
        return wrong

    def _data_problems(self) -> list[str]:
        if self.data.train is not None:
            return []
        wrong = []
        if self.finetune is not None:
            wrong.append("data.train: finetune needs training rows")
        if any(isinstance(spec, GptqSpec) for spec in self.quantize):
            wrong.append("data.train: gptq needs training rows to calibrate on")
        return wrong

    def _gate_problems(self) -> list[str]:
        if self.gate is None:
            return []
        known = self.models()
        wrong = [
            f"gate.models: '{name}' is not a model of this run ({', '.join(known)})"
            for name in self.gate.models
            if name not in known
        ]
        if self.gate.against not in known:
            wrong.append(
                f"gate.against: '{self.gate.against}' is not a model of this run "
                f"({', '.join(known)})"
            )
        if self.gate.against in self.gate.models:
            wrong.append(f"gate.models: '{self.gate.against}' cannot be gated against itself")
        if self.gate.metric not in self.infer.metrics.names():
            wrong.append(
                f"gate.metric: '{self.gate.metric}' is not computed; add it to infer.metrics"
            )
        return wrong


_VARIANT = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


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
