"""Answer rows with one opened model in one form; a row that cannot be answered says why."""

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from modelmill.models.chat import ChatTemplateError
from modelmill.models.guard import check_vocabulary
from modelmill.models.memory import trim_heap
from modelmill.models.prompt import Contract, EncodedRow, encode_row, windows
from modelmill.spec.records import Prediction, Row
from modelmill.spec.settings import InferSettings
from modelmill.stages.infer.forms import Form, cut
from modelmill.stages.infer.generate import Answered, Generator
from modelmill.stages.infer.likelihood import reference_nll
from modelmill.stages.infer.opened import Opened
from modelmill.stages.infer.prefix import NO_PREFIX, Prefix, read_prefix
from modelmill.stages.infer.workers import Workers


@dataclass(frozen=True)
class Prepared:
    """The rows that can be answered, as ids, and those that cannot."""

    prompts: dict[int, list[int]]
    """By row number."""
    refused: tuple[Prediction, ...]
    prefix: Prefix
    """What all prompts begin with."""

    @property
    def lengths(self) -> dict[int, int]:
        """Prompt tokens by row number."""
        return {row: len(ids) for row, ids in self.prompts.items()}


@dataclass(frozen=True)
class Answerer:
    """Everything that stays the same from batch to batch."""

    opened: Opened
    tokenizer: PreTrainedTokenizerBase
    contract: Contract
    settings: InferSettings
    form: Form
    workers: Workers

    def in_form(self, form: Form) -> "Answerer":
        """Answer in another form."""
        return replace(self, form=form)

    def prepare(self, rows: Sequence[Row]) -> Prepared:
        """Tokenize the prompts and set aside those that the model cannot take.

        Raises:
            DataError: the tokenizer is another model's.
        """
        prompts: dict[int, list[int]] = {}
        problems: dict[int, str] = {}
        for row in rows:
            try:
                prompts[row.row] = self.form.encode(row)
                problems[row.row] = self._problem(prompts[row.row])
            except ChatTemplateError as error:
                problems[row.row] = str(error)
        answerable = {row: ids for row, ids in prompts.items() if not problems[row]}
        highest = max((max(ids) for ids in answerable.values()), default=0)
        check_vocabulary(self.opened.model, highest, self.tokenizer.name_or_path)
        return Prepared(
            answerable,
            tuple(refuse(row, problems[row.row]) for row in rows if problems[row.row]),
            # Pieces of a text begin differently from texts.
            NO_PREFIX
            if any(row.is_text for row in rows)
            else read_prefix(self.opened.model, answerable.values()),
        )

    def answer(
        self, batches: Sequence[Sequence[Row]], prepared: Prepared
    ) -> Iterator[tuple[list[Prediction], float]]:
        """Answer batches, as many at once as there are workers.

        Yields:
            Of each in turn, its predictions and its seconds of pure generation.
        """
        for start in range(0, len(batches), self.workers.count):
            some = batches[start : start + self.workers.count]
            for rows, answered in zip(some, self._answers(some, prepared), strict=True):
                yield self._predictions(rows, answered, prepared), answered.seconds

    def _answers(self, batches: Sequence[Sequence[Row]], prepared: Prepared) -> list[Answered]:
        if all(row.is_text for rows in batches for row in rows):  # nothing is asked
            return [Answered([""] * len(rows), [0] * len(rows), 0.0) for rows in batches]
        generator = Generator(
            self.opened.model,
            self.tokenizer,
            self.contract,
            self.settings.max_new_tokens,
            self.form.stop_text,
        )
        prompts = [[prepared.prompts[row.row] for row in rows] for rows in batches]
        return generator.answer(prompts, self.workers, prepared.prefix)

    def _predictions(
        self, rows: Sequence[Row], answered: Answered, prepared: Prepared
    ) -> list[Prediction]:
        """Score the references of a batch, on all threads, and put its records together."""
        ids = [prepared.prompts[row.row] for row in rows]
        likelihoods = self._likelihoods(rows, ids, prepared.prefix)
        trim_heap()  # no block of this batch has the size that the next one's have
        predictions = []
        for row, text, tokens in zip(rows, answered.texts, answered.tokens, strict=True):
            nll, nll_tokens = likelihoods.get(row.row, (None, 0))
            if nll is not None and not math.isfinite(nll):
                predictions.append(refuse(row, "the model's scores are not finite numbers"))
                continue
            predictions.append(
                Prediction(
                    row=row.row,
                    prompt=row.prompt,
                    reference=row.completion,
                    fields=row.fields,
                    output=cut(text, self.form),
                    tokens=tokens,
                    nll=nll,
                    nll_tokens=nll_tokens,
                )
            )
        return predictions

    def _likelihoods(
        self, rows: Sequence[Row], prompts: Sequence[list[int]], prefix: Prefix
    ) -> dict[int, tuple[float, int]]:
        """Score the references, by row number; one that exceeds the model has no score."""
        if not self.settings.nll:
            return {}
        pieces: list[tuple[int, EncodedRow]] = []
        for row, ids in zip(rows, prompts, strict=True):
            with contextlib.suppress(ChatTemplateError):  # not every form's template refuses it
                pieces += [(row.row, piece) for piece in self._pieces(row, ids)]
        nlls = reference_nll(
            self.opened.model, [piece for _, piece in pieces], self.contract.pad, prefix
        )
        sums: dict[int, float] = defaultdict(float)
        tokens: dict[int, int] = defaultdict(int)
        for (row_number, piece), nll in zip(pieces, nlls, strict=True):
            count = len(piece.input_ids) - piece.prompt_length
            sums[row_number] += nll * count
            tokens[row_number] += count
        return {each: (sums[each] / tokens[each], tokens[each]) for each in sums}

    def _pieces(self, row: Row, prompt: list[int]) -> list[EncodedRow]:
        """Put the reference behind the prompt in this form; a text is cut to what fits."""
        alone = encode_row(self.contract, self.tokenizer, row)
        positions = self.opened.positions
        if row.is_text:
            limit = self.contract.max_length
            return windows(alone, limit if positions is None else min(limit, positions))
        whole = EncodedRow([*prompt, *alone.input_ids[alone.prompt_length :]], len(prompt))
        return [whole] if positions is None or len(whole.input_ids) <= positions else []

    def _problem(self, ids: list[int]) -> str:
        if not ids:
            return "the prompt has no tokens"
        positions = self.opened.positions
        room = None if positions is None else positions - self.settings.max_new_tokens
        limits = [each for each in (self.form.max_prompt_tokens, room) if each is not None]
        if limits and len(ids) > min(limits):
            return f"the prompt has {len(ids)} tokens, more than the {min(limits)} that fit"
        return ""


def refuse(row: Row, reason: str) -> Prediction:
    """Quarantine a row."""
    return Prediction(
        row=row.row,
        prompt=row.prompt,
        reference=row.completion,
        fields=row.fields,
        output="",
        error=reason,
    )
