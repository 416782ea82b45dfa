"""Fine-tune with LoRA, as one would by hand with TRL and PEFT: S3 -> adapter -> S3."""

import argparse

import torch
from datasets import Dataset
from peft import LoraConfig
from prompt import PROMPT, read_rows
from s3 import pull, push, work_folder
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--train", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--epochs", type=float, default=2)
parser.add_argument("--learning-rate", type=float, default=2e-3)
parser.add_argument("--rank", type=int, default=16)
parser.add_argument("--max-steps", type=int, default=-1)
args = parser.parse_args()

model_path = pull(args.model)
out = work_folder(args.out)
tokenizer = AutoTokenizer.from_pretrained(model_path)
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
rows = Dataset.from_list(
    [
        {"prompt": PROMPT.format(**row), "completion": row["answer"]}
        for row in read_rows(pull(args.train))
    ]
).train_test_split(test_size=0.1, seed=0)

trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=rows["train"],
    eval_dataset=rows["test"],
    peft_config=LoraConfig(
        r=args.rank,
        lora_alpha=2 * args.rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    ),
    args=SFTConfig(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.03,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        train_sampling_strategy="group_by_length",
        max_length=192,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        save_total_limit=1,
        save_only_model=True,
        logging_steps=5,
        gradient_checkpointing=False,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        seed=0,
    ),
)
trainer.train()
trainer.save_model(out / "adapter")
push(out / "adapter", args.out)
