"""Parts of ordinary folders: what models of many families and their by-products have in common."""

from collections.abc import Mapping
from typing import Final

from .layouts import (
    Files,
    old_torch_file,
    safetensors,
    sentencepiece,
    torch_file,
)

CHATML: Final = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message['content']"
    " | trim + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
STRICT: Final = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != "
    "(loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}"
    "{% endif %}{{ '[INST] ' ~ message.content ~ ' [/INST]' }}{% endfor %}"
)
PNG: Final = b"\x89PNG\r\n\x1a\n" + bytes(16)
HDF5: Final = b"\x89HDF\r\n\x1a\n" + bytes(64)
ONNX: Final = b"\x08\x07\x12\x07pytorch" + bytes(32)
CORE_ML: Final = "coreml/text-generation/float32_model.mlpackage"

WORDS: Final[Files] = {"README.md": "---\nlicense: mit\n---\n# A model\n", "LICENSE": "MIT"}
BPE: Final[Files] = {
    "tokenizer.json": {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}}},
    "tokenizer_config.json": {"model_max_length": 2048, "tokenizer_class": "PreTrainedTokenizer"},
    "special_tokens_map.json": {"eos_token": "<|endoftext|>"},
}
GPT2_BPE: Final[Files] = {**BPE, "vocab.json": {"a": 0}, "merges.txt": "#version: 0.2\na b\n"}
SENTENCEPIECE: Final[Files] = {
    **BPE,
    "tokenizer.model": sentencepiece("<s>", "</s>", "\u2581the"),
    "added_tokens.json": {"<pad>": 32000},
}
GENERATION: Final[Files] = {
    "generation_config.json": {"_from_model_config": True, "eos_token_id": 2}
}
TRAINER: Final[Files] = {
    "training_args.bin": torch_file(),
    "trainer_state.json": {"best_metric": None, "log_history": [{"loss": 1.5, "step": 1}]},
}
CHECKPOINT: Final[Files] = {
    **TRAINER,
    "optimizer.pt": torch_file(),
    "scheduler.pt": torch_file(),
    "scaler.pt": old_torch_file(),
    "rng_state.pth": torch_file(),
    "rng_state_0.pth": torch_file(),
    "global_step5/mp_rank_00_model_states.pt": torch_file(),
    "global_step5/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": torch_file(),
    "zero_to_fp32.py": "print('to fp32')\n",
    "latest": "global_step5",
}


def config(model_type: str, architecture: str, **more: object) -> Files:
    """Write what every config.json has."""
    return {
        "config.json": {
            "_name_or_path": f"org/{model_type}-1b",
            "architectures": [architecture],
            "model_type": model_type,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.46.1",
            "use_cache": True,
            **more,
        }
    }


def sharded(count: int = 2, prefix: str = "model") -> Files:
    """Write weights in shards, with their index."""
    shards = {f"{prefix}-{n + 1:05}-of-{count:05}.safetensors": f"w{n}" for n in range(count)}
    index = {"metadata": {"total_size": 4 * count}}
    weight_map = {tensor: shard for shard, tensor in shards.items()}
    return {
        **{shard: safetensors(tensor) for shard, tensor in shards.items()},
        f"{prefix}.safetensors.index.json": {**index, "weight_map": weight_map},
    }


WHOLE: Final[Files] = {"model.safetensors": safetensors()}


def own_code(stem: str, module: str, *more: str) -> Mapping[str, object]:
    """Write the map of a family that was published with its code."""
    return {
        "auto_map": {
            "AutoConfig": f"configuration_{module}.{stem}Config",
            "AutoModelForCausalLM": f"modeling_{module}.{stem}ForCausalLM",
            **{f"AutoModel{each}": f"modeling_{module}.{stem}{each or 'Model'}" for each in more},
        }
    }


def code(module: str, *more: str) -> Files:
    """Write the modules of such a family."""
    names = (f"configuration_{module}.py", f"modeling_{module}.py", *more)
    return dict.fromkeys(names, "raise SystemExit('nothing here may run')\n")
