"""Quantize with GPTQModel, calibrated on training rows in the form they were trained in."""

import argparse
import os

# The default leaves one worker on two cores, and GPTQModel asks its pool for two.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from gptqmodel import GPTQModel, QuantizeConfig
from prompt import PROMPT, read_rows
from s3 import pull, push, work_folder

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--train", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--bits", type=int, default=4)
parser.add_argument("--group-size", type=int, default=64)
parser.add_argument("--tokens", type=int, default=6144)
parser.add_argument("--dtype", default="float16")
args = parser.parse_args()

out = work_folder(args.out)
config = QuantizeConfig(bits=args.bits, group_size=args.group_size, sym=True, desc_act=False)
model = GPTQModel.load(str(pull(args.model)), config, dtype=getattr(torch, args.dtype))
texts: list[str] = []
tokens = 0
for row in read_rows(pull(args.train)):
    text = PROMPT.format(**row) + row["answer"] + model.tokenizer.eos_token
    tokens += len(model.tokenizer(text).input_ids)
    if tokens > args.tokens:
        break
    texts.append(text)
model.quantize(texts, batch_size=4)
model.save(str(out))
push(out, args.out)
