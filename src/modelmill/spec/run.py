"""What a user asks for: the closed, frozen model of `run.yaml`.

Field names are trl's and PEFT's own.  Knows nothing about files, stores or devices;
`loading` reads documents into it and `plan` turns it into stages.
"""

import re
from collections import Counter
from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from modelmill.spec.closed import Dtype, FieldName, Spec
from modelmill.spec.data import DataSpec
from modelmill.spec.finetune import FinetuneSpec
from modelmill.spec.infer import GateSpec, InferSpec
from modelmill.spec.names import VARIANT_LIMIT
from modelmill.spec.quantize import CalibratedSpec, QatSpec, QuantizeSpec, variant_of
from modelmill.spec.sources import ModelSource


class ModelSpec(Spec):
    """The base model."""

    source: ModelSource = Field(min_length=1)
    """A local folder, `s3://bucket/prefix` or `hf:org/name@revision`: safetensors, config and
    tokenizer.  Without a revision, the default branch of the hub as it is when the run is
    planned."""
    note: str = ""
    """A sentence about the model that the report repeats; changes no result."""


class MergeSpec(Spec):
    """How the adapter becomes part of the weights."""

    onto: Literal["original", "dequantized"] = "original"
    """`original`: the unquantized base, also after QLoRA.  `dequantized`: what was left of it in
    the 4 bits that the adapter was trained on.  The report tells how far the merged model is from
    the one that was trained."""
    dtype: Dtype = "bfloat16"
    """Of the merged weights as written; the sum itself is taken in float32.  A full fine-tune
    is written in it too, but for one with `qat`, which needs float32."""


class ReportSpec(Spec):
    """What the report shows."""

    samples: int = Field(5, ge=0, le=200)
    """Test rows shown with every model's answer, and at most as many of those that flipped
    between two models; 0 where answers must not leave the data."""
    slice: FieldName | Annotated[tuple[FieldName, ...], Field(min_length=1)] | None = None
    """A data field whose values are scored apart, or a list of them; numbers with more than 12
    different values are put into five ranges."""

    @field_validator("slice", mode="after")
    @classmethod
    def _one_form(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        """Write one field as itself, so that a list of one means the same and digests alike."""
        if not isinstance(value, tuple):
            return value
        if len(set(value)) < len(value):
            raise ValueError("a field is named twice")
        return value[0] if len(value) == 1 else value


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
        adapter = ("adapter",) if self.infer.adapter else ()
        tuned = (self.quantized_from,) if self.finetune is not None else ()
        return ("base", *adapter, *tuned, *(variant_of(spec) for spec in self.quantize))

    @property
    def quantized_from(self) -> str:
        """The model that is quantized, and that every other is held against."""
        if self.finetune is None:
            return "base"
        return "finetuned" if self.finetune.method == "full" else "merged"

    @field_validator("quantize", mode="after")
    @classmethod
    def _packed_as_trained(
        cls, value: tuple[QuantizeSpec, ...], info: ValidationInfo
    ) -> tuple[QuantizeSpec, ...]:
        """Say at `method: qat` too what `finetune.qat` says, so that it stands for itself."""
        tuned: FinetuneSpec | None = info.data.get("finetune")
        if tuned is None or tuned.qat is None:
            return value
        grid = tuned.qat
        return tuple(each.packing(grid) if isinstance(each, QatSpec) else each for each in value)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        wrong = [
            *self._naming_problems(),
            *self._data_problems(),
            *self._merge_problems(),
            *self._qat_problems(),
            *self._infer_problems(),
            *self._gate_problems(),
        ]
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
            if name in _TAKEN:
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
        if self.finetune is not None and self.finetune.is_trained:
            wrong.append("data.train: finetune needs training rows")
        calibrated = [spec for spec in self.quantize if isinstance(spec, CalibratedSpec)]
        wrong += [
            f"data.train: {method} needs training rows to calibrate on, or a calibration.text alone"
            for method in dict.fromkeys(
                spec.method for spec in calibrated if spec.calibration.has_rows
            )
        ]
        return wrong

    def _merge_problems(self) -> list[str]:
        held_in = None if self.finetune is None else self.finetune.load_in
        if self.merge.onto == "dequantized" and held_in not in ("nf4", "fp4"):
            return ["merge.onto: dequantized needs a base that was trained on in 4 bits"]
        return []

    def _qat_problems(self) -> list[str]:
        is_aware = self.finetune is not None and self.finetune.qat is not None
        wrong = []
        if is_aware and self.merge.dtype == "float16":
            wrong.append(
                "merge.dtype: finetune.qat writes float32, for 16 bits do not hold what it has "
                "rounded; leave it out"
            )
        if not is_aware and any(isinstance(spec, QatSpec) for spec in self.quantize):
            wrong.append(
                "quantize: method qat packs what was rounded in training; add "
                "`finetune: {method: full, qat: {}}`, or round a finished model with rtn or gptq"
            )
        return wrong

    def _infer_problems(self) -> list[str]:
        wrong = []
        if self.infer.adapter and (self.finetune is None or self.finetune.method == "full"):
            wrong.append("infer.adapter: this run has no adapter")
        if self.data.format == "text":
            wrong += [
                f"infer.metrics.{name}: format text has no answers, only `nll` can judge it"
                for name in self.infer.metrics.names()
                if name != "nll"
            ]
        return wrong

    def _gate_problems(self) -> list[str]:
        if self.gate is None:
            return []
        known = self.models()
        against = self.gate.against or self.quantized_from
        wrong = [
            f"gate.models: '{name}' is not a model of this run ({', '.join(known)})"
            for name in self.gate.models
            if name not in known
        ]
        if against not in known:
            wrong.append(
                f"gate.against: '{against}' is not a model of this run ({', '.join(known)})"
            )
        if against in self.gate.models:
            wrong.append(f"gate.models: '{against}' cannot be gated against itself")
        if self.gate.metric not in self.infer.metrics.names():
            wrong.append(
                f"gate.metric: '{self.gate.metric}' is not computed; add it to infer.metrics"
            )
        return wrong


TUNED: Final = ("merged", "finetuned")
"""What the tuned 16-bit model of a run can be called."""

_TAKEN: Final = ("base", "base-own", "adapter", *TUNED)
_VARIANT: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
