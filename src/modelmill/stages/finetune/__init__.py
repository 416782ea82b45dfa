"""Fine-tune a base model: rows in, an adapter or a model and the prompt contract out.

Says in which order things happen; `examples` knows rows, `learner` what is trained and
`training` the trainer.
"""

import logging

import torch
from transformers import PreTrainedModel, set_seed

from modelmill.models.adapter import choose_targets, fresh_adapter, open_adapter
from modelmill.models.families import embedded_tokens
from modelmill.models.guard import check_length, check_vocabulary
from modelmill.models.open import open_model, open_tokenizer
from modelmill.models.precision import choose_precision, name_of
from modelmill.models.probe import save_probe
from modelmill.models.prompt import contract_for, contract_into_tokenizer, save_contract
from modelmill.models.skeleton import open_skeleton
from modelmill.models.weights import make_readable
from modelmill.spec.batching import ranks_for, undividable
from modelmill.spec.figures import Finetuned
from modelmill.spec.finetune import FinetuneSpec
from modelmill.spec.settings import FinetuneSettings
from modelmill.stages.finetune import learner
from modelmill.stages.finetune.examples import read_examples
from modelmill.stages.finetune.fsdp import divide, put_together
from modelmill.stages.finetune.learner import Learner
from modelmill.stages.finetune.lengths import histogram
from modelmill.stages.finetune.packed import refuse_leaks
from modelmill.stages.finetune.ranks import train_together
from modelmill.stages.finetune.state import is_of_divided_weights
from modelmill.stages.finetune.team import ALONE, Team
from modelmill.stages.finetune.training import Training, present_device, train
from modelmill.stages.finetune.watch import trainable
from modelmill.stages.stage import Folders, Outcome, Pulse

logger = logging.getLogger(__name__)


def run(settings: FinetuneSettings, folders: Folders, pulse: Pulse) -> Outcome:
    """Train on `data/train.jsonl`, keeping the weights that score best on eval.

    Writes `adapter/`, `tokenizer/`, `prompt.json` and `probe.jsonl`; of a full fine-tune a
    model that needs nothing else.  Where there are several devices, a process on each of them
    takes its share of every batch, and of the weights where one cannot hold them all.

    Raises:
        DataError: rows are too long or none is left, the model's files are not sound, or
            the loss is not a number or runs away.
        SpecError: a target module or a group size does not fit this model, or packed rows would
            see each other.
        DoesNotFit: GPU memory is too small for one micro-batch.
        DeviceFault: one of several processes was killed.
    """
    ranks = _ranks(settings.finetune.batch_size, folders.ranks, pulse)
    if ranks > 1:
        teams = _teams(ranks, folders, settings.finetune, pulse)
        return train_together(train_as_one_of, settings, folders, pulse, teams)
    return train_as_one_of(settings, folders, pulse, ALONE)


def train_as_one_of(
    settings: FinetuneSettings, folders: Folders, pulse: Pulse, team: Team
) -> Outcome:
    """Do what one process of a team does; the first writes what all have learned."""
    base, spec = folders.inputs["model"], settings.finetune
    with pulse.part("load"):
        tokenizer = open_tokenizer(base)
        contract = contract_for(base, tokenizer, settings.contract)
        examples = read_examples(folders.inputs["data"], tokenizer, contract, settings)
        device = present_device(team)
        dtype, reason = choose_precision(spec.precision, device)
        logger.info("precision %s: %s", name_of(dtype), reason)
        if spec.tf32 and device.type == "cpu":
            pulse.warn("finetune.tf32 has no meaning on a CPU")
        # All weights are trained in float32, whatever is computed in: 16 bits lose small steps.
        held = torch.float32 if spec.method == "full" else dtype
        # What is divided later is whole only once, and on the host.
        is_whole = team.is_first or not team.divides
        place = torch.device("cpu") if team.divides else device
        opened = (
            open_model(base, dtype=held, device=place, load_in=spec.load_in)
            if is_whole
            else open_skeleton(base)
        )
        contract = contract.padded_within(embedded_tokens(opened))
        check_vocabulary(opened, max(contract.pad, examples.highest_id), str(base))
        check_length(opened.config, examples.longest, str(base))
        if spec.packing and is_whole:
            refuse_leaks(opened, [row.input_ids for row in examples.train])
        set_seed(settings.seed)
        learning = _learner(opened, settings, folders)
        if team.divides:
            # PEFT copies modules that are trained whole as the base has them, in 16 bits perhaps,
            # and what is divided can be cast no more.
            for weight in trainable(learning.model).values():
                weight.data = weight.data.float()
            divide(learning.model, team, device, dtype)
    training = Training(
        finetune=spec,
        seed=settings.seed,
        max_length=contract.max_length,
        pad=contract.pad,
        dtype=dtype,
        device=device,
        scratch=folders.resume,
        fall_back=folders.fall_back,
        halvings=settings.micro_batch_halvings,
        head_is_trained=learning.head_is_trained,
        team=team,
    )
    with pulse.part("work"):
        trained = train(learning.model, examples, training, pulse)
    with pulse.part("save"):
        if team.divides:
            put_together(learning.model, team)
        if team.is_first:
            contract_into_tokenizer(contract, tokenizer, opened.generation_config)
            learning.save(folders.output, tokenizer)
            save_contract(contract, folders.output)
            save_probe((*examples.eval, *examples.train), folders.output)
            make_readable(folders.output)
    return Outcome(
        figures=Finetuned(
            steps=trained.steps,
            train_rows=len(examples.train),
            eval_rows=len(examples.eval),
            too_long=examples.too_long,
            tokens=trained.tokens,
            trainable_parameters=trained.trainable_parameters,
            parameters=learning.parameters,
            micro_batch_size=trained.micro_batch_size,
            precision=name_of(dtype),
            precision_reason=reason,
            best_step=trained.best_step,
            best_eval_loss=trained.best_eval_loss,
            curve=trained.curve,
            packed_to=trained.sequences if spec.packing else None,
            stopped_early=trained.stopped_early,
            lengths=histogram(examples.lengths),
            max_length=contract.max_length,
        ),
        effective={
            "precision": name_of(dtype),
            "precision_reason": reason,
            "micro_batch_size": trained.micro_batch_size,
            **({"ranks": team.size} if team.size > 1 else {}),
            **({"fsdp": True} if team.divides else {}),
            **learning.effective,
        },
    )


def _ranks(batch_size: int, asked: int, pulse: Pulse) -> int:
    """Choose how many processes train: one on each device, as far as a batch can be shared."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else max(1, asked)
    devices = min(asked, there) if asked else there
    ranks = ranks_for(batch_size, devices)
    if ranks < devices:
        pulse.warn(
            f"{ranks} of {devices} devices train: finetune.batch_size {batch_size} cannot be "
            "shared equally by more of them"
        )
    return ranks


def _teams(ranks: int, folders: Folders, spec: FinetuneSpec, pulse: Pulse) -> tuple[Team, ...]:
    """Say how ranks share the work: the way to try first, and one for where it does not fit."""
    asked = folders.fsdp
    whole, divided = Team(size=ranks), Team(size=ranks, divides=True)
    why = undividable(spec)
    if why and asked == "always":
        pulse.warn(f"Every device holds the whole model: with {why} it cannot be divided")
    if why or asked == "never":
        return (whole,)
    if asked == "auto" and is_of_divided_weights(folders.resume):
        pulse.warn(
            f"As in an earlier attempt, each of the {ranks} devices holds a part of the weights"
        )
        return (divided,)
    return (divided,) if asked == "always" else (whole, divided)


def _learner(opened: PreTrainedModel, settings: FinetuneSettings, folders: Folders) -> Learner:
    spec = settings.finetune
    if spec.qat is not None:
        return learner.rounded_model(opened, spec.qat)
    if spec.method == "full":
        return learner.whole_model(opened, settings.dtype or "bfloat16")
    if spec.init_adapter is not None:
        first, _ = open_adapter(opened, folders.inputs["adapter"] / "adapter", is_trained=True)
        return learner.adapter(first)
    targets = choose_targets(opened, spec)
    return learner.adapter(fresh_adapter(opened, spec, targets))
