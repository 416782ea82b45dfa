"""The lines that open a model which has left the store, for whoever finds it.

Knows how each kind of model is written.  Must not know where it lies: that is in the address.
"""

import shlex
from dataclasses import dataclass
from typing import Final

from modelmill.spec.names import Gguf, gguf_name
from modelmill.spec.plan import Stage
from modelmill.spec.quantize import BitnetSpec, BitsandbytesSpec, PackedSpec
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import QuantizeSettings
from modelmill.spec.vllm import model_problem, packing_problems


@dataclass(frozen=True)
class Opening:
    """A model and what decides how it is opened."""

    address: str
    """What a reader calls it by: `./folder`, or a repository of a hub."""
    run: RunSpec
    holder: Stage
    """The stage that wrote it."""
    model_type: str
    """Of the architecture, in transformers' words."""
    base: str
    """Of an adapter: the repository of its base on a hub, or what stands for it."""
    base_revision: str = ""
    gguf: Gguf | None = None
    """The type of its weights, where it leaves as a GGUF file."""

    @property
    def is_adapter(self) -> bool:
        """Whether it needs its base beside it."""
        tuned = self.run.finetune
        return self.holder.kind == "finetune" and tuned is not None and tuned.method == "lora"


def needed(opening: Opening) -> tuple[str, ...]:
    """Name the packages that open it."""
    settings = opening.holder.settings
    if opening.is_adapter:
        return ("transformers", "torch", "peft")
    if not isinstance(settings, QuantizeSettings):
        return ("transformers", "torch")
    match settings.quantize:
        case BitsandbytesSpec():
            return ("transformers", "torch", "accelerate", "bitsandbytes")
        case BitnetSpec():
            return ("transformers", "torch", "accelerate")
    return ("transformers", "torch", "optimum", "gptqmodel")


def transformers_lines(opening: Opening) -> str:
    """Write a program that opens it and answers one prompt."""
    address, head = _literal(opening.address), _IMPORTS
    if opening.is_adapter:
        pinned = opening.base_revision
        revision = f", revision={_literal(pinned)}" if pinned else ""
        head = f"from peft import PeftModel\n{head}"
        model = (
            f"base = AutoModelForCausalLM.from_pretrained({_literal(opening.base)}{revision}, "
            f'dtype="auto")\nmodel = PeftModel.from_pretrained(base, {address})'
        )
    else:
        model = f'model = AutoModelForCausalLM.from_pretrained({address}, dtype="auto")'
    tokens = opening.run.infer.max_new_tokens
    return f"""{head}

tokenizer = AutoTokenizer.from_pretrained({address})
{model}

prompt = {_literal(_prompt(opening.run))}
{_encoding(opening)}
output = model.generate(**inputs, max_new_tokens={tokens})
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def llama_lines(opening: Opening, gguf: Gguf) -> tuple[str, str]:
    """Write the commands with which llama.cpp answers one prompt, and serves."""
    name = opening.address.rpartition("/")[2]
    option, file = (
        ("-m", f"{opening.address}/{gguf_name(name, gguf)}")
        if opening.address.startswith("./")
        else ("-hf", f"{opening.address}:{gguf.upper()}")
    )
    model = f"{option} {shlex.quote(file)} -c {opening.run.data.max_length}"
    tokens, prompt = opening.run.infer.max_new_tokens, shlex.quote(_prompt(opening.run))
    program, mode = (
        ("llama-cli", "--jinja -st") if _is_chat(opening) else ("llama-completion", "-no-cnv")
    )
    answer = f"{program} {model} -n {tokens} --temp 0 {mode} -p {prompt}\n"
    return answer, f"llama-server {model}{' --jinja' if _is_chat(opening) else ''}\n"


def vllm_line(opening: Opening) -> str:
    """Write the command that serves it; empty where vLLM cannot read it."""
    if not _vllm_reads(opening):
        return ""
    length = opening.run.data.max_length
    return f"vllm serve {shlex.quote(opening.address)} --max-model-len {length}\n"


def _vllm_reads(opening: Opening) -> bool:
    """Tell whether vLLM has kernels for this format and code for this architecture."""
    if opening.is_adapter:
        return False
    settings = opening.holder.settings
    if not isinstance(settings, QuantizeSettings):
        return model_problem(opening.model_type, is_packed=False) is None
    spec = settings.quantize
    if not isinstance(spec, PackedSpec):
        return False
    in_the_way = (
        model_problem(opening.model_type, is_packed=True),
        *packing_problems(spec.bits, sym=spec.sym, reorders=spec.reorders),
    )
    return not any(in_the_way)


def _literal(text: str) -> str:
    """Write a text as Python does, in double quotes where that takes no escaping."""
    written = repr(text)
    return f'"{written[1:-1]}"' if written[0] == "'" and '"' not in text else written


def _prompt(run: RunSpec) -> str:
    """Give a prompt of the form that the model knows; fields in braces are to be filled in."""
    return run.data.template.prompt if run.data.template is not None else "Hello"


def _encoding(opening: Opening) -> str:
    """Turn the prompt into ids as training did."""
    return _CHAT if _is_chat(opening) else 'inputs = tokenizer(prompt, return_tensors="pt")'


def _is_chat(opening: Opening) -> bool:
    """Tell whether the tokenizer's chat template holds the rules that training followed."""
    run = opening.run
    is_asked = run.data.format == "messages" and run.data.chat_template == "tokenizer"
    return run.finetune is not None or is_asked


_IMPORTS: Final = "from transformers import AutoModelForCausalLM, AutoTokenizer"
_CHAT: Final = """\
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": prompt}],
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt",
)"""
