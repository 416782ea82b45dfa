"""Train a small adapter by hand, as a notebook would, and save it the way PEFT does.

Nothing of modelmill is used: this stands for the adapter that a user already has.  Run it with
an interpreter that has torch, transformers and peft.
"""

import argparse
import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

PROMPT = "### Schema\n{context}\n### Question\n{question}\n### SQL\n"
BATCH = 4


def train(model_folder: Path, rows: list[dict[str, str]], steps: int, out: Path) -> None:
    """Take so many steps over the rows, with the loss on the answers, and save the adapter."""
    torch.manual_seed(0)
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, config)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    for step in range(steps):
        for place in range(BATCH):
            row = rows[(step * BATCH + place) % len(rows)]
            prompt = tokenizer(PROMPT.format(**row))["input_ids"]
            answer = [*tokenizer(row["answer"])["input_ids"], tokenizer.eos_token_id]
            labels = [-100] * len(prompt) + answer
            ids = torch.tensor([prompt + answer])
            (model(ids, labels=torch.tensor([labels])).loss / BATCH).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)


def main() -> None:
    """Read the arguments and train, unless there is an adapter already."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--rows", type=Path, required=True, help="JSONL file of training rows")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    asked = parser.parse_args()
    if (asked.out / "adapter_model.safetensors").exists():
        return
    lines = asked.rows.read_text(encoding="utf-8").splitlines()
    train(asked.model, [json.loads(line) for line in lines], asked.steps, asked.out)


if __name__ == "__main__":
    main()
