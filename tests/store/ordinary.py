"""Ordinary folders: how models and adapters of many families lie on hubs and disks.

Names and settings are those of public repositories, as far as they matter to a check; weights
are one number each.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from .families import (
    BPE,
    CHATML,
    CHECKPOINT,
    CORE_ML,
    GENERATION,
    GPT2_BPE,
    HDF5,
    ONNX,
    PNG,
    SENTENCEPIECE,
    STRICT,
    TRAINER,
    WHOLE,
    WORDS,
    code,
    config,
    own_code,
    sharded,
)
from .layouts import Files, gguf, lay_out, old_torch_file, safetensors, sentencepiece, torch_file


@dataclass(frozen=True)
class Ordinary:
    """A folder that must pass."""

    files: Files
    left_out: frozenset[str] = field(default_factory=frozenset)
    """What is not in our copy afterwards."""
    kind: Literal["model", "adapter"] = "model"

    def make(self, folder: Path) -> Path:
        """Write the folder."""
        return lay_out(folder, self.files)


def model(*files: Files, left_out: tuple[str, ...] = ()) -> Ordinary:
    """Put a model together."""
    return Ordinary(
        {name: each for part in files for name, each in part.items()}, frozenset(left_out)
    )


def adapter(*files: Files, left_out: tuple[str, ...] = ()) -> Ordinary:
    """Put an adapter together."""
    own: Files = {
        "adapter_config.json": {
            "auto_mapping": None,
            "base_model_name_or_path": "meta-llama/Llama-2-7b-hf",
            "bias": "none",
            "megatron_config": None,
            "megatron_core": "megatron.core",
            "peft_type": "LORA",
            "r": 16,
            "target_modules": ["q_proj", "v_proj"],
            "task_type": "CAUSAL_LM",
        },
        "adapter_model.safetensors": safetensors("base_model.model.q_proj.lora_A.weight"),
    }
    parts = (own, *files)
    return Ordinary(
        {name: each for part in parts for name, each in part.items()},
        frozenset(left_out),
        "adapter",
    )


LLAMA = config(
    "llama", "LlamaForCausalLM", rope_scaling={"factor": 8.0, "rope_type": "llama3"},
    pretraining_tp=1, eos_token_id=[128001, 128008, 128009],
)  # fmt: skip
TEXT_OF_GEMMA = {
    "model_type": "gemma3_text",
    "sliding_window": 1024,
    "_attn_implementation_autoset": True,
}

ORDINARY: Final[dict[str, Ordinary]] = {
    "llama 2": model(
        config("llama", "LlamaForCausalLM"), sharded(), SENTENCEPIECE, GENERATION, WORDS,
        {
            "USE_POLICY.md": "# Use\n", "Responsible-Use-Guide.pdf": b"%PDF-1.4\n\0",
            "pytorch_model-00001-of-00002.bin": torch_file(),
            "pytorch_model-00002-of-00002.bin": torch_file(),
            "pytorch_model.bin.index.json": {"weight_map": {"w": "pytorch_model-1-of-2.bin"}},
        },
        left_out=(
            "Responsible-Use-Guide.pdf", "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json",
        ),
    ),
    "llama 3": model(
        LLAMA, sharded(4), BPE, GENERATION, WORDS,
        {
            "USE_POLICY.md": "", ".gitattributes": "*.bin filter=lfs\n",
            "tokenizer_config.json": {"chat_template": CHATML, "model_input_names": ["input_ids"]},
            "original/consolidated.00.pth": torch_file(), "original/params.json": {"dim": 4096},
            "original/tokenizer.model": "IQ== 0\nIg== 1\n", "original/orig_params.json": {},
        },
        left_out=(".gitattributes", "original/consolidated.00.pth"),
    ),
    "llama from a hub's cache": model(
        LLAMA, WHOLE, BPE,
        {".cache/huggingface/download/model.safetensors.metadata": "abc\n", ".gitignore": ""},
        left_out=(".cache/huggingface/download/model.safetensors.metadata", ".gitignore"),
    ),
    "mistral": model(
        config("mistral", "MistralForCausalLM", sliding_window=None), sharded(3), SENTENCEPIECE,
        {
            "consolidated.safetensors": safetensors(), "params.json": {"dim": 4096},
            "tokenizer.model.v3": sentencepiece(), "tekken.json": {"vocab": [], "auto_map": "x"},
            "tokenizer_config.json": {"chat_template": STRICT, "legacy": True},
            "SYSTEM_PROMPT.txt": "You are helpful.",
        },
        left_out=("consolidated.safetensors", "tokenizer.model.v3"),
    ),
    "mistral with templates by name": model(
        config("mistral", "MistralForCausalLM"), WHOLE, BPE,
        {"tokenizer_config.json": {"chat_template": [
            {"name": "default", "template": STRICT}, {"name": "tool_use", "template": CHATML},
        ]}},
    ),
    "mixtral": model(
        config("mixtral", "MixtralForCausalLM", num_local_experts=8), sharded(19), SENTENCEPIECE,
        {"RELEASE": "1\n"},
    ),
    "qwen2": model(
        config("qwen2", "Qwen2ForCausalLM", use_sliding_window=False), sharded(), GPT2_BPE,
        {"tokenizer_config.json": {"chat_template": CHATML}, "merges.json": []},
    ),
    "qwen3 with a template of its own file": model(
        config("qwen3", "Qwen3ForCausalLM"), sharded(), GPT2_BPE, GENERATION,
        {
            "chat_template.jinja": CHATML, "additional_chat_templates/tools.jinja": CHATML,
            "video_preprocessor_config.json": {"processor_class": "Qwen3Processor"},
        },
    ),
    "gemma 2": model(
        config("gemma2", "Gemma2ForCausalLM", cache_implementation="hybrid"), sharded(),
        SENTENCEPIECE, {"tokenizer_config.json": {"chat_template": STRICT}},
    ),
    "gemma 3, multimodal": model(
        config(
            "gemma3", "Gemma3ForConditionalGeneration", text_config=TEXT_OF_GEMMA,
            vision_config={"model_type": "siglip_vision_model", "vision_use_head": False},
        ),
        sharded(), SENTENCEPIECE,
        {
            "preprocessor_config.json": {"image_processor_type": "Gemma3ImageProcessor"},
            "processor_config.json": {"image_seq_length": 256, "processor_class": "Gemma"},
            "chat_template.json": {"chat_template": CHATML}, "assets/figure-1.png": PNG,
        },
        left_out=("assets/figure-1.png",),
    ),
    "phi-3": model(
        config("phi3", "Phi3ForCausalLM", **own_code("Phi3", "phi3")), sharded(), SENTENCEPIECE,
        code("phi3", "sample_finetune.py"), WORDS, {"CODE_OF_CONDUCT.md": "", "NOTICE.md": ""},
        left_out=("configuration_phi3.py", "modeling_phi3.py", "sample_finetune.py"),
    ),
    "phi-4-mini": model(
        config("phi3", "Phi3ForCausalLM", auto_map={
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
            "AutoTokenizer": "Xenova/gpt-4o",
        }),
        sharded(), GPT2_BPE, code("phi3"),
        left_out=("configuration_phi3.py", "modeling_phi3.py"),
    ),
    "phi-4": model(config("phi3", "Phi3ForCausalLM"), sharded(6), GPT2_BPE, GENERATION),
    "falcon": model(
        config("falcon", "FalconForCausalLM", alibi=False, **own_code(
            "Falcon", "falcon", "", "ForSequenceClassification", "ForTokenClassification",
            "ForQuestionAnswering",
        )),
        sharded(), BPE, code("falcon", "handler.py"),
        {
            "pytorch_model-00001-of-00002.bin": old_torch_file(), CORE_ML + "/Manifest.json": {},
            CORE_ML + "/Data/com.apple.CoreML/model.mlmodel": b"\x08\x07",
            CORE_ML + "/Data/com.apple.CoreML/weights/weight.bin": torch_file(),
        },
        left_out=(
            "configuration_falcon.py", "modeling_falcon.py", "handler.py",
            "pytorch_model-00001-of-00002.bin", CORE_ML + "/Data/com.apple.CoreML/model.mlmodel",
            CORE_ML + "/Data/com.apple.CoreML/weights/weight.bin",
        ),
    ),
    "fine-tune of falcon": model(
        config("falcon", "FalconForCausalLM", auto_map={
            "AutoConfig": "tiiuae/falcon-7b--configuration_falcon.FalconConfig",
            "AutoModelForCausalLM": "tiiuae/falcon-7b--modeling_falcon.FalconForCausalLM",
        }),
        WHOLE, BPE,
    ),
    "codegen2": model(
        config("codegen", "CodeGenForCausalLM", **own_code("CodeGen", "codegen")), WHOLE, GPT2_BPE,
        code("codegen"), left_out=("configuration_codegen.py", "modeling_codegen.py"),
    ),
    "mpt": model(
        config("mpt", "MPTForCausalLM", attn_config={"attn_impl": "torch"}, auto_map={
            "AutoConfig": "configuration_mpt.MPTConfig",
            "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM",
        }),
        sharded(), BPE, code("mpt", "attention.py", "blocks.py", "adapt_tokenizer.py"),
        left_out=(
            "configuration_mpt.py", "modeling_mpt.py", "attention.py", "blocks.py",
            "adapt_tokenizer.py",
        ),
    ),
    "deepseek v3": model(
        config("deepseek_v3", "DeepseekV3ForCausalLM", **own_code("DeepseekV3", "deepseek", "")),
        sharded(5), BPE, code("deepseek"),
        {
            "inference/kernel.py": "import torch\n", "inference/configs/config_671B.json": {},
            "inference/requirements.txt": "torch\n", "figures/benchmark.png": PNG,
            "LICENSE-CODE": "MIT", "LICENSE-MODEL": "words",
        },
        left_out=(
            "configuration_deepseek.py", "modeling_deepseek.py", "inference/kernel.py",
            "figures/benchmark.png",
        ),
    ),
    "stablelm": model(
        config("stablelm", "StableLmForCausalLM", **own_code("StableLm", "stablelm")), WHOLE, BPE,
    ),
    "bloom": model(
        config("bloom", "BloomForCausalLM", attention_softmax_in_fp32=True), WHOLE, BPE, WORDS,
        {
            "pytorch_model.bin": old_torch_file(), "flax_model.msgpack": b"\x83\xa1a\x01",
            "onnx/decoder_model.onnx": ONNX, "onnx/decoder_model.onnx_data": bytes(64),
            "onnx/config.json": {"model_type": "bloom"},
        },
        left_out=(
            "pytorch_model.bin", "flax_model.msgpack", "onnx/decoder_model.onnx",
            "onnx/decoder_model.onnx_data",
        ),
    ),
    "gpt2": model(
        config("gpt2", "GPT2LMHeadModel", task_specific_params={"text-generation": {"a": 50}}),
        WHOLE, GPT2_BPE,
        {
            "64.tflite": b"\x1c\0\0\0TFL3" + bytes(32), "64-fp16.tflite": b"\x1c\0\0\0TFL3",
            "64-8bits.tflite": b"\x18\0\0\0TFL3", "rust_model.ot": torch_file(),
            "tf_model.h5": HDF5,
            "flax_model.msgpack": b"\xde\0\x10", "pytorch_model.bin": torch_file(),
            "onnx/decoder_with_past_model.onnx": ONNX,
        },
        left_out=(
            "64.tflite", "64-fp16.tflite", "64-8bits.tflite", "rust_model.ot", "tf_model.h5",
            "flax_model.msgpack", "pytorch_model.bin", "onnx/decoder_with_past_model.onnx",
        ),
    ),
    "bert": model(
        config("bert", "BertForMaskedLM"), WHOLE, {"vocab.txt": "[PAD]\n[UNK]\n##s\n"},
        {"tf_model.h5": HDF5, "model.onnx": ONNX, "openvino/openvino_model.bin": torch_file(),
         "openvino/openvino_model.xml": "<net/>"},
        left_out=(
            "tf_model.h5", "model.onnx", "openvino/openvino_model.bin",
            "openvino/openvino_model.xml",
        ),
    ),
    "t5": model(
        config("t5", "T5ForConditionalGeneration"), WHOLE, {"spiece.model": sentencepiece()},
        {"tf_model.h5": HDF5}, left_out=("tf_model.h5",),
    ),
    "opt": model(
        config("opt", "OPTForCausalLM", word_embed_proj_dim=768), WHOLE, GPT2_BPE,
        {"pytorch_model.bin": old_torch_file(), "tf_model.h5": HDF5},
        left_out=("pytorch_model.bin", "tf_model.h5"),
    ),
    "pythia": model(config("gpt_neox", "GPTNeoXForCausalLM"), WHOLE, BPE),
    "smollm2": model(
        LLAMA, WHOLE, GPT2_BPE, GENERATION,
        {
            "runs/Oct31_06-14-26/events.out.tfevents.1730": b"\x18\0\0", "eval_results.json": {},
            "all_results.json": {"train_loss": 0.5}, "onnx/model_q4f16.onnx": ONNX, **TRAINER,
        },
        left_out=(
            "training_args.bin", "onnx/model_q4f16.onnx",
            "runs/Oct31_06-14-26/events.out.tfevents.1730",
        ),
    ),
    "olmo": model(config("olmo2", "Olmo2ForCausalLM"), sharded(), GPT2_BPE),
    "starcoder2": model(config("starcoder2", "Starcoder2ForCausalLM"), sharded(), GPT2_BPE),
    "mamba, whose limit is infinite": model(
        {"config.json": '{"model_type": "mamba2", "time_step_limit": [0.0, Infinity]}'}, WHOLE, BPE,
    ),
    "attention by name": model(
        config("phi3", "Phi3ForCausalLM", _attn_implementation="flash_attention_2"), WHOLE, BPE,
    ),
    "gptq": model(
        config("llama", "LlamaForCausalLM", quantization_config={
            "bits": 4, "group_size": 128, "quant_method": "gptq", "model_name_or_path": None,
            "model_file_base_name": "model",
        }),
        WHOLE, SENTENCEPIECE, {"quantize_config.json": {"bits": 4, "model_name_or_path": None}},
    ),
    "awq": model(
        config("llama", "LlamaForCausalLM", quantization_config={
            "bits": 4, "quant_method": "awq", "version": "gemm", "zero_point": True,
        }),
        WHOLE, SENTENCEPIECE,
    ),
    "bitsandbytes": model(
        config("llama", "LlamaForCausalLM", quantization_config={
            "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes",
            "llm_int8_skip_modules": None, "_load_in_4bit": True,
        }),
        WHOLE, SENTENCEPIECE,
    ),
    "model with GGUF beside it": model(
        LLAMA, WHOLE, BPE,
        {"model-q4.gguf": gguf({"tokenizer.chat_template": CHATML, "general.alignment": 32},
                               {"w": (32, 2), "v": (8,)})},
        left_out=("model-q4.gguf",),
    ),
    "sentence transformer": model(
        config("qwen2", "Qwen2ForCausalLM"), WHOLE, GPT2_BPE,
        {
            "modules.json": [{"path": "", "type": "sentence_transformers.models.Transformer"}],
            "1_Pooling/config.json": {"pooling_mode_lasttoken": True},
            "sentence_bert_config.json": {"do_lower_case": False},
        },
    ),
    "checkpoint of a full fine-tune": model(
        LLAMA, sharded(), BPE, CHECKPOINT,
        left_out=(*(name for name in CHECKPOINT if name.endswith((".bin", ".pt", ".pth", ".py"))),),
    ),
    "model with its adapter": model(
        LLAMA, WHOLE, BPE,
        {"adapter_config.json": {"peft_type": "LORA"}, "adapter_model.safetensors": safetensors()},
        left_out=("adapter_config.json", "adapter_model.safetensors"),
    ),
    "clone whose other weights were not pulled": model(
        LLAMA, WHOLE, BPE,
        {"pytorch_model.bin": "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"},
        left_out=("pytorch_model.bin",),
    ),
    "adapter": adapter(WORDS),
    "adapter with its tokenizer": adapter(
        SENTENCEPIECE, TRAINER, {"chat_template.jinja": CHATML, "runs/a/events.tfevents": b"\0"},
        left_out=("training_args.bin", "runs/a/events.tfevents"),
    ),
    "adapter of a checkpoint": adapter(
        BPE, CHECKPOINT,
        left_out=(*(name for name in CHECKPOINT if name.endswith((".bin", ".pt", ".pth", ".py"))),),
    ),
    "adapter without a task": adapter(
        {"adapter_config.json": {
            "auto_mapping": {
                "base_model_class": "LlamaForCausalLM",
                "parent_library": "transformers.models.llama.modeling_llama",
            },
            "base_model_name_or_path": "/home/me/models/llama",
            "peft_type": "LORA",
        }},
    ),
    "adapter with both forms": adapter(
        {"adapter_model.bin": old_torch_file()}, left_out=("adapter_model.bin",),
    ),
}  # fmt: skip
"""By what it is."""
