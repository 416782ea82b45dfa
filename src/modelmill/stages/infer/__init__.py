"""INFER: every test row answered once, whatever interrupts it.

Batches over a file with any model of a run, keeps each finished batch, and goes on after
the last one.  Writes records that carry all that scoring needs; judges nothing.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import JsonValue

from modelmill.models.families import embedded_tokens
from modelmill.models.open import open_tokenizer
from modelmill.models.prompt import contract_for
from modelmill.models.weights import weight_bytes
from modelmill.spec.errors import DataError
from modelmill.spec.figures import Inferred
from modelmill.spec.names import PREDICTIONS, PROMPT
from modelmill.spec.records import Prediction, Row
from modelmill.spec.settings import InferSettings
from modelmill.stages.infer.answering import Answerer, Prepared
from modelmill.stages.infer.batches import Batch, batches_of, make_batches
from modelmill.stages.infer.forms import ContractForm, Form, own_forms
from modelmill.stages.infer.ledger import (
    Answers,
    Ledger,
    answered_in,
    form_of,
    predictions_of,
    seconds_of,
    write_predictions,
)
from modelmill.stages.infer.opened import DTYPES, Opened, open_any
from modelmill.stages.infer.own_prompt import choose_form, choose_shots, judged_rows
from modelmill.stages.infer.speed import Judged, speed_of
from modelmill.stages.infer.workers import workers_for
from modelmill.stages.rows import load_rows
from modelmill.stages.stage import Folders, Outcome, Pulse

logger = logging.getLogger(__name__)


def run(settings: InferSettings, folders: Folders, pulse: Pulse) -> Outcome | None:
    """Answer `test` with `model` and write `predictions.jsonl` in the order of its rows.

    Returns:
        None where other shards have still to answer theirs: the last one writes for all.

    Raises:
        DataError: the model cannot be read, or not one row could be answered.
    """
    effective: dict[str, JsonValue] = {}
    judged = _judge(settings, folders, pulse, effective)
    if judged is None:
        return None
    figures = judged.figures
    # Nothing holds the model any more: the device is free for another engine.
    if judged.prompts:
        with pulse.part("speed"):
            speed = speed_of(judged, settings, pulse)
        per_second = speed.tokens / speed.seconds
        figures = figures.model_copy(update={"speed": speed, "tokens_per_second": per_second})
    return Outcome(figures, effective=effective)


def _judge(
    settings: InferSettings, folders: Folders, pulse: Pulse, effective: dict[str, JsonValue]
) -> Judged | None:
    """Make and write the answers that are judged."""
    source = folders.inputs["model"]
    with pulse.part("load"):
        rows = load_rows(folders.inputs["test"] / "test.jsonl")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        opened = _open(settings, folders, device)
        # An adapter is asked as it was trained, if it says how.
        told = folders.inputs.get("adapter", source)
        teller = told / "tokenizer" if (told / "tokenizer").is_dir() else source
        tokenizer = open_tokenizer(teller)
        contract = contract_for(
            told if (told / PROMPT).exists() else source, tokenizer, settings.contract
        ).padded_within(embedded_tokens(opened.model))
        answerer = Answerer(
            *(opened, tokenizer, contract, settings, ContractForm(contract, tokenizer)),
            workers_for(opened.model),
        )
    effective["device"] = device.type
    if settings.prompt == "own":
        with pulse.part("choose"):
            form, scores = _own_form(answerer, folders, pulse)
            answerer = answerer.in_form(form)
            effective["prompt_scores"] = scores
    with pulse.part("work"):
        prepared = answerer.prepare(rows)
        answered = _answer(answerer, prepared, rows, folders, pulse)
    if answered is None:
        return None
    predictions = [*predictions_of(answered), *prepared.refused]
    _check_answered(predictions, str(folders.inputs["test"]))
    with pulse.part("save"):
        write_predictions(predictions, folders.output / PREDICTIONS)
    tokens, seconds = sum(each.tokens for each in predictions), seconds_of(answered)
    figures = Inferred(
        rows=len(predictions),
        quarantined=sum(bool(each.error) for each in predictions),
        generated_tokens=tokens,
        generate_seconds=seconds,
        tokens_per_second=tokens / seconds if tokens else 0.0,
        engine=opened.engine,
        dtype=settings.dtype,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        batch_size=settings.batch_size,
        method=opened.method,
        bits=opened.bits,
        size_bytes=sum(weight_bytes(each) for each in _weights(folders)),
        parameters=opened.parameters,
        prompt_form=answerer.form.name,
        shards=folders.shard.count,
    )
    generated = [each for each in predictions if each.tokens]
    return Judged(
        figures=figures,
        folder=source,
        has_adapter="adapter" in folders.inputs,
        prompts=[prepared.prompts[each.row] for each in generated],
        outputs=[each.output for each in generated],
        tokenizer=tokenizer,
        contract=contract,
        form=answerer.form,
    )


def _answer(
    answerer: Answerer, prepared: Prepared, rows: Sequence[Row], folders: Folders, pulse: Pulse
) -> Mapping[Batch, Answers] | None:
    """Answer this attempt's batches; returns all of the plan, or None while some are missing."""
    shard, form = folders.shard, answerer.form.name
    batches = make_batches(prepared.lengths, answerer.settings.batch_size)
    mine = batches_of(batches, shard.number, shard.count)
    ledger = Ledger(folders.resume, mine, form, shard.saved())
    by_number = {row.row: row for row in rows}
    refused = len(prepared.refused) if shard.count == 1 else 0
    total = refused + sum(map(len, mine))
    note = f"shard {shard.number + 1} of {shard.count}" if shard.count > 1 else ""
    if ledger.done:
        logger.info("going on after %d of %d rows", refused + ledger.rows, total)
    pulse.progress(refused + ledger.rows, total, "rows", note)
    left = [batch for batch in mine if batch not in ledger.done]
    rows_left = [[by_number[number] for number in batch] for batch in left]
    for batch, answers in zip(left, answerer.answer(rows_left, prepared), strict=True):
        ledger.add(batch, *answers)
        pulse.save()
        pulse.progress(refused + ledger.rows, total, "rows", note)
    if shard.count == 1:
        return ledger.done
    present = (folders.resume, *shard.saved())
    answered = answered_in(present, batches, form)
    if len(answered) == len(batches):
        return answered
    _check_forms({form, *map(form_of, present)} - {""})
    return None


def _open(settings: InferSettings, folders: Folders, device: torch.device) -> Opened:
    source, dtype = folders.inputs["model"], DTYPES[settings.dtype]
    adapter = folders.inputs.get("adapter")
    if adapter is None:
        return open_any(source, dtype, device)
    from modelmill.stages.infer.adapted import open_adapted  # PEFT takes seconds

    return open_adapted(source, adapter / "adapter", dtype, device, settings.base_load_in)


def _weights(folders: Folders) -> list[Path]:
    """Name the folders of the files that hold the model's weights."""
    adapter = folders.inputs.get("adapter")
    return [folders.inputs["model"], *([] if adapter is None else [adapter / "adapter"])]


def _own_form(
    answerer: Answerer, folders: Folders, pulse: Pulse
) -> tuple[Form, dict[str, JsonValue]]:
    """Choose anew after an interruption: the choice is a function of its inputs."""
    settings = answerer.settings
    data = folders.inputs["data"]
    train = load_rows(data / "train.jsonl")
    shots = choose_shots(train, settings.shots or 0, settings.seed or 0)
    judged = judged_rows(load_rows(data / "eval.jsonl"), train, shots)
    forms = own_forms(answerer.contract, answerer.tokenizer, shots)
    done = 0

    def answer(form: Form) -> list[Prediction]:
        nonlocal done
        mine = answerer.in_form(form)
        prepared = mine.prepare(judged)
        by_number = {row.row: row for row in judged}
        predictions = list(prepared.refused)
        planned = make_batches(prepared.lengths, settings.batch_size)
        batches = [[by_number[number] for number in batch] for batch in planned]
        for answered, _ in mine.answer(batches, prepared):
            predictions += answered
            done += len(answered)
            pulse.progress(done, len(forms) * len(judged), "rows", form.name)
        return predictions

    form, scores = choose_form(forms, answer)
    return form, {name: asdict(each) for name, each in scores.items()}


def _check_forms(forms: set[str]) -> None:
    """Make sure that all shards have chosen alike, or none of them would ever find all rows."""
    if len(forms) > 1:
        raise DataError(
            f"The base fits best in one form here and in another there: {', '.join(sorted(forms))}",
            fix="devices of the shards differ: give stages.infer in the profile a node_selector, "
            "or one shard",
        )


def _check_answered(predictions: list[Prediction], at: str) -> None:
    if all(each.error for each in predictions):
        reasons = sorted({each.error for each in predictions})
        raise DataError(
            f"not one of {len(predictions)} test rows could be answered: {reasons[0]}",
            at=at,
            fix="look at the reason; a larger data.max_length lets longer prompts through",
        )
