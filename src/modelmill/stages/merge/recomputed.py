"""Every merged tensor held against the sum it must be, computed in another way.

What was written came out of PEFT in float32: a product, its scaling, a sum, one rounding.  Here
the three are one fused operation, and where its rounding differs, the exact value in
float64 decides whether a sum in float32 may have been rounded to what is in the file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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

CHUNK_ELEMENTS: Final = 4 * 2**20
"""Compared at a time; float64 of them are 32 MB."""

WRONG_FIX: Final = "run the stage again; if it stays, report the model family and the adapter's key"

PROOF: Final = "merge-proof.jsonl"
"""Beside the weights: a line per tensor."""

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
        """Read one tensor in all its versions and check the merged one.

        Raises:
            InternalError: it is not the base's with the adapter's change.
        """
        origin = self.merging.origins[shared_names(self.merging.model).get(name, name)]
        base = self._base(origin)
        written = self.written.read(origin.name)
        before, merged, last_bits = base, base, 0
        if origin.replacement is not None:
            before = merged = self.merging.unmerged(origin)
        if origin.low_rank is not None or origin.added is not None:
            merged = self._recompute(origin, before)
        rounded = merged.to(written.dtype)
        del merged
        if written.dtype != self._dtype_of(base) or written.shape != origin.shape:
            raise _wrong(origin.name, "has another form")
        if torch.equal(_bits(written), _bits(rounded)):
            # Versions that agree are computed once.
            written = rounded
        elif origin.low_rank is None and origin.added is None:
            raise _wrong(origin.name, "is another tensor")
        else:
            last_bits = self._decide(origin, before, rounded, written)
        self.proofs[origin.name] = TensorProof(
            name=origin.name,
            made=_made(origin),
            change=_relative_change(written, base),
            last_bits=last_bits,
        )
        trained = before if self.held is None else self.held(origin.name, before)
        return Versions(
            {
                "base": base,
                "adapter": before,
                "trained": trained,
                "rounded": rounded,
                "written": written,
            }
        )

    def sorted_proofs(self) -> tuple[TensorProof, ...]:
        """List what was found out, by name."""
        return tuple(self.proofs[name] for name in sorted(self.proofs))

    def rest(self) -> Iterator[str]:
        """Name what no prompt has led to, and is not checked yet."""
        return iter([name for name in self.merging.origins if name not in self.proofs])

    def _dtype_of(self, base: torch.Tensor) -> torch.dtype:
        return self.dtype if base.is_floating_point() else base.dtype

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

    def _recompute(self, origin: Origin, before: torch.Tensor) -> torch.Tensor:
        """Compute a sum in float32, unrounded, in one fused operation."""
        low = origin.low_rank
        if low is None:
            assert origin.added is not None
            bias = self.merging.adapter.read(origin.added)
            return (before.double() + origin.added_scale * bias.double()).float()
        parts = self._parts(low)
        total = before.to(torch.float32, copy=True)
        rows = total.T if low.is_transposed else total
        rows.addmm_(parts["up"], parts["down"], alpha=low.scale)
        if "magnitude" in parts:
            rows.mul_((parts["magnitude"] / _row_norms(rows).float())[:, None])
        return total

    def _parts(self, low: LowRank) -> Mapping[str, torch.Tensor]:
        names = {"down": low.down, "up": low.up, "magnitude": low.magnitude}
        return {
            part: self.merging.adapter.read(name).float()
            for part, name in names.items()
            if name is not None
        }

    def _decide(
        self, origin: Origin, before: torch.Tensor, rounded: torch.Tensor, written: torch.Tensor
    ) -> int:
        """Decide in float64 about every element on which two ways of computing differ."""
        low = origin.low_rank
        if low is None:
            if not torch.allclose(
                written.double(), rounded.double(), rtol=torch.finfo(written.dtype).eps, atol=0
            ):
                raise _wrong(origin.name, "is another bias")
            return int((written != rounded).sum())
        exact = _Exact(self._parts(low), low.scale, before.T if low.is_transposed else before)
        mine, others = (written.T, rounded.T) if low.is_transposed else (written, rounded)
        count = 0
        step = max(1, CHUNK_ELEMENTS // max(1, mine.shape[1]))
        for start in range(0, mine.shape[0], step):
            found = mine[start : start + step]
            row, column = (found != others[start : start + step]).nonzero(as_tuple=True)
            if len(row):
                least, most = exact.bounds(row + start, column)
                value = found[row, column]
                # Negated, because a nan must not pass.
                if not bool(
                    ((least.to(value.dtype) <= value) & (value <= most.to(value.dtype))).all()
                ):
                    raise _wrong(origin.name, "is not the sum of the base and the change")
                count += len(row)
        return count


def save_proof(proofs: Sequence[TensorProof], folder: Path) -> None:
    """Write what was proved, a line per tensor; nothing where no tensor was looked at alone."""
    if proofs:
        lines = "".join(proof.model_dump_json() + "\n" for proof in proofs)
        (folder / PROOF).write_text(lines, encoding="utf-8")


class _Exact:
    """The exact sum at single places, and how far float32 may be from it."""

    def __init__(
        self, parts: Mapping[str, torch.Tensor], scale: float, before: torch.Tensor
    ) -> None:
        self._down, self._up, self._scale = parts["down"], parts["up"], scale
        self._before = before
        self._lengths = (
            torch.linalg.vector_norm(self._up, dim=1, dtype=torch.float64),
            torch.linalg.vector_norm(self._down, dim=0, dtype=torch.float64),
        )
        self._factor: torch.Tensor | None = None
        if "magnitude" in parts:
            total = before.to(torch.float32, copy=True)
            total.addmm_(self._up, self._down, alpha=scale)
            self._factor = parts["magnitude"].double() / _row_norms(total)

    def bounds(self, row: torch.Tensor, column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bound what a sum in float32 may be at these places."""
        change = self._up[row].double().mul_(self._down.T[column].double()).sum(1)
        exact = self._before[row, column].double() + self._scale * change
        rank = self._up.shape[1]
        # Of the product's error Cauchy and Schwarz know a bound.
        length = abs(self._scale) * self._lengths[0][row] * self._lengths[1][column]
        error = EPSILON * ((rank + SLACK_EPSILONS) * length + SLACK_EPSILONS * exact.abs())
        if self._factor is not None:
            factor = self._factor[row]
            exact = factor * exact
            error = factor.abs() * error + NORM_EPSILONS * EPSILON * exact.abs()
        return exact - error, exact + error


def _row_norms(rows: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


def _made(origin: Origin) -> Made:
    if origin.low_rank is not None or origin.added is not None:
        return "added"
    return "copied" if origin.is_copied else "replaced"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Give the bytes, so that -0 is not 0 and nan is itself."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def _relative_change(written: torch.Tensor, base: torch.Tensor) -> float:
    if not base.is_floating_point() or (
        written.dtype == base.dtype and torch.equal(_bits(written), _bits(base))
    ):
        return 0.0
    change = total = 0.0
    for mine, before in zip(
        written.reshape(-1).split(CHUNK_ELEMENTS),
        base.reshape(-1).split(CHUNK_ELEMENTS),
        strict=True,
    ):
        wide = before.float()
        change += float(torch.linalg.vector_norm(mine.float() - wide, dtype=torch.float64)) ** 2
        total += float(torch.linalg.vector_norm(wide, dtype=torch.float64)) ** 2
    return float((change / total) ** 0.5) if total else float(change > 0)


def _wrong(name: str, how: str) -> InternalError:
    return InternalError(
        f"the merged model is not the base with its adapter: {name} {how}", fix=WRONG_FIX
    )
