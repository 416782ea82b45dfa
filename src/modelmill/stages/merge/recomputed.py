"""Every merged tensor held against the sum it must be, computed in another way.

What was written came out of PEFT in float32: a product, its scaling, a sum, one rounding.  Here
the three are one fused operation, and where its rounding differs, the exact value in
float64 decides whether a sum in float32 may have been rounded to what is in the file.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import torch

from modelmill.models.lockstep import Versions
from modelmill.models.merging import LowRank, Merging, Origin
from modelmill.models.shards import TensorSource
from modelmill.models.skeleton import shared_names
from modelmill.spec.errors import InternalError
from modelmill.spec.records import Record

EPSILON: Final = torch.finfo(torch.float32).eps
NORM_EPSILONS: Final = 64
"""A float32 norm of a row may be off by so many."""
SLACK_EPSILONS: Final = 4
"""Roundings beside those of the product: scaling, sum, the row's factor."""

PIECE_ELEMENTS: Final = 2**21
"""Compared at a time: 8 MB in float32, so that temporary tensors stay in a cache."""

WRONG_FIX: Final = "run the stage again; if it stays, report the model family and the adapter's key"

PROOF: Final = "merge-proof.jsonl"
"""Beside the weights: a line per tensor."""

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What is added to, the base's own, and what was written."""

Made = Literal["copied", "replaced", "added"]


class TensorProof(Record):
    """What was found out about one tensor of the merged model."""

    name: str
    made: Made
    """`copied` from the base, `replaced` by one of the adapter's, or a change `added` to it."""
    change: float
    """Norm of its change over the norm of the base's tensor."""
    last_bits: int = 0
    """Elements that the other way of computing rounds to a neighbour; each was decided
    in float64."""


@dataclass
class Recomputed:
    """The merged tensors as they are in the files, each checked when it is read.

    Attributes:
        proofs: what was found out so far, by name.
    """

    merging: Merging
    written: TensorSource
    dtype: torch.dtype
    held: Callable[[str, torch.Tensor], torch.Tensor] | None = None
    """What a tensor was while it was trained on, by its name, where it was not itself."""
    proofs: dict[str, TensorProof] = field(default_factory=dict)

    def versions(self, name: str) -> Versions:
        """Read one tensor in all its versions; the first time, check the merged one.

        Raises:
            InternalError: it is not the base's with the adapter's change.
        """
        origin = self.merging.origins[shared_names(self.merging.model).get(name, name)]
        base, written = self._base(origin), self.written.read(origin.name)
        before = base if origin.replacement is None else self.merging.unmerged(origin)
        dtype = self.dtype if base.is_floating_point() else base.dtype
        if written.dtype != dtype or written.shape != origin.shape:
            raise _wrong(origin.name, "has another form")
        if origin.name not in self.proofs:
            self.proofs[origin.name] = self._check(origin, (before, base, written))
        return Versions(
            {
                "base": base,
                "adapter": before,
                "trained": before if self.held is None else self.held(origin.name, before),
                # Versions that agree are computed once.
                "written": base if origin.is_copied and dtype == base.dtype else written,
            }
        )

    def sorted_proofs(self) -> tuple[TensorProof, ...]:
        """List what was found out, by name."""
        return tuple(self.proofs[name] for name in sorted(self.proofs))

    def rest(self) -> Iterator[str]:
        """Name what no prompt has led to, and is not checked yet."""
        return iter([name for name in self.merging.origins if name not in self.proofs])

    def _base(self, origin: Origin) -> torch.Tensor:
        """Read the base's own tensor; rows that only the adapter has are taken from it."""
        if origin.base is None:
            return self.merging.unmerged(origin)
        base = self.merging.base.read(origin.base)
        if base.shape == origin.shape:
            return base
        brought = self.merging.unmerged(origin).to(base.dtype)
        known = min(base.shape[0], brought.shape[0])
        brought[:known] = base[:known]
        return brought

    def _check(self, origin: Origin, tensors: Tensors) -> TensorProof:
        found = _Found()
        if origin.low_rank is not None:
            self._check_sum(origin, origin.low_rank, tensors, found)
        else:
            self._check_plain(origin, tensors, found)
        return TensorProof(
            name=origin.name,
            made=_made(origin),
            change=found.change(),
            last_bits=found.last_bits,
        )

    def _check_plain(self, origin: Origin, tensors: Tensors, found: "_Found") -> None:
        """Check what is taken over as it is, and biases."""
        before, base, written = map(torch.atleast_1d, tensors)
        if origin.added is not None:
            bias = self.merging.adapter.read(origin.added)
            exact = before.double() + origin.added_scale * bias.double()
            error = SLACK_EPSILONS * EPSILON * (before.double().abs() + exact.abs())
            found.last_bits = _decide(origin.name, written, exact, error)
        for start, end in _pieces(written):
            new, old = written[start:end], base[start:end]
            expected = before[start:end].to(written.dtype)
            if origin.added is None and not _same_bits(new, expected):
                raise _wrong(origin.name, "is another tensor")
            found.add(new, old, is_copied=origin.is_copied and written.dtype == base.dtype)

    def _check_sum(self, origin: Origin, low: LowRank, tensors: Tensors, found: "_Found") -> None:
        """Compute the sum in fused operations on pieces that fit into a cache."""
        before, base, written = tensors
        parts = {
            part: self.merging.adapter.read(name).float()
            for part, name in (("down", low.down), ("up", low.up), ("magnitude", low.magnitude))
            if name is not None
        }
        # As the weight is stored, the change is left @ right.
        left, right = parts["up"], parts["down"]
        if low.is_transposed:
            left, right = right.T, left.T
        factor = None
        if low.magnitude is not None:
            factor = parts["magnitude"] / _row_lengths(before, left, right, low)
        exact = _Exact(before, left, right, low.scale, factor, low.is_transposed)
        is_sum = factor is None and before is base
        if is_sum:
            found.changed = _squared_norm(left, right, low.scale)
        for start, end in _pieces(written):
            total = before[start:end].to(torch.float32, copy=True)
            if is_sum:
                found.size += float(torch.linalg.vector_norm(total)) ** 2
            total.addmm_(left[start:end], right, alpha=low.scale)
            if factor is not None:
                total.mul_(factor if low.is_transposed else factor[start:end, None])
            new, expected = written[start:end], total.to(written.dtype)
            if not _same_bits(new, expected):
                row, column = (new != expected).nonzero(as_tuple=True)
                value, error = exact.at(row + start, column)
                found.last_bits += _decide(origin.name, new[row, column], value, error)
            if not is_sum:
                found.add(new, base[start:end], is_copied=False)
        if not math.isfinite(found.size + found.changed):
            raise _wrong(origin.name, "is not a number everywhere")


@dataclass
class _Found:
    """What is summed up over the pieces of a tensor."""

    last_bits: int = 0
    changed: float = 0.0
    size: float = 0.0

    def add(self, new: torch.Tensor, old: torch.Tensor, *, is_copied: bool) -> None:
        """Add the squared norms of a piece and of its change."""
        if is_copied or not new.is_floating_point():
            return
        before = old.float()
        self.size += float(torch.linalg.vector_norm(before)) ** 2
        self.changed += float(torch.linalg.vector_norm(new.float() - before)) ** 2

    def change(self) -> float:
        """Give the norm of the change over that of the base."""
        return math.sqrt(self.changed / self.size) if self.size else float(self.changed > 0)


def save_proof(proofs: Sequence[TensorProof], folder: Path) -> None:
    """Write what was proved, a line per tensor; nothing where no tensor was looked at alone."""
    if proofs:
        lines = "".join(proof.model_dump_json() + "\n" for proof in proofs)
        (folder / PROOF).write_text(lines, encoding="utf-8")


@dataclass(frozen=True)
class _Exact:
    """The exact sum at single places, and how far float32 may be from it."""

    before: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    scale: float
    factor: torch.Tensor | None
    is_transposed: bool

    def at(self, row: torch.Tensor, column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the sum at some places in float64, and the bound of float32's error."""
        mine, others = self.left[row].double(), self.right.T[column].double()
        exact = self.before[row, column].double() + self.scale * (mine * others).sum(1)
        # Of the product's error Cauchy and Schwarz know a bound.
        length = abs(self.scale) * mine.norm(dim=1) * others.norm(dim=1)
        rank = mine.shape[1]
        error = EPSILON * ((rank + SLACK_EPSILONS) * length + SLACK_EPSILONS * exact.abs())
        if self.factor is not None:
            factor = self.factor[column if self.is_transposed else row].double()
            exact = factor * exact
            error = factor.abs() * error + NORM_EPSILONS * EPSILON * exact.abs()
        return exact, error


def _squared_norm(left: torch.Tensor, right: torch.Tensor, scale: float) -> float:
    """Compute the squared norm of scale * left @ right without the product."""
    wide, flat = left.double(), right.double()
    return scale**2 * float(((wide.T @ wide) * (flat @ flat.T)).sum())


def _row_lengths(
    before: torch.Tensor, left: torch.Tensor, right: torch.Tensor, low: LowRank
) -> torch.Tensor:
    """Compute the norm of each output's weights after the change, a piece at a time."""
    squares = torch.zeros(before.shape[1] if low.is_transposed else before.shape[0]).double()
    for start, end in _pieces(before):
        total = before[start:end].to(torch.float32, copy=True)
        total.addmm_(left[start:end], right, alpha=low.scale)
        if low.is_transposed:
            squares += total.double().square().sum(0)
        else:
            squares[start:end] = total.double().square().sum(1)
    return squares.sqrt().float()


def _decide(name: str, found: torch.Tensor, exact: torch.Tensor, error: torch.Tensor) -> int:
    """Make sure that each element is what some float32 sum rounds to; count them.

    Raises:
        InternalError: one is not.
    """
    least, most = (exact - error).to(found.dtype), (exact + error).to(found.dtype)
    # Negated, because a nan must not pass.
    if not bool(((least <= found) & (found <= most)).all()):
        raise _wrong(name, "is not the sum of the base and the change")
    return int(found.numel())


def _pieces(tensor: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Divide the first dimension so that a piece in float32 fits into a cache."""
    rows = tensor.shape[0]
    step = max(1, PIECE_ELEMENTS * rows // max(1, tensor.numel()))
    return ((start, min(rows, start + step)) for start in range(0, rows, step))


def _made(origin: Origin) -> Made:
    if origin.low_rank is not None or origin.added is not None:
        return "added"
    return "copied" if origin.is_copied else "replaced"


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compare the bytes, so that -0 is not 0 and nan is itself.

    In words of eight bytes where there are such: five times as fast as elements of 16 bits.
    """
    flat = [each.contiguous().view(-1) for each in (one, other)]
    sizes = [count * each.itemsize for each in flat for count in (len(each), each.storage_offset())]
    word = torch.uint8 if any(size % 8 for size in sizes) else torch.int64
    return bool(torch.equal(flat[0].view(word), flat[1].view(word)))


def _wrong(name: str, how: str) -> InternalError:
    return InternalError(
        f"the merged model is not the base with its adapter: {name} {how}", fix=WRONG_FIX
    )
