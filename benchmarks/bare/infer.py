"""Answer a file of prompts: greedy, left-padded, sorted by length; and score the references."""

import argparse
import json
import os
import time

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from prompt import PROMPT, read_rows
from s3 import pull, push, work_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--test", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--dtype", default="float32")
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--max-new-tokens", type=int, default=48)
parser.add_argument("--form", choices=("plain", "chat", "3-shot"), default="plain")
parser.add_argument("--shots", help="the file that 3-shot takes its examples from")
parser.add_argument("--rows", type=int, help="only so many")
args = parser.parse_args()

started = time.perf_counter()
model_path = pull(args.model)
out = work_folder(args.out)
rows = read_rows(pull(args.test))[: args.rows]
dtype = getattr(torch, args.dtype)
config = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
if config.get("quantization_config", {}).get("quant_method") == "gptq":
    from gptqmodel import GPTQModel

    model = GPTQModel.load(str(model_path), dtype=dtype).model
else:
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype)
model.eval()


def prompt_of(row: dict[str, str]) -> str:
    """Ask in one of the three forms."""
    if args.form == "chat":
        ask = (
            "Write one SQLite query that answers the question. Answer with the SQL only.\n"
            f"Schema: {row['context']}\nQuestion: {row['question']}"
        )
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": ask}], tokenize=False, add_generation_prompt=True
        )
    plain = PROMPT.format(**row)
    if args.form == "3-shot":
        shots = read_rows(pull(args.shots))[:3]
        plain = "\n\n".join([PROMPT.format(**s) + s["answer"] for s in shots] + [plain])
    return plain


prompts = [tokenizer(prompt_of(row), add_special_tokens=False).input_ids for row in rows]
answers = [
    [*tokenizer(row["answer"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    for row in rows
]
order = sorted(range(len(rows)), key=lambda i: len(prompts[i]), reverse=True)
batches = [order[i : i + args.batch_size] for i in range(0, len(order), args.batch_size)]
results: list[dict[str, object]] = [{} for _ in rows]
load_seconds = time.perf_counter() - started


def pad(sequences: list[list[int]]) -> dict[str, torch.Tensor]:
    """Pad on the left."""
    return dict(tokenizer.pad({"input_ids": sequences}, return_tensors="pt"))


generated_tokens = 0
started = time.perf_counter()
with torch.inference_mode():
    for batch in batches:
        inputs = pad([prompts[i] for i in batch])
        output = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=args.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        for i, tokens in zip(
            batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True
        ):
            end = (
                tokens.index(tokenizer.eos_token_id) + 1
                if tokenizer.eos_token_id in tokens
                else None
            )
            generated_tokens += len(tokens[:end])
            results[i]["output"] = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    generate_seconds = time.perf_counter() - started

    started = time.perf_counter()
    for batch in batches:
        inputs = pad([prompts[i] + answers[i] for i in batch])
        longest = max(len(answers[i]) for i in batch)
        logits = model(**inputs, logits_to_keep=longest + 1).logits[:, :-1].float()
        targets = inputs["input_ids"][:, -longest:]
        losses = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        for i, row_losses in zip(batch, losses, strict=True):
            results[i]["nll"] = row_losses[-len(answers[i]) :].mean().item()
    nll_seconds = time.perf_counter() - started

with (out / "predictions.jsonl").open("w", encoding="utf-8") as file:
    file.writelines(
        json.dumps(row | result) + "\n" for row, result in zip(rows, results, strict=True)
    )
push(out, args.out)
print(
    json.dumps(
        {
            "load_seconds": round(load_seconds, 1),
            "generate_seconds": round(generate_seconds, 1),
            "tokens": generated_tokens,
            "tokens_per_second": round(generated_tokens / generate_seconds, 1),
            "nll_seconds": round(nll_seconds, 1),
            "nll": round(sum(float(str(r["nll"])) for r in results) / len(results), 4),
        }
    )
)
