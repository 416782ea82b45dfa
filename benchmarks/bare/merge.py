"""Merge an adapter into its base in 16 bits, as one would by hand with PEFT."""

import argparse

import torch
from peft import PeftModel
from s3 import pull, push, work_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--adapter", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--dtype", default="float32", help="in which the sum is taken")
args = parser.parse_args()

model_path = pull(args.model)
out = work_folder(args.out)
base = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, args.dtype))
merged = PeftModel.from_pretrained(base, pull(args.adapter)).merge_and_unload()
merged.to(torch.bfloat16).save_pretrained(out)
AutoTokenizer.from_pretrained(model_path).save_pretrained(out)
push(out, args.out)
