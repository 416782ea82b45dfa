"""Rows as token ids, in the contract's form, none of them longer than the contract allows.

Knows rows and the contract; must not know models or trainers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from modelmill.models.prompt import Contract, EncodedRow, encode_row
from modelmill.spec.errors import DataError
from modelmill.stages.rows import load_rows

_SHOWN = 10


@dataclass(frozen=True)
class Examples:
    """What the model learns from and is scored on while it learns."""

    train: tuple[EncodedRow, ...]
    eval: tuple[EncodedRow, ...]
    too_long: int
    """Rows left out of both."""

    @property
    def highest_id(self) -> int:
        """The largest token id of all rows."""
        return max(max(row.input_ids) for row in (*self.train, *self.eval))


def read_examples(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    contract: Contract,
    too_long: Literal["error", "drop"],
) -> Examples:
    """Encode `train.jsonl` and, where it exists, `eval.jsonl`.

    Raises:
        DataError: rows are longer than `max_length` and must not be dropped, naming them
            all at once, or no row is left to train on.
    """
    splits: dict[str, tuple[EncodedRow, ...]] = {"train": (), "eval": ()}
    longer: list[str] = []
    for split in splits:
        path = folder / f"{split}.jsonl"
        rows = load_rows(path) if path.exists() else ()
        encoded = [encode_row(contract, tokenizer, row.prompt, row.completion) for row in rows]
        fits = [len(each.input_ids) <= contract.max_length for each in encoded]
        splits[split] = tuple(each for each, fit in zip(encoded, fits, strict=True) if fit)
        longer += [
            f"{split} row {row.row + 1} ({len(each.input_ids)})"
            for row, each, fit in zip(rows, encoded, fits, strict=True)
            if not fit
        ]
    if longer and too_long == "error":
        raise _too_long(longer, contract.max_length)
    if not splits["train"]:
        dropped = f": all {len(longer)} are longer than max_length" if longer else ""
        raise DataError(f"no training row is left{dropped}", at=str(folder / "train.jsonl"))
    return Examples(splits["train"], splits["eval"], len(longer))


def _too_long(longer: Sequence[str], max_length: int) -> DataError:
    more = f" and {len(longer) - _SHOWN} more" if len(longer) > _SHOWN else ""
    return DataError(
        f"{len(longer)} rows have more than {max_length} tokens: "
        f"{', '.join(longer[:_SHOWN])}{more}",
        at="data.max_length",
        fix="raise data.max_length, or set data.too_long: drop",
    )
