"""Quantize with bitsandbytes to NF4."""

import argparse

import torch
from s3 import pull, push, work_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--out", required=True)
args = parser.parse_args()

model_path = pull(args.model)
out = work_folder(args.out)
config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
model = AutoModelForCausalLM.from_pretrained(
    model_path, quantization_config=config, dtype=torch.bfloat16
)
model.save_pretrained(out)
AutoTokenizer.from_pretrained(model_path).save_pretrained(out)
push(out, args.out)
