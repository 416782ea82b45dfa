"""A tokenizer in llama.cpp's words: pieces, their kinds, and how text is split before them.

llama.cpp has the splitting rules of known tokenizers built in, by name.  They are recognised here
by the rules themselves; one that is not recognised is refused, because nearly the same ids are
other ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from gguf import SpecialVocab, TokenType
from pydantic import BaseModel, JsonValue, ValidationError

from modelmill.spec.errors import DataError
from modelmill.store.json_files import read_json

TOKENIZER: Final = "tokenizer.json"

_BYTES: Final = "bytes"
_WORDS_AS_BYTES: Final = "words, as bytes"
_DIGITS: Final = "single digits"
_CASES: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SIGNS: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2: Final = rf"{_CASES}|\p{{N}}|{_SIGNS}|{_SPACES}"
_LLAMA3: Final = rf"{_CASES}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_TEKKEN: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)

PRE_TOKENIZERS: Final[Mapping[tuple[tuple[str, ...], bool], str]] = {
    ((_WORDS_AS_BYTES,), False): "gpt-2",
    ((_DIGITS, _WORDS_AS_BYTES), False): "smollm",
    ((_QWEN2, _BYTES), False): "qwen2",
    ((_LLAMA3, _BYTES), True): "llama-bpe",
    ((_TEKKEN, _BYTES), True): "tekken",
}
"""By the steps of the split, and whether whole words come before merges: llama.cpp's name."""

_MARK: Final = "\u2581"
"""Stands for a space in SentencePiece's pieces."""
_ENDS: Final = ("eos", "eot", "eom")
"""The places that a GGUF file has for tokens that end an answer."""


class _Added(BaseModel):
    id: int
    content: str
    special: bool = False


class _Bpe(BaseModel):
    type: Literal["BPE"]
    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]
    unk_token: str | None = None
    byte_fallback: bool = False
    ignore_merges: bool = False
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """List the merges as pairs; before tokenizers 0.20 they were written as one text."""
        texts = (
            tuple(each.split(" ", 1)) if isinstance(each, str) else each for each in self.merges
        )
        return [(pair[0], pair[-1]) for pair in texts]


class _Tokenizer(BaseModel):
    added_tokens: tuple[_Added, ...] = ()
    normalizer: JsonValue = None
    pre_tokenizer: JsonValue = None
    model: _Bpe


class _Generation(BaseModel):
    eos_token_id: int | tuple[int, ...] | None = None


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as a GGUF file tells it."""

    model: Literal["gpt2", "llama"]
    """Bytes and merges, or SentencePiece's pieces and scores."""
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    special: SpecialVocab
    """Special tokens by role, and the chat template."""
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    has_space_prefix: bool = False
    """Text gets a space in front."""


def read_vocabulary(folder: Path, size: int) -> tuple[Vocabulary | None, tuple[str, ...]]:
    """Read a model's tokenizer.

    Args:
        folder: the model.
        size: rows of its embedding.

    Returns:
        The vocabulary, or none and why llama.cpp would split text in another way.

    Raises:
        DataError: it names pieces that the model has no rows for, or says nothing that is a
            tokenizer.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        return None, (f"it has no {TOKENIZER}: its tokenizer is of an older kind",)
    try:
        tokenizer = _Tokenizer.model_validate(read_json(path))
    except ValidationError as error:
        return None, (f"its {TOKENIZER} is no BPE ({error.errors()[0]['msg']})",)
    special = SpecialVocab(folder, load_merges=False, n_vocab=size)
    unsaid = (*_odd(tokenizer.model), *_place_ends(special, folder))
    vocabulary = (
        _pieces(tokenizer, special, size)
        if tokenizer.model.byte_fallback
        else _bytes(tokenizer, special, size)
    )
    if vocabulary is None:
        unsaid += ("llama.cpp has no name for how its tokenizer splits text",)
    return (None if unsaid else vocabulary), unsaid


def _odd(model: _Bpe) -> Iterator[str]:
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        yield "its pieces are marked by where they stand in a word"


def _place_ends(special: SpecialVocab, folder: Path) -> Iterator[str]:
    """Say what ends an answer as the model's own generation does, and nothing by omission."""
    path = folder / "generation_config.json"
    ends = _Generation.model_validate(read_json(path)).eos_token_id if path.is_file() else None
    listed = (ends,) if isinstance(ends, int) else ends or ()
    if len(listed) > len(_ENDS):
        yield f"{len(listed)} tokens end its answers, and the file has places for {len(_ENDS)}"
    special.special_token_ids |= dict(zip(_ENDS, listed, strict=False))
    # Left out, llama.cpp decides by the kind of the tokenizer.
    for role in ("bos", "eos"):
        special.add_special_token.setdefault(role, False)


def _bytes(tokenizer: _Tokenizer, special: SpecialVocab, size: int) -> Vocabulary | None:
    steps = tuple(_steps(tokenizer.pre_tokenizer))
    pre = PRE_TOKENIZERS.get((steps, tokenizer.model.ignore_merges))
    # llama.cpp normalizes nothing; NFC changes what hardly any text has.
    is_plain = tokenizer.normalizer is None or tokenizer.normalizer == {"type": "NFC"}
    if pre is None or not is_plain:
        return None
    tokens, kinds = _listed(tokenizer, size)
    merges = tuple(" ".join(pair) for pair in tokenizer.model.pairs())
    return Vocabulary("gpt2", pre, tokens, kinds, special, merges)


def _steps(node: JsonValue) -> Iterator[str]:
    """Flatten how text is split, in words that can be compared."""
    match node:
        case {"type": "Sequence", "pretokenizers": [*parts]}:
            for part in parts:
                yield from _steps(part)
        case {
            "type": "Split",
            "pattern": {"Regex": str(regex)},
            "behavior": "Isolated",
            "invert": False,
        }:
            yield regex
        case {"type": "ByteLevel", "add_prefix_space": False, **rest}:
            yield _WORDS_AS_BYTES if rest.get("use_regex", True) else _BYTES
        case {"type": "Digits", "individual_digits": True}:
            yield _DIGITS
        case _:
            yield f"unknown: {node}"


def _pieces(tokenizer: _Tokenizer, special: SpecialVocab, size: int) -> Vocabulary | None:
    """Take a tokenizer that was made from SentencePiece's back to what it was.

    SentencePiece merges the neighbours whose union scores best.  The conversion to merges sorted
    them by that score, so the place of the first merge that makes a piece is its score.
    """
    has_space_prefix = _space_prefix(tokenizer)
    pairs = tokenizer.model.pairs()
    first: dict[str, int] = {}
    made = ["".join(pair) for pair in pairs]
    for place, piece in enumerate(made):
        first.setdefault(piece, place)
    places = [first[piece] for piece in made]
    if has_space_prefix is None or places != sorted(places):
        return None
    tokens, kinds = _listed(tokenizer, size)
    # Single characters are made by no merge, and are there before any.
    scores = tuple(float(-first.get(token, len(pairs))) for token in tokens)
    return Vocabulary(
        "llama", "default", tokens, kinds, special, scores=scores, has_space_prefix=has_space_prefix
    )


def _space_prefix(tokenizer: _Tokenizer) -> bool | None:
    """Tell whether text gets a space in front; None where it is split in another way."""
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _MARK}
    prepends = {"type": "Prepend", "prepend": _MARK}
    match tokenizer.normalizer, tokenizer.pre_tokenizer:
        case {"type": "Sequence", "normalizers": [*steps]}, None if steps == [prepends, replaces]:
            return True
        case normalizer, None if normalizer == replaces:
            return False
        case None, {"type": "Metaspace", "replacement": str(mark), "split": False, **rest}:
            return rest.get("prepend_scheme") != "never" if mark == _MARK else None
    return None


def _listed(tokenizer: _Tokenizer, size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """List pieces and their kinds by id; rows that no piece names are unused."""
    # A special piece without a row, such as a pad that no model embeds, is neither read nor said.
    added = {each.id: each for each in tokenizer.added_tokens if each.id < size or not each.special}
    model = tokenizer.model
    by_id = {number: piece for piece, number in model.vocab.items()}
    by_id |= {number: each.content for number, each in added.items()}
    if (last := max(by_id)) >= size:
        raise DataError(
            f"{TOKENIZER} has a piece {last}, and the model has rows for {size} pieces",
            fix="make the model again: its tokenizer is another model's",
        )

    def kind(number: int) -> TokenType:
        piece = by_id.get(number)
        if piece is None:
            return TokenType.UNUSED
        if piece == model.unk_token and model.byte_fallback:
            return TokenType.UNKNOWN
        if number in added:
            return TokenType.CONTROL if added[number].special else TokenType.USER_DEFINED
        is_byte = model.byte_fallback and piece in _BYTE_PIECES
        return TokenType.BYTE if is_byte else TokenType.NORMAL

    numbers: Sequence[int] = range(size)
    kinds = tuple(int(kind(number)) for number in numbers)
    return tuple(by_id.get(number, f"[PAD{number}]") for number in numbers), kinds


_BYTE_PIECES: Final = frozenset(f"<0x{byte:02X}>" for byte in range(256))
