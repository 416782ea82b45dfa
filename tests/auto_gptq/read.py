"""Say what auto-gptq computes, and how far it is from the plain model of the same weights.

    python read.py QUANTIZED PLAIN

Runs in auto-gptq's environment, where nothing of modelmill can be imported.  Without kernels:
those that auto-gptq brings were compiled for a torch of its own time.
"""

import json
import sys

import torch
from auto_gptq import AutoGPTQForCausalLM
from transformers import AutoModelForCausalLM

quantized = AutoGPTQForCausalLM.from_quantized(
    sys.argv[1],
    device="cpu",
    use_safetensors=True,
    use_triton=False,
    disable_exllama=True,
    disable_exllamav2=True,
    inject_fused_attention=False,
    inject_fused_mlp=False,
)
plain = AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float16)
ids = torch.arange(20, 60).reshape(2, 20)
with torch.inference_mode():
    found, expected = quantized.model(ids).logits, plain(ids).logits
difference = (found.float() - expected.float()).norm() / expected.float().norm()
told = {"equal": torch.equal(found, expected), "difference": str(difference.item())}
sys.stdout.write(f"{json.dumps(told)}\n")
