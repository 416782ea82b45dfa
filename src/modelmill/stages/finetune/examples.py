"""Rows as token ids, in the contract's form, none of them longer than the contract allows.

Knows rows and the contract; must not know models or trainers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from modelmill.models.chat import ChatTemplateError
from modelmill.models.prompt import (
    Contract,
    EncodedRow,
    encode_conversation,
    encode_row,
    windows,
)
from modelmill.spec.errors import DataError
from modelmill.spec.records import Row
from modelmill.spec.settings import FinetuneSettings
from modelmill.stages.rows import load_rows

_SHOWN = 10


@dataclass(frozen=True)
class Examples:
    """What the model learns from and is scored on while it learns."""

    train: tuple[EncodedRow, ...]
    eval: tuple[EncodedRow, ...]
    too_long: int
    """Rows left out of both, or cut to pieces."""
    lengths: tuple[int, ...] = ()
    """Tokens of every training row, also of those left out."""

    @property
    def highest_id(self) -> int:
        """The largest token id of all rows."""
        return max(max(row.input_ids) for row in (*self.train, *self.eval))

    @property
    def longest(self) -> int:
        """Tokens of the longest of all rows."""
        return max(len(row.input_ids) for row in (*self.train, *self.eval))


def read_examples(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    contract: Contract,
    settings: FinetuneSettings,
) -> Examples:
    """Encode `train.jsonl` and, where it exists, `eval.jsonl`.

    Raises:
        DataError: rows are longer than `max_length` and must not be dropped, or the chat
            template does not fit their conversations, naming them all at once; or no row is
            left to train on.
    """
    reader = _Reader(tokenizer, contract, settings)
    train = reader.read(folder, "train")
    lengths = tuple(reader.lengths)
    evaluation = reader.read(folder, "eval")
    if reader.refused:
        raise _refused(reader.refused)
    if reader.longer and settings.too_long == "error":
        raise _too_long(reader.longer, contract.max_length)
    if not train:
        dropped = f": all {len(reader.longer)} are longer than max_length" if reader.longer else ""
        raise DataError(f"no training row is left{dropped}", at=str(folder / "train.jsonl"))
    return Examples(train, evaluation, len(reader.longer), lengths)


@dataclass
class _Reader:
    """Encodes splits and remembers what did not fit."""

    tokenizer: PreTrainedTokenizerBase
    contract: Contract
    settings: FinetuneSettings
    lengths: list[int] = field(default_factory=list)
    longer: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def read(self, folder: Path, split: str) -> tuple[EncodedRow, ...]:
        path = folder / f"{split}.jsonl"
        kept: list[EncodedRow] = []
        for row in load_rows(path) if path.exists() else ():
            try:
                encoded = self._encode(row)
            except ChatTemplateError as error:
                self.refused.append(f"{split} row {row.row + 1}: {error}")
                continue
            length = len(encoded.input_ids)
            self.lengths.append(length)
            if length <= self.contract.max_length:
                kept.append(encoded)
                continue
            self.longer.append(f"{split} row {row.row + 1} ({length})")
            if self.settings.too_long == "split":
                kept.extend(windows(encoded, self.contract.max_length))
        return tuple(kept)

    def _encode(self, row: Row) -> EncodedRow:
        if row.messages and self.settings.loss_on == "assistant":
            return encode_conversation(self.contract, self.tokenizer, row)
        return encode_row(self.contract, self.tokenizer, row)


def _refused(refused: Sequence[str]) -> DataError:
    more = f"\n  and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    shown = "\n".join(f"  {each}" for each in refused[:_SHOWN])
    return DataError(
        f"{len(refused)} conversations do not fit the chat template\n{shown}{more}",
        at="data.chat_template",
        fix="set data.loss_on: last_turn where earlier turns cannot be told apart, set "
        "data.chat_template: plain, or correct the rows",
    )


def _too_long(longer: Sequence[str], max_length: int) -> DataError:
    more = f" and {len(longer) - _SHOWN} more" if len(longer) > _SHOWN else ""
    return DataError(
        f"{len(longer)} rows have more than {max_length} tokens: "
        f"{', '.join(longer[:_SHOWN])}{more}",
        at="data.max_length",
        fix="raise data.max_length, or set data.too_long: drop",
    )
