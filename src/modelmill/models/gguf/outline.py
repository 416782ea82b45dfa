"""What a GGUF file says before its tensors: the architecture's numbers, and the vocabulary.

Everything that cannot be converted is found here, from small files, before weights are fetched.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from modelmill.models.gguf.vocabulary import Vocabulary, read_vocabulary
from modelmill.spec.errors import DataError, Problem, SpecError
from modelmill.store.json_files import read_json

ARCHITECTURE_OF: Final = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
"""How llama.cpp calls a family; mistral is a llama to it."""

ROPE_THETA: Final = 10_000.0
"""Of all three families, where a config does not say."""
MISTRAL_WINDOW: Final = 4096
"""Of a mistral whose config does not say."""


class Rope(BaseModel):
    """How positions turn, in the words of transformers 5 or of the versions before."""

    model_config = ConfigDict(frozen=True)

    rope_type: str = Field(default="default", validation_alias=AliasChoices("rope_type", "type"))
    rope_theta: float | None = None
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: PositiveInt = 8192
    partial_rotary_factor: float = 1.0


class Config(BaseModel):
    """What of config.json decides how a model computes."""

    model_config = ConfigDict(frozen=True)

    model_type: str
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    stated_head_dim: PositiveInt | None = Field(default=None, validation_alias="head_dim")
    max_position_embeddings: PositiveInt
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: PositiveInt | None = None
    use_sliding_window: bool = False
    rope_theta: float | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None

    @property
    def architecture(self) -> str:
        """Say what llama.cpp calls it."""
        return ARCHITECTURE_OF[self.model_type]

    @property
    def kv_heads(self) -> int:
        """Count the heads that keys and values have."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Say how many features a head has."""
        return self.stated_head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope(self) -> Rope:
        """Choose what is said of positions."""
        return self.rope_parameters or self.rope_scaling or Rope()

    @property
    def theta(self) -> float:
        """Say on what base positions turn."""
        return self.rope.rope_theta or self.rope_theta or ROPE_THETA

    @property
    def context_length(self) -> int:
        """Say up to where llama.cpp computes what the model computes.

        It has no sliding window for these families, so that is as far as the window goes.
        """
        return min(self.max_position_embeddings, self._window or self.max_position_embeddings)

    @property
    def _window(self) -> int | None:
        if self.model_type == "mistral" and "sliding_window" not in self.model_fields_set:
            return MISTRAL_WINDOW
        is_used = self.model_type == "mistral" or self.use_sliding_window
        return self.sliding_window if is_used else None


@dataclass(frozen=True)
class Outline:
    """All of a GGUF file but its tensors."""

    name: str
    """What people call the model."""
    config: Config
    vocabulary: Vocabulary


def read_outline(folder: Path, name: str) -> Outline:
    """Read config and tokenizer of a model, and make sure that they can be said in GGUF.

    Args:
        folder: the model; needs no weights yet.
        name: what people call it.

    Raises:
        DataError: config.json lacks a number, or the tokenizer contradicts it.
        SpecError: it is of another family, or computes what llama.cpp would not, with everything
            that is in the way.
    """
    path = folder / "config.json"
    document = read_json(path)
    family = document.get("model_type") if isinstance(document, dict) else None
    if family not in ARCHITECTURE_OF:
        families = ", ".join(ARCHITECTURE_OF)
        reason = f"a {family} is not converted, only {families}"
        fix = "export it without --gguf, and use llama.cpp's own convert_hf_to_gguf.py"
        raise SpecError("--gguf", [Problem("", reason, suggestion=fix)])
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"config.json is wrong at {where!r}: {first['msg']}", at=str(path)
        ) from None
    vocabulary, unsaid = read_vocabulary(folder, config.vocab_size)
    problems = [Problem("", reason) for reason in (*_unsaid(config), *unsaid)]
    if problems or vocabulary is None:
        raise SpecError("--gguf", problems)
    return Outline(name, config, vocabulary)


def _unsaid(config: Config) -> Iterator[str]:
    """List what the file could not tell llama.cpp."""
    rope = config.rope
    if rope.rope_type not in ("default", "linear", "llama3"):
        known = "only linear and llama3 are converted"
        yield f"its positions are scaled by {rope.rope_type!r}; {known}"
    if rope.rope_type == "llama3" and config.model_type == "qwen2":
        yield "its positions are scaled by 'llama3', which llama.cpp does not know of a qwen2"
    if rope.partial_rotary_factor != 1:
        yield f"only {rope.partial_rotary_factor} of a head turns with positions"
    if config.hidden_act != "silu":
        yield f"its activation is {config.hidden_act!r}, and llama.cpp's is silu"
