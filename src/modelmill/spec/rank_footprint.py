"""What a fine-tune takes whose batches several ranks share.

Pure.  `footprint` has what one of them holds; every rank is a process of its own, and the
stage's own process stands beside them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from modelmill.spec.footprint import COPIES, HANDED_OUT, MB, Memory
from modelmill.spec.memory import Part, Phase, part
from modelmill.spec.settings import FinetuneSettings

SHARED_BYTES: Final = 370 * MB
"""Of a process's libraries, pages of files, which all processes of a stage map together."""

STAGE_BYTES: Final = 560 * MB
"""Of the stage's own process, which imports what ranks do and trains nothing, beside those."""

SENT_BYTES: Final = 2 * 250 * 2**20
"""Of weights that ranks compare when they begin, two buckets of torch's at a time.  On a CPU most
of it stays: 135 M with two ranks took 0.43 GB more each from then on."""


@dataclass(frozen=True)
class Ranks:
    """How many processes train together, and whether each holds only a part of the weights."""

    count: int = 1
    is_divided: bool = False


def share_of(settings: FinetuneSettings, ranks: int) -> FinetuneSettings:
    """Ask for what one of several ranks trains on: its share of every batch."""
    batch_size = settings.finetune.batch_size // ranks
    asked = settings.finetune.model_copy(update={"batch_size": batch_size})
    return settings.model_copy(update={"finetune": asked})


def memory_of_ranks(own: Memory, ranks: Ranks) -> Memory:
    """Add up what the ranks of a fine-tune hold, each a process of its own.

    Args:
        own: of one of them; its GPU is its own.
        ranks: how many there are.
    """
    if ranks.count == 1:
        return own
    stage = part("the stage's own process", STAGE_BYTES)
    return Memory(
        host=tuple(
            Phase(name=each.name, parts=(stage, *_of_ranks(_joined(each, ranks), ranks.count)))
            for each in own.host
        ),
        gpu=tuple(
            Phase(name=each.name, parts=(*each.parts, *_added_up(each.parts, ranks)))
            for each in own.gpu
        ),
    )


def _joined(phase: Phase, ranks: Ranks) -> Iterator[Part]:
    """Add what a rank has on the host because it is not alone."""
    yield from phase.parts
    yield from _added_up(phase.parts, ranks)
    for each in phase.parts:
        if ranks.is_divided:
            continue  # nobody else has the same ones
        if each.name == "weights" and phase.name == "work":
            yield part("weights that ranks compare", min(each.bytes, SENT_BYTES))


def _added_up(parts: Iterable[Part], ranks: Ranks) -> Iterator[Part]:
    """Copy the gradients: there those of all ranks are added up, divided ones by the layer."""
    for each in parts:
        if each.name == "gradients" and not ranks.is_divided:
            yield part("gradients of all ranks", each.bytes)


def _of_ranks(parts: Iterable[Part], ranks: int) -> Iterator[Part]:
    """Count parts once for each rank, but what the first does for all and what all map."""
    for each in parts:
        if each.is_reclaimable or each.name in (COPIES, HANDED_OUT):
            yield each
            continue
        shared = SHARED_BYTES if each.name == "runtime" else 0
        yield part(f"{each.name}, {ranks} ranks", ranks * (each.bytes - shared) + shared)
