"""Say what auto-gptq reads, and how far it answers from the plain model of the same weights.

    python read.py QUANTIZED PLAIN

Weights are compared to the bit, answers are not: a product of half-precision numbers in another
layout may add in another order, which it does on CPUs without AVX-512 (up to 0.0004 apart).
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


def equal(layer: torch.nn.Module, meant: torch.nn.Module) -> bool:
    """Compare a packed layer with the plain one of its name, by what they make of unit vectors.

    Only one product of each sum is not zero, so the order does not matter.
    """
    biases = [each.bias for each in (layer, meant) if each.bias is not None]
    if len(biases) == 2 and not torch.equal(*biases):
        return False
    for each in biases:
        each.data.zero_()  # rounded once more, or not
    with torch.inference_mode():
        units = torch.eye(layer.infeatures, dtype=torch.float16)
        return torch.equal(layer(units), meant(units))


layers = dict(plain.named_modules())
packed = {name for name, each in quantized.model.named_modules() if hasattr(each, "qweight")}
others = dict(quantized.model.named_parameters(remove_duplicate=False))
same = {
    name: torch.equal(weight, others[name])
    for name, weight in plain.named_parameters(remove_duplicate=False)
    if name.rpartition(".")[0] not in packed
}
same |= {name: equal(quantized.model.get_submodule(name), layers[name]) for name in sorted(packed)}
told = {
    "layers": len(packed),
    "equal": all(same.values()),
    "difference": difference.item(),
}
sys.stdout.write(f"{json.dumps(told)}\n")
