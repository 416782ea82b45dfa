"""Fine-tune a base model: rows in, an adapter and the prompt contract out.

Says in which order things happen; `examples` knows rows, `training` knows the trainer.
"""

import logging

from modelmill.models.adapter import choose_targets, save_adapter
from modelmill.models.guard import check_vocabulary
from modelmill.models.open import open_model, open_tokenizer
from modelmill.models.precision import choose_precision
from modelmill.models.probe import save_probe
from modelmill.models.prompt import contract_for, contract_into_tokenizer, save_contract
from modelmill.models.weights import make_readable
from modelmill.spec.records import Finetuned
from modelmill.spec.settings import FinetuneSettings
from modelmill.stages.finetune.examples import read_examples
from modelmill.stages.finetune.training import Training, present_device, train
from modelmill.stages.stage import Folders, Outcome, Pulse

logger = logging.getLogger(__name__)


def run(settings: FinetuneSettings, folders: Folders, pulse: Pulse) -> Outcome:
    """Train an adapter on `data/train.jsonl`, keeping the weights that score best on eval.

    Writes `adapter/`, `tokenizer/`, `prompt.json` and `probe.jsonl`.

    Raises:
        DataError: rows are too long or none is left, the model's files are not sound, or
            the loss is not a number.
        SpecError: a target module does not exist.
        DoesNotFit: GPU memory is too small for one micro-batch.
    """
    base = folders.inputs["model"]
    with pulse.part("load"):
        tokenizer = open_tokenizer(base)
        contract = contract_for(base, tokenizer, settings.contract)
        examples = read_examples(folders.inputs["data"], tokenizer, contract, settings.too_long)
        device = present_device()
        dtype, reason = choose_precision(settings.finetune.precision, device)
        logger.info("precision %s: %s", str(dtype).removeprefix("torch."), reason)
        model = open_model(base, dtype=dtype, device=device, load_in=settings.finetune.load_in)
        check_vocabulary(model, max(contract.pad, examples.highest_id), str(base))
        targets = choose_targets(model, settings.finetune.target_modules)
    training = Training(
        finetune=settings.finetune,
        seed=settings.seed,
        targets=targets,
        pad=contract.pad,
        dtype=dtype,
        device=device,
        scratch=folders.resume,
        halvings=settings.micro_batch_halvings,
    )
    with pulse.part("work"):
        trained = train(model, examples, training, pulse)
    with pulse.part("save"):
        save_adapter(trained.model, folders.output / "adapter")
        contract_into_tokenizer(contract, tokenizer, model.generation_config)
        tokenizer.save_pretrained(folders.output / "tokenizer")
        save_contract(contract, folders.output)
        save_probe((*examples.eval, *examples.train), folders.output)
        make_readable(folders.output)
    precision = str(dtype).removeprefix("torch.")
    return Outcome(
        figures=Finetuned(
            steps=trained.steps,
            train_rows=len(examples.train),
            eval_rows=len(examples.eval),
            too_long=examples.too_long,
            tokens=trained.tokens,
            trainable_parameters=trained.trainable_parameters,
            parameters=trained.parameters,
            micro_batch_size=trained.micro_batch_size,
            precision=precision,
            precision_reason=reason,
            best_step=trained.best_step,
            best_eval_loss=trained.best_eval_loss,
            curve=trained.curve,
        ),
        effective={
            "precision": precision,
            "precision_reason": reason,
            "micro_batch_size": trained.micro_batch_size,
            "target_modules": list(targets),
        },
    )
