"""Hostile folders: one or more for every class of docs/security.md that a file can carry.

Each would touch a canary if anything it holds were run; nothing here runs it but the controls in
test_hostile.py.  Numbers are those of the public lists.
"""

import json
from typing import Final

from .attacks import (
    Hostile,
    auto_map,
    config,
    files,
    injection,
    old_torch_payload,
    only_pickled,
    payload,
    script,
    torch_payload,
)
from .hostile_shapes import SHAPES
from .layouts import gguf, torch_file

HOSTILE: Final[dict[str, Hostile]] = {
    # Settings that make libraries load code.
    "kernel at the top": Hostile(
        "CVE-2026-4372", config(_attn_implementation_internal="evil/kernel"),
        "from a hub", "config.json",
    ),
    "kernel of a part": Hostile(
        "CVE-2026-4372", config(text_config={"_attn_implementation_internal": "evil/kernel"}),
        "from a hub", "config.json",
    ),
    "kernel by its new name": Hostile(
        "CVE-2026-4372", config(attn_implementation="evil/kernel@main:attend"),
        "from a hub", "config.json",
    ),
    "kernel of experts": Hostile(
        "CVE-2026-4372", config(experts_implementation={"": "evil/kernel"}),
        "from a hub", "config.json",
    ),
    "trust from inside": Hostile(
        "CVE-2026-5241", config(keypoint_detector_config={"trust_remote_code": True}),
        "load code", "config.json",
    ),
    "trust that is a word": Hostile(
        "CVE-2026-5241", config(text_config={"trust_remote_code": "yes"}),
        "load code", "config.json",
    ),
    "map and module": Hostile(
        "CVE-2026-22807", auto_map("llama", "modeling_evil.EvilConfig"),
        "load code", "config.json",
    ),
    "map of a native family to a stranger": Hostile(
        "CVE-2026-22807", auto_map("falcon", "modeling_falcon.EvilConfig"),
        "load code", "config.json",
    ),
    "native class of another family": Hostile(
        "CVE-2026-22807", auto_map("llama", "configuration_falcon.FalconConfig"),
        "load code", "config.json",
    ),
    "map into another repository": Hostile(
        "CVE-2026-22807",
        config(auto_map={"AutoModelForCausalLM": "evil/repo--modeling.Evil"}),
        "load code", "config.json",
    ),
    "module without a map": Hostile(
        "CVE-2026-22807", files({"modeling_llama.py": script}),
        "a .py file can hold code", "modeling_llama.py",
    ),
    "map of a part": Hostile(
        "CVE-2026-27893", config(vision_config={"auto_map": {"AutoModel": "m.Falcon"}}),
        "load code", "config.json",
    ),
    "map of a native part": Hostile(
        "CVE-2026-27893",
        config(vision_config={"model_type": "falcon", "auto_map": {"AutoModel": "m.FalconModel"}}),
        "load code", "config.json",
    ),
    "map of a processor": Hostile(
        "CVE-2026-27893",
        files({"preprocessor_config.json": {"auto_map": {"AutoProcessor": "m.Evil"}},
               "m.py": script}),
        "load code|can hold code", "preprocessor_config.json|m.py",
    ),
    "map of a tokenizer": Hostile(
        "CVE-2026-7669",
        files({"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["t.Evil", None]}},
               "t.py": script}),
        "load code|can hold code", "tokenizer_config.json|t.py",
    ),
    "map of a tokenizer as a list": Hostile(
        "CVE-2026-7669", files({"tokenizer_config.json": {"auto_map": ["t.Evil", None]}}),
        "load code", "tokenizer_config.json",
    ),
    "map in the adapter": Hostile(
        "CVE-2026-22807",
        files({"adapter_config.json": {"peft_type": "LORA", "auto_map": {"AutoModel": "m.M"}}}),
        "load code", "adapter_config.json", "adapter",
    ),
    "import by an adapter": Hostile(
        "own: PEFT's imports",
        files({"adapter_config.json": {"auto_mapping": {"parent_library": "antigravity"}}}),
        "import 'antigravity'", "adapter_config.json", "adapter",
    ),
    "megatron by an adapter": Hostile(
        "own: PEFT's imports",
        files({"adapter_config.json": {"megatron_core": "evil", "megatron_config": {"a": 1}}}),
        "import 'evil'|load code", "adapter_config.json", "adapter",
    ),
    "pipeline": Hostile(
        "own: settings", config(custom_pipelines={"text": {"impl": "pipeline.Evil"}}),
        "load code", "config.json",
    ),
    "hydra": Hostile(
        "own: settings", config(head={"_target_": "os.system"}), "load code", "config.json",
    ),
    "server for a path": Hostile(
        "own: settings", config(_name_or_path="https://evil.test/model"),
        "names a server", "config.json",
    ),
    "repository for a path": Hostile(
        "own: settings",
        files({"adapter_config.json": {"tokenizer_name_or_path": "evil/tokenizer"}}),
        "names a repository", "adapter_config.json", "adapter",
    ),
    "file outside": Hostile(
        "own: settings", files({"tokenizer_config.json": {"vocab_file": "../../../etc/passwd"}}),
        "not beside it", "tokenizer_config.json",
    ),
    "versioned file outside": Hostile(
        "own: settings",
        files({"tokenizer_config.json": {"fast_tokenizer_files": ["../tokenizer.4.0.json"]}}),
        "not beside it", "tokenizer_config.json",
    ),
    # Pickles.
    **{
        f"{name} of a checkpoint, {how}": Hostile(
            "CVE-2026-1839", files({name: body}), words, name, kind,
        )
        for name in ("rng_state.pth", "optimizer.pt", "scheduler.pt", "training_args.bin")
        for how, body, words, kind in (
            ("by torch", torch_payload, "would run (posix|nt).system", "model"),
            ("by an old torch", old_torch_payload, "would run (posix|nt).system", "adapter"),
            ("pickled", payload, "not one that torch wrote", "model"),
        )
    },
    "only a pickle": Hostile(
        "CVE-2025-32434", only_pickled("pytorch_model.bin", torch_payload),
        "a .bin file can hold code", "pytorch_model.bin",
    ),
    "only a harmless pickle": Hostile(
        "CVE-2026-24747", only_pickled("pytorch_model.bin", lambda _: torch_file()),
        "a .bin file can hold code", "pytorch_model.bin",
    ),
    "pickle beside weights": Hostile(
        "CVE-2025-32434", files({"pytorch_model.bin": torch_payload}),
        "would run", "pytorch_model.bin",
    ),
    "pickled adapter": Hostile(
        "CVE-2025-32434", only_pickled("adapter_model.bin", torch_payload),
        "a .bin file can hold code", "adapter_model.bin", "adapter",
    ),
    "pickled adapter beside weights": Hostile(
        "CVE-2025-32434", files({"adapter_model.bin": old_torch_payload}),
        "would run", "adapter_model.bin", "adapter",
    ),
    **{
        f"pickle as {name}": Hostile(number, files({name: payload}), "can hold code", name)
        for number, name in (
            ("CVE-2024-11392", "conversion.pkl"),
            ("CVE-2024-11393", "index.pickle"),
            ("CVE-2024-11394", "dict.ckpt"),
            ("CVE-2024-3568", "extra_data.pickle"),
            ("CVE-2023-6730", "index_meta.dpr.pkl"),
            ("CVE-2025-32434", "weights.pt"),
            ("CVE-2025-32434", "onnx/weights.pth"),
            ("CVE-2026-24747", "MODEL.BIN"),
            ("own: pickles", "data.npy"),
            ("own: pickles", "model.joblib"),
        )
    },
    **{
        f"pickle named {name}": Hostile(
            "own: magic", files({name: payload}),
            "a pickle under another name|neither a SentencePiece", name,
        )
        for name in (
            "model.safetensors", "generation_config.json", "tokenizer.model", "vocab.txt",
            "chat_template.jinja", "LICENSE", "README.md", "tf_model.h5", "flax_model.msgpack",
            "onnx/model.onnx", "qwen.tiktoken",
        )
    },
    **{
        f"archive named {name}": Hostile(
            "own: magic", files({name: torch_payload}), "a zip archive under another name", name,
        )
        for name in ("model.safetensors", "special_tokens_map.json", "tokenizer.model")
    },
    # Templates.
    **{
        f"injection in {file}": Hostile(
            number, files({file: form}), "template that may not run.*Python's own", file, kind,
        )
        for number, file, form, kind in (
            ("CVE-2026-5760", "model.gguf",
             lambda canary: gguf({"tokenizer.chat_template": injection(canary)}), "model"),
            ("CVE-2024-34359", "sub/tool.gguf",
             lambda canary: gguf({"tokenizer.chat_template.tool": injection(canary)}), "model"),
            ("CVE-2024-34359", "tokenizer_config.json",
             lambda canary: json.dumps({"chat_template": injection(canary)}), "model"),
            ("CVE-2024-34359", "tokenizer_config.json",
             lambda canary: json.dumps({"chat_template": [
                 {"name": "default", "template": "{{ messages }}"},
                 {"name": "tool_use", "template": injection(canary)}]}), "adapter"),
            ("CVE-2024-34359", "chat_template.json",
             lambda canary: json.dumps({"chat_template": injection(canary)}), "model"),
            ("CVE-2024-34359", "processor_config.json",
             lambda canary: json.dumps({"a": {"chat_template": injection(canary)}}), "model"),
            ("CVE-2024-34359", "chat_template.jinja", injection, "model"),
            ("CVE-2024-34359", "additional_chat_templates/rag.jinja", injection, "adapter"),
        )
    },
    **{
        f"endless template {number}": Hostile(
            "CVE-2025-61620", files({"chat_template.jinja": template}), "may not run",
            "chat_template.jinja",
        )
        for number, template in enumerate((
            "{% for i in range(10**9) %}x{% endfor %}",
            "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
            "{{ 'x' * 10**10 }}",
            "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x=n.x~n.x %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{{ 'x'|center(1000000000) }}",
            "{{ '%1000000000d' % 1 }}",
            "(" * 200_000,
            "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
        ))
    },
    **{
        f"template that reaches out {number}": Hostile(
            "CVE-2024-34359", files({"chat_template.jinja": template}), "may not run",
            "chat_template.jinja",
        )
        for number, template in enumerate((
            "{{ ''['__cla' ~ 'ss__'] }}",
            "{{ messages.append({}) }}",
            "{% include '/etc/passwd' %}",
            "{% import 'os' as os %}",
            "{{ ''|attr('__class__') }}",
            "{% if messages|length > 9999 %}{{ raise_exception.__globals__ }}{% endif %}",
            "{% set n = namespace(__init__=1) %}",
        ))
    },
    **SHAPES,
}  # fmt: skip
"""By what it is."""
